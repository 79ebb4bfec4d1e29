"""LoHa: the product, entry by entry, of two low-rank updates (Hyeon-Woo et al. 2022, FedPara; LyCORIS)."""

from __future__ import annotations

import math

from torch import Tensor

from ....adapters import ModuleInfo
from ....linalg.structured import hadamard_factors, mode_product
from .._modules import Form
from .kind import Factored, Kind, Tensors, kind_of_kernel

_MATRICES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


def _factored(tensors: Tensors) -> Factored:
    """Check the tensors of (w1_a w1_b) * (w2_a w2_b), or with kernels between the ranks, t1 and t2, of three each."""
    tensors.require(_MATRICES)
    if any(core in tensors.keys for core in _CORES):
        return _with_cores(tensors)
    w1_a, w1_b, w2_a, w2_b = map(tensors.shape, _MATRICES)
    tensors.require_shapes(
        len(w1_a) == len(w1_b) == 2 and w1_a[1] == w1_b[0] and (w1_a, w1_b) == (w2_a, w2_b),
        "(out, r) and (r, in), twice",
    )
    return _made(tensors, _MATRICES, flat, w1_b[0], w1_a[0], w1_b[1], ())


def _with_cores(tensors: Tensors) -> Factored:
    tensors.require(_CORES)
    w1_a, w1_b, w2_a, w2_b = map(tensors.shape, _MATRICES)
    t1, t2 = map(tensors.shape, _CORES)
    tensors.require_shapes(
        len(w1_a) == len(w1_b) == 2
        and 3 <= len(t1) <= 5
        and t1[:2] == (w1_a[0], w1_b[0])
        and w1_a[0] == w1_b[0]
        and (w1_a, w1_b, t1) == (w2_a, w2_b, t2),
        "(r, out), (r, in) and (r, r, kernel...), twice",
    )
    return _made(tensors, (*_MATRICES, *_CORES), with_cores, w1_b[0], w1_a[1], w1_b[1], t1[2:])


def _made(
    tensors: Tensors, parts: tuple[str, ...], form: Form, r: int, d_out: int, channels: int, kernel: tuple[int, ...]
) -> Factored:
    d_in = channels * math.prod(kernel)
    rank = min(r * r, d_out, d_in)
    tensors.require_size(max(rank, 2 * r) * (d_in + d_out))
    return Factored(parts, ModuleInfo(rank, d_in, d_out, kind_of_kernel(kernel)), form, r)


def flat(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of a matrix."""
    return hadamard_factors((w1_b, w1_a), (w2_b, w2_a))


def with_cores(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, t1: Tensor, t2: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of a convolution whose two updates are stored as three tensors each."""
    return hadamard_factors((mode_product(t1, w1_b), w1_a.mT), (mode_product(t2, w2_b), w2_a.mT))


LOHA = Kind("LoHa", frozenset((*_MATRICES, *_CORES)), _factored)
