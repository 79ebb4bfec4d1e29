"""LoKr: a Kronecker product, each side whole or of low rank (Edalati et al. 2022, KronA; LyCORIS)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from ....adapters import ModuleInfo
from ....linalg.structured import kronecker_factors, kronecker_svd, mode_product
from .kind import Factored, Kind, Tensors, kind_of_kernel

_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_EXPECTED = (
    "w1 (p, q) or (p, r) and (r, q), and w2 (m, n[, kernel...]) or (m, r) and (r, n[, kernel...]) "
    "or, with t2 (r, r, kernel...), (r, m) and (r, n)"
)


class _Side(NamedTuple):
    """One matrix of the product: (d_out, d_in), where d_in counts the kernel too."""

    parts: tuple[str, ...]
    d_out: int
    d_in: int
    rank: int | None = None  # None if it is stored whole
    kernel: tuple[int, ...] = ()

    @property
    def numerical_rank(self) -> int:
        return min(self.d_out, self.d_in, *(() if self.rank is None else (self.rank,)))

    @property
    def numbers(self) -> int:
        """Those of its factors, before a rank above its widths is brought down."""
        return max(self.numerical_rank, self.rank or 0) * (self.d_out + self.d_in)


def _factored(tensors: Tensors) -> Factored:
    left, right = _left(tensors), _right(tensors)
    ranks = {side.rank for side in (left, right)} - {None}
    tensors.require_shapes(len(ranks) < 2, "one rank of w1_a, w1_b, w2_a and w2_b")
    d_out, d_in = left.d_out * right.d_out, left.d_in * right.d_in
    rank = left.numerical_rank * right.numerical_rank
    tensors.require_size(max(rank * (d_in + d_out), left.numbers, right.numbers))
    info = ModuleInfo(rank, d_in, d_out, kind_of_kernel(right.kernel))
    divisor = next(iter(ranks), None)
    arguments = ((len(left.parts), len(right.parts)),)
    return Factored((*left.parts, *right.parts), info, kronecker, divisor, arguments, decomposed)


def _left(tensors: Tensors) -> _Side:
    if "lokr_w1" in tensors.keys:
        tensors.require_shapes("lokr_w1_a" not in tensors.keys and "lokr_w1_b" not in tensors.keys, _EXPECTED)
        w1 = tensors.shape("lokr_w1")
        tensors.require_shapes(len(w1) == 2, _EXPECTED)
        return _Side(("lokr_w1",), w1[0], w1[1])
    parts = ("lokr_w1_a", "lokr_w1_b")
    tensors.require(parts)
    a, b = map(tensors.shape, parts)
    tensors.require_shapes(len(a) == len(b) == 2 and a[1] == b[0], _EXPECTED)
    return _Side(parts, a[0], b[1], a[1])


def _right(tensors: Tensors) -> _Side:
    if "lokr_w2" in tensors.keys:
        alone = not {"lokr_w2_a", "lokr_w2_b", "lokr_t2"} & set(tensors.keys)
        w2 = tensors.shape("lokr_w2")
        tensors.require_shapes(alone and 2 <= len(w2) <= 5, _EXPECTED)
        return _Side(("lokr_w2",), w2[0], math.prod(w2[1:]), kernel=w2[2:])
    parts: tuple[str, ...] = ("lokr_w2_a", "lokr_w2_b")
    tensors.require(parts)
    a, b = map(tensors.shape, parts)
    if "lokr_t2" in tensors.keys:
        t2 = tensors.shape("lokr_t2")
        tensors.require_shapes(
            len(a) == len(b) == 2 and 3 <= len(t2) <= 5 and t2[:2] == (a[0], b[0]) and a[0] == b[0], _EXPECTED
        )
        return _Side((*parts, "lokr_t2"), a[1], b[1] * math.prod(t2[2:]), a[0], t2[2:])
    tensors.require_shapes(len(a) == 2 and 2 <= len(b) <= 5 and a[1] == b[0], _EXPECTED)
    return _Side(parts, a[0], math.prod(b[1:]), a[1], b[2:])


def kronecker(*given: Any) -> tuple[Tensor, Tensor]:
    """A and B of the product, from the tensors of the left side, those of the right side, and how many each has."""
    *tensors, (left, _) = given
    return kronecker_factors(_side(tensors[:left]), _side(tensors[left:]))


def decomposed(*given: Any, k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of the product, from what :func:`kronecker` takes."""
    *tensors, (left, _) = given
    return kronecker_svd(_side(tensors[:left]), _side(tensors[left:]), k)


def _side(tensors: list[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    """Return one side: whole, or as its A and B. Kernels are flattened into the columns, as for every convolution."""
    if len(tensors) == 1:
        return tensors[0].flatten(1)
    if len(tensors) == 3:
        a, b, core = tensors
        return mode_product(core, b), a.mT
    a, b = tensors
    return b.flatten(1), a


LOKR = Kind("LoKr", frozenset(_PARTS), _factored)
