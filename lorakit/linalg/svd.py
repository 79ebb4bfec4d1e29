"""Singular value decompositions: of a sum of products without forming it, and of a dense update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .frames import Frame, frame_of
from .products import Update
from .signs import fix_signs


def svd_of_sum(
    updates: Sequence[Update], weights: Sequence[float], k: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of ``sum_i w_i B_i A_i``, without ever forming it.

    Orthonormal frames of the concatenated B and of the concatenated A^T, then the SVD of their small core: O(d R^2)
    instead of the O(d^3) of a dense SVD, and exact.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks, R in all.
    weights : sequence of T floats
        Their weights; negative ones subtract.
    k : int, optional
        How many singular vectors to form; all by default. The singular values are all there.

    Returns
    -------
    U : Tensor of shape (d_out, min(k, q))
        Orthonormal columns, ``q = min(R, d_out, d_in)``.
    S : Tensor of shape (q,)
        Singular values, in descending order.
    Vh : Tensor of shape (min(k, q), d_in)
        Orthonormal rows.
    """
    pairs = [(a, b) for a, b in updates]
    outputs, inputs, core = _core(pairs, weights)
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    return outputs.expand(u[:, :k]), s.to(pairs[0][0].dtype), inputs.expand_rows(vh[:k])


def singular_values_of_sum(updates: Sequence[Update], weights: Sequence[float]) -> Tensor:
    """Singular values of ``sum_i w_i B_i A_i``, all that :func:`svd_of_sum` gives, in float64."""
    values: Tensor = torch.linalg.svdvals(_core([(a, b) for a, b in updates], weights)[2])
    return values


def _core(updates: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Frame, Frame, Tensor]:
    """Frames of the outputs and of the inputs, and the sum in them: float64."""
    outputs, inputs = frame_of([b for _, b in updates]), frame_of([a.mT for a, _ in updates])
    mixed = torch.cat([block * w for block, w in zip(outputs.blocks, weights, strict=True)], dim=1)
    return outputs, inputs, mixed @ torch.cat(inputs.blocks, dim=1).mT


def dense_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a dense (d_out, d_in) update: U, S, Vh as :func:`svd_of_sum` gives them."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def dense_randomized_svd(matrix: Tensor, k: int, noise: Tensor, *, n_iter: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triples of a dense update by randomised subspace iteration.

    Halko, Martinsson and Tropp (2011), with QR between the products. The update that the k triples give is nearly as
    near to the matrix as the best one of rank k, also where the singular values decay slowly.

    Parameters
    ----------
    matrix : Tensor of shape (d_out, d_in)
        The update.
    k : int
        How many triples.
    noise : Tensor of shape (d_in, m)
        Standard normal numbers to start from; ``m > k`` columns, of which the surplus is what makes it accurate.
    n_iter : int, default=6
        Products with the matrix and its transpose after the first.

    Returns
    -------
    U, S, Vh : Tensor
        Of shapes (d_out, k), (k,), (k, d_in).
    """
    q, _ = torch.linalg.qr(matrix @ noise)
    for _ in range(n_iter):
        q, _ = torch.linalg.qr(matrix.mT @ q)
        q, _ = torch.linalg.qr(matrix @ q)
    u, s, vh = torch.linalg.svd(q.mT @ matrix, full_matrices=False)
    return q @ u[:, :k], s[:k], vh[:k]


def split_svd(u: Tensor, s: Tensor, vh: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cut an SVD to its k largest triples and split it into balanced factors.

    The singular values are split evenly, ``B = U sqrt(S)`` and ``A = sqrt(S) Vh``: A and B keep equal norms, so half
    precision does not overflow on one side. The sign of each triple is fixed (the entry of largest magnitude of each
    row of A is positive), so that the factors are a function of the update.

    Parameters
    ----------
    u, s, vh : Tensor
        A thin SVD: (d_out, q), (q,), (q, d_in).
    k : int
        How many triples to keep, at most q.

    Returns
    -------
    A : Tensor of shape (min(k, q), d_in)
    B : Tensor of shape (d_out, min(k, q))
    """
    root = s[:k].sqrt()
    a = root[:, None] * vh[:k]
    sign = fix_signs(a)
    return a.mul_(sign[:, None]), u[:, :k] * (root * sign)


def truncate(update: Update, k: int) -> tuple[Tensor, Tensor]:
    """Best rank-k approximation of one update (Eckart-Young): its SVD cut to k triples, balanced, signs fixed."""
    return split_svd(*svd_of_sum([update], [1.0], k), k)
