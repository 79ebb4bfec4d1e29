"""Small spaces that hold all updates of a module: the core, and the aligned space of KnOTS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .frames import Frame, frame_of
from .msu import align_svd
from .products import Update, gram_of
from .signs import fix_signs
from .svd import RANGE

_TINY = 1e-300  # divides like zero would, without a warning or an infinity; what comes of it is not used


def core_space(updates: Sequence[Update]) -> tuple[Tensor, Tensor, Tensor]:
    """Express T updates in common orthonormal bases of their outputs and of their inputs.

    Core Space [1]_. The bases are the singular vectors of the concatenated factors, after each update's factors are
    replaced by its own balanced ones and with signs fixed: they depend on the updates alone and not on their order.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks, R in all.

    Returns
    -------
    U : Tensor of shape (d_out, p)
        Orthonormal columns that span all outputs, ``p <= R``.
    V : Tensor of shape (d_in, q)
        Orthonormal columns that span all inputs, ``q <= R``.
    cores : Tensor of shape (T, p, q)
        ``W_i = U @ cores[i] @ V.T``, exactly.

    References
    ----------
    .. [1] "Core Space", arXiv 2509.17786.
    """
    pairs = [(a, b) for a, b in updates]
    dtype = pairs[0][1].dtype
    inputs, outputs = zip(*_balanced(pairs), strict=True)
    ranks = [len(a) for a in inputs]
    columns, rows = torch.cat(outputs, dim=1).double(), torch.cat(inputs).double()
    u, v = _basis(columns, dtype), _basis(rows.mT, dtype)
    left, right = torch.split(u.mT @ columns, ranks, dim=1), torch.split(rows @ v, ranks)
    cores = torch.stack([b @ a for b, a in zip(left, right, strict=True)])
    return u.to(dtype), v.to(dtype), cores.to(dtype)


class KnotsSpace(NamedTuple):
    """Updates in common orthonormal outputs U, (d_out, p), which are never formed."""

    representations: list[tuple[Tensor, Tensor]]  # T pairs (A, C) of shapes (r_i, d_in) and (p, r_i): W_i = U @ C @ A
    outputs: Frame
    basis: Tensor  # (m, p), float64: U in the frame of the outputs

    def expand(self, columns: Tensor) -> Tensor:
        """Return ``U @ columns``: (p, k) to (d_out, k)."""
        return self.outputs.expand(self.basis @ columns.double())


def knots_space(updates: Sequence[Update]) -> KnotsSpace:
    """Express T updates in the left singular vectors of ``[W_1 ... W_T]``.

    KnOTS [1]_, in thin form: the d_out x (T d_in) matrix is never formed, only its R x R core. Signs are fixed: no
    singular vector points away from one random vector, which is always the same.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks, R in all.

    Returns
    -------
    KnotsSpace
        Of p <= R dimensions.

    References
    ----------
    .. [1] Stoica et al., "Model merging with SVD to tie the Knots", arXiv 2410.19735.
    """
    pairs = [(a, b) for a, b in updates]
    dtype = pairs[0][1].dtype
    outputs = frame_of([b for _, b in pairs])  # Q, of m columns
    blocks = torch.cat(outputs.blocks, dim=1)  # (m, R)
    random = torch.from_numpy(np.random.RandomState(0).standard_normal(len(pairs[0][1]))).to(blocks.device)
    if dtype == torch.float64:
        # A_i^T = Q_i R_i: the singular vectors of [W_i ...] are those of [blocks_i R_i^T ...] in the frame
        inputs = [frame_of([a.mT]).blocks[0] for a, _ in pairs]
        basis = _left(torch.cat([c @ r.mT for c, r in zip(outputs.blocks, inputs, strict=True)], dim=1), dtype)
        along = random @ outputs.expand(basis)
    else:
        half = torch.cat([gram_of([a.mT]) @ c.mT for (a, _), c in zip(pairs, outputs.blocks, strict=True)])
        basis = _left_of_gram(blocks @ half, blocks.shape[1], dtype)
        # sum_i U^T W_i W_i^T random, which is U^T random times squared singular values
        along = torch.cat([random @ b.double() for _, b in pairs]) @ half @ basis
    basis = basis * torch.where(along < 0, -1.0, 1.0)
    mixed = torch.split((basis.mT @ blocks).to(dtype), [len(a) for a, _ in pairs], dim=1)
    return KnotsSpace([(a, c) for (a, _), c in zip(pairs, mixed, strict=True)], outputs, basis)


def _balanced(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return what :func:`align_svd` makes of each update, but for signs.

    In float64 from r x r Gram matrices, for all updates of one rank at once, where that is accurate enough for float32.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    ranks = [0 if a.dtype == torch.float64 else len(a) for a, _ in pairs]
    for rank in set(ranks) - {0}:
        own = [i for i, r in enumerate(ranks) if r == rank]
        a, b = (torch.stack([pairs[i][half] for i in own]).double() for half in (0, 1))
        values_b, turn = torch.linalg.eigh(b.mT @ b)
        root = values_b.clamp_min(_TINY).sqrt()[:, None]
        square = turn * root  # B^T B = square @ square.T
        values, vectors = torch.linalg.eigh(square.mT @ (a @ a.mT) @ square)
        s = values.clamp_min(_TINY)[:, None] ** 0.25
        balanced = zip((square @ (vectors / s)).mT @ a, b @ (turn / root @ (vectors * s)), strict=True)
        accurate = (values_b[:, 0] > RANGE**2 * values_b[:, -1]) & (values[:, 0] > RANGE**2 * values[:, -1])
        found |= {i: pair for i, pair, fine in zip(own, balanced, accurate.tolist(), strict=True) if fine}
    return [found[i] if i in found else align_svd(pair) for i, pair in enumerate(pairs)]


def _basis(columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Left singular vectors of the singular values that are not round-off of ``dtype``; signs fixed."""
    u = _left(columns, dtype)
    signed: Tensor = u * fix_signs(u.mT)
    return signed


def _left(columns: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype != torch.float64 and columns.shape[0] <= columns.shape[1]:
        return _left_of_gram(columns @ columns.mT, columns.shape[1], dtype)
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    return _above_round_off(u, s, max(columns.shape), dtype)


def _left_of_gram(gram: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """As :func:`_left` of n columns C, from ``C @ C.T`` in float64."""
    values, vectors = torch.linalg.eigh(gram)
    return _above_round_off(vectors.flip(1), values.flip(0).clamp_min(0).sqrt(), max(len(gram), n), dtype)


def _above_round_off(u: Tensor, s: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return u[:, s > s[:1] * size * torch.finfo(dtype).eps]
