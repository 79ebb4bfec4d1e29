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
from .svd import RANGE

_TINY = 1e-300  # replaces a divisor of zero, to avoid warnings and infinities; these quotients are not used


def fixed_direction(d: int, device: torch.device) -> Tensor:
    """Return one fixed random vector, (d,) in float64: its products with singular vectors fix their signs."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal(d)).to(device)


def core_space(
    updates: Sequence[Update],
    weights: Sequence[float] | None = None,
    *,
    balanced: bool = True,
    along: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Express T updates in common orthonormal bases of their outputs and of their inputs.

    Core Space [1]_. The bases are the left singular vectors of the concatenated ``B`` and the right ones of the
    concatenated ``A``. Signs are fixed: the product of each vector with one random vector is not negative.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    weights : sequence of T floats, default=None
        Positive weights of the updates in the bases: a weight of 2 equals listing the update twice. None weighs all
        alike.
    balanced : bool, default=True
        Take each update's own balanced factors, ``sqrt(S) V^T`` and ``U sqrt(S)``: the bases then depend on the updates
        alone. False takes the factors as they are given, which is the published method.
    along : (Tensor, Tensor), default=None
        The random vectors of the outputs, (d_out,), and of the inputs, (d_in,), in float64. If the updates are given
        in a frame, pass the coordinates in that frame of the module's own vectors; otherwise the signs would depend on
        the frame. None draws them.

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
    .. [1] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
    """
    pairs = [(a, b) for a, b in updates]
    dtype = pairs[0][1].dtype
    inputs, outputs = zip(*(_balanced(pairs) if balanced else pairs), strict=True)
    ranks = [len(a) for a in inputs]
    columns, rows = torch.cat(outputs, dim=1).double(), torch.cat(inputs).double()
    # [B_1 B_1 B_2] has the left singular vectors of [sqrt(2) B_1, B_2]
    roots = _roots(weights, ranks, columns)
    if along is None:
        along = fixed_direction(len(columns), columns.device), fixed_direction(rows.shape[1], rows.device)
    u, v = _basis(columns * roots, dtype, along[0]), _basis(rows.mT * roots, dtype, along[1])
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


def knots_space(updates: Sequence[Update], weights: Sequence[float] | None = None) -> KnotsSpace:
    """Express T updates in the left singular vectors of ``[W_1 ... W_T]``.

    KnOTS [1]_, in thin form: the d_out x (T d_in) matrix is never formed, only its R x R core. The sign of each
    singular vector is chosen so that its product with one fixed random vector is not negative.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    weights : sequence of T floats, default=None
        Positive weights of the updates in the basis: a weight of 2 equals listing the update twice. None weighs all
        alike.

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
    random = fixed_direction(len(pairs[0][1]), blocks.device)
    ranks = [len(a) for a, _ in pairs]
    roots = _roots(weights, ranks, blocks)
    if dtype == torch.float64:
        # A_i^T = Q_i R_i: the singular vectors of [W_i ...] are those of [blocks_i R_i^T ...] in the frame
        inputs = [frame_of([a.mT]).blocks[0] for a, _ in pairs]
        weighted = torch.split(blocks * roots, ranks, dim=1)
        basis = _left(torch.cat([c @ r.mT for c, r in zip(weighted, inputs, strict=True)], dim=1), dtype)
        along = random @ outputs.expand(basis)
    else:
        right = torch.cat([gram_of([a.mT]) @ c.mT for (a, _), c in zip(pairs, outputs.blocks, strict=True)])
        right = right * roots.square()[:, None]
        basis = _left_of_gram(blocks @ right, blocks.shape[1], dtype)
        # sum_i w_i U^T W_i W_i^T random, which is U^T random times squared singular values
        along = torch.cat([random @ b.double() for _, b in pairs]) @ right @ basis
    basis = basis * torch.where(along < 0, -1.0, 1.0)
    mixed = torch.split((basis.mT @ blocks).to(dtype), ranks, dim=1)
    return KnotsSpace([(a, c) for (a, _), c in zip(pairs, mixed, strict=True)], outputs, basis)


def _roots(weights: Sequence[float] | None, ranks: Sequence[int], like: Tensor) -> Tensor:
    """Root of the weight of the update to which each of the R units belongs, shape (R,)."""
    each = torch.tensor([1.0] * len(ranks) if weights is None else list(weights), dtype=like.dtype, device=like.device)
    return each.sqrt().repeat_interleave(torch.tensor(ranks, device=like.device))


def _balanced(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return the balanced factors of each update that :func:`align_svd` gives, up to signs.

    For float32 they come from r x r Gram matrices in float64, for all updates of one rank at once, where that is
    accurate enough.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    # If the rank is above a width, the Gram matrices are singular, and may be far larger than the factors
    small = [a.dtype != torch.float64 and len(a) <= min(a.shape[1], len(b)) for a, b in pairs]
    ranks = [len(a) if fits else 0 for (a, _), fits in zip(pairs, small, strict=True)]
    for rank in set(ranks) - {0}:
        own = [i for i, r in enumerate(ranks) if r == rank]
        a, b = (torch.stack([pairs[i][part] for i in own]).double() for part in (0, 1))
        values_b, turn = torch.linalg.eigh(b.mT @ b)
        root = values_b.clamp_min(_TINY).sqrt()[:, None]
        square = turn * root  # B^T B = square @ square.T
        values, vectors = torch.linalg.eigh(square.mT @ (a @ a.mT) @ square)
        s = values.clamp_min(_TINY)[:, None] ** 0.25
        balanced = zip((square @ (vectors / s)).mT @ a, b @ (turn / root @ (vectors * s)), strict=True)
        accurate = (values_b[:, 0] > RANGE**2 * values_b[:, -1]) & (values[:, 0] > RANGE**2 * values[:, -1])
        found |= {i: pair for i, pair, fine in zip(own, balanced, accurate.tolist(), strict=True) if fine}
    return [found[i] if i in found else align_svd(pair) for i, pair in enumerate(pairs)]


def _basis(columns: Tensor, dtype: torch.dtype, along: Tensor) -> Tensor:
    """Left singular vectors whose singular values are above the round-off of ``dtype``; signs fixed."""
    u = _left(columns, dtype)
    signed: Tensor = u * torch.where(along @ u < 0, -1.0, 1.0)
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
