"""Singular value decompositions: of a sum of products without forming it, and of a dense update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .frames import CONDITION, Frame, combine_rows, frame_of, joined
from .products import Overlap, Update, gram_of, overlap_of, summed_by_update
from .signs import fix_signs

# Singular values are square roots of the eigenvalues of a float64 matrix. One that is 1e-4 times the largest has a
# relative error of 1e-8, and so have its vectors. Where smaller ones are wanted, the SVD of the core is used.
RANGE = 1e-4
# Bounds of cancellation in sums of inputs: the length of the terms over the length of their sum. Up to the first, the
# error of sums in float32 is at most 6e-8 * 1e2 < 1e-5. Up to the second, that of the float64 Gram matrix, in which
# cancellation is squared, is at most 1e-16 * 1e6 < 1e-9.
_IN_SINGLE, _CANCELLED = 1e2, 1e3


def svd_of_sum(
    updates: Sequence[Update], weights: Sequence[float], k: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of ``sum_i w_i B_i A_i``, without ever forming it.

    It takes orthonormal frames of the concatenated B and A^T and the SVD of their small core. For float32 it takes a
    frame of B alone and an eigenproblem, where this is as accurate. The result is exact, and the cost is O(d R^2)
    instead of the O(d^3) of a dense SVD.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    weights : sequence of T floats
        Their weights; negative ones subtract.
    k : int, optional
        Number of singular vectors to form; all by default. All singular values are returned, whatever k is.

    Returns
    -------
    U : Tensor of shape (d_out, min(k, q))
        Orthonormal columns, ``q = min(R, d_out, d_in)``.
    S : Tensor of shape (q,)
        Singular values, in descending order.
    Vh : Tensor of shape (min(k, q), d_in)
        Orthonormal rows.
    """
    return svd_and_overlap(updates, weights, k)[0]


def svd_and_overlap(
    updates: Sequence[Update], weights: Sequence[float], k: int | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], Callable[[int], Overlap]]:
    """Thin SVD of a weighted sum, as :func:`svd_of_sum`, and the inner products of its cuts with each update.

    The inner products come from the R x R matrices of the SVD: they cost next to nothing.

    Returns
    -------
    svd : tuple of Tensor
        U, S, Vh.
    overlap : callable
        From a rank, at most the number of triples formed, to the :class:`Overlap` of the sum cut to that rank.
    """
    pairs = [(a, b) for a, b in updates]
    ranks = [len(a) for a, _ in pairs]
    outputs = frame_of([b for _, b in pairs])
    mixed = _weighted(outputs, weights)
    columns = joined([a.mT for a, _ in pairs])
    found = _by_eigenvalues(mixed, columns, k)
    if found is not None:
        u, s, vh, mix, gram = found
        return (outputs.expand(u), s.to(columns.dtype), vh), partial(_overlap, s, u, mix, outputs, gram, ranks)
    inputs = frame_of([columns])
    rows = inputs.blocks[0]  # (q, R)
    u, s, vh = torch.linalg.svd(mixed @ rows.mT, full_matrices=False)
    u, vh = u[:, :k], vh[:k]
    small = [(c.mT, b) for c, b in zip(torch.split(rows, ranks, dim=1), outputs.blocks, strict=True)]
    svd = outputs.expand(u), s.to(columns.dtype), inputs.expand_rows(vh)
    return svd, lambda k: overlap_of((s[:k, None] * vh[:k], u[:, :k]), small)


def svds_of_each(updates: Sequence[Update], weights: Sequence[float]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Thin SVD of each ``w_i W_i``, as :func:`svd_of_sum` gives it for one update: U, S, Vh.

    Updates of one rank and shape are decomposed together: many small decompositions take less time in one call. For
    float32 they come from the Gram matrices of their factors, where that is as accurate.
    """
    pairs = [(a, b) for a, b in updates]
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    small = [len(a) if a.dtype != torch.float64 and 0 < len(a) <= min(a.shape[1], len(b)) else 0 for a, b in pairs]
    for rank in set(small) - {0}:
        own = [i for i, r in enumerate(small) if r == rank]
        if len(own) > 1:
            svds = _batched([pairs[i] for i in own], [weights[i] for i in own])
            found |= {i: svd for i, svd in zip(own, svds, strict=True) if svd is not None}
    return [
        found[i] if i in found else svd_of_sum([pair], [w])
        for i, (pair, w) in enumerate(zip(pairs, weights, strict=True))
    ]


def _batched(
    pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> list[tuple[Tensor, Tensor, Tensor] | None]:
    """SVDs of T updates of one rank r; None for one whose Gram matrices are not accurate enough.

    With the Cholesky factor ``B^T B = L L^T``, ``Q = B L^-T`` has orthonormal columns, and the eigenvalues of
    ``L^T (A A^T) L`` are the squared singular values of ``B A``.
    """
    dtype = pairs[0][0].dtype
    a, b = (torch.stack([pair[part] for pair in pairs]).double() for part in (0, 1))  # (T, r, d_in), (T, d_out, r)
    outputs = b.mT @ b
    lengths = outputs.diagonal(dim1=1, dim2=2).sqrt()[:, None]  # of the columns of B, (T, 1, r)
    # Columns are scaled to length 1, so that different lengths cost no digits
    lower, failed = torch.linalg.cholesky_ex(outputs / (lengths * lengths.mT))
    inverse = torch.linalg.solve_triangular(lower.mT, torch.eye(b.shape[2]).to(b), upper=True)  # L^-T
    core = lower.mT * lengths  # coordinates of B in the frame Q
    square = core @ (a @ a.mT) @ core.mT
    fine = (failed == 0) & square.isfinite().all(dim=2).all(dim=1)
    values, vectors = torch.linalg.eigh(torch.where(fine[:, None, None], square, 0))
    s, vectors = values.flip(1).clamp_min(0).sqrt(), vectors.flip(2)
    u = b @ ((inverse / lengths.mT) @ vectors)
    vh = ((vectors.mT @ core) / s[:, :, None]) @ a
    spread = inverse.square().sum(dim=(1, 2))  # at least the norm of the inverse of the scaled Gram matrix
    fine = fine & (s[:, -1] > RANGE * s[:, 0]) & (spread * b.shape[2] <= CONDITION)
    w = torch.tensor(weights).to(s)[:, None]
    parts = zip((u * w.sign()[:, None]).to(dtype), (s * w.abs()).to(dtype), vh.to(dtype), strict=True)
    return [triple if accurate else None for triple, accurate in zip(parts, fine.tolist(), strict=True)]


def _overlap(s: Tensor, u: Tensor, mix: Tensor, outputs: Frame, gram: Tensor, ranks: Sequence[int], k: int) -> Overlap:
    """Inner products of ``U diag(s) V^T``, cut to rank k, with each of the updates ``W_i = B_i A_i``.

    ``u`` are coordinates of U in the frame of the outputs, ``V^T = mix @ A``, and ``gram`` is A A^T.
    """
    left, right = u[:, :k].mT @ torch.cat(outputs.blocks, dim=1), mix[:k] @ gram  # U^T B and V^T A^T, (k, R)
    inner = (s[:k, None] * left * right).sum(dim=0)
    own = torch.split(torch.arange(len(gram), device=gram.device), list(ranks))
    sizes = torch.stack([(b.mT @ b * gram[i][:, i]).sum() for b, i in zip(outputs.blocks, own, strict=True)])
    given: np.ndarray = sizes.clamp_min(0).cpu().numpy()
    return Overlap(float(s[:k].square().sum()), summed_by_update(inner, ranks), given)


def _by_eigenvalues(
    mixed: Tensor, columns: Tensor, k: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """SVD of ``M A``, k triples, from the Gram matrix of A; None where that is not accurate enough.

    After U, S and Vh come the (k, R) matrix of which ``Vh = mix @ A``, and the Gram matrix.

    The eigenvalues of ``M (A A^T) M^T`` are the squared singular values, and its eigenvectors are the left vectors U.
    The right vectors are ``S^-1 U^T M A``. This small eigenproblem takes half the time of a frame of the inputs and an
    SVD. A, (R, d), is ``columns.T``; M and U are in float64.
    """
    d, n = columns.shape
    if columns.dtype == torch.float64 or not 0 < n <= d or not len(mixed):
        return None
    gram = gram_of([columns])
    values, vectors = torch.linalg.eigh(mixed @ gram @ mixed.mT)
    s, u = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)[:, :k]
    if not s[u.shape[1] - 1] > RANGE * s[0]:
        return None
    mix = (u.mT @ mixed) / s[: u.shape[1], None]
    cancelled = float((mix.square() @ gram.diagonal()).max()) ** 0.5  # the rows that come out have length 1
    if not cancelled <= _CANCELLED:
        return None
    vh = combine_rows(mix, columns.mT, double=cancelled > _IN_SINGLE)
    return u, s, vh, mix, gram


def singular_values_of_sum(updates: Sequence[Update], weights: Sequence[float]) -> Tensor:
    """Singular values of ``sum_i w_i B_i A_i``, all that :func:`svd_of_sum` gives, in float64."""
    values: Tensor = torch.linalg.svdvals(_core([(a, b) for a, b in updates], weights))
    return values


def _core(updates: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> Tensor:
    """Return the sum in frames of the outputs and of the inputs: float64."""
    outputs, inputs = frame_of([b for _, b in updates]), frame_of([a.mT for a, _ in updates])
    return _weighted(outputs, weights) @ torch.cat(inputs.blocks, dim=1).mT


def _weighted(outputs: Frame, weights: Sequence[float]) -> Tensor:
    """Return the coordinates of the outputs, each times its weight: (p, R)."""
    return torch.cat([block * w for block, w in zip(outputs.blocks, weights, strict=True)], dim=1)


def dense_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a dense (d_out, d_in) update: U, S, Vh as :func:`svd_of_sum` gives them."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh


def dense_randomized_svd(matrix: Tensor, k: int, noise: Tensor, *, n_iter: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triples of a dense update by randomised subspace iteration.

    Halko, Martinsson and Tropp (2011), with QR between the products. The update of the k triples is nearly as close to
    the matrix as the best one of rank k, even where the singular values decay slowly.

    Parameters
    ----------
    matrix : Tensor of shape (d_out, d_in)
        The update.
    k : int
        How many triples.
    noise : Tensor of shape (d_in, m)
        Standard normal numbers to start from; ``m > k`` columns; the surplus makes the result accurate.
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


def truncate_wide(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best rank-k approximation of a matrix of few rows, (p, q), such as a merge in a small space.

    Returns
    -------
    A : Tensor of shape (min(k, p, q), q)
    B : Tensor of shape (p, min(k, p, q))
        Balanced, signs fixed.
    """
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    found = _by_eigenvalues(eye, matrix.mT, k)
    if found is None:
        return truncate((matrix, eye.to(matrix.dtype)), k)
    u, s, vh, *_ = found
    return split_svd(u.to(vh.dtype), s.to(vh.dtype), vh, k)


def truncate(update: Update, k: int) -> tuple[Tensor, Tensor]:
    """Best rank-k approximation of one update (Eckart-Young): its SVD cut to k triples, balanced, signs fixed."""
    return split_svd(*svd_of_sum([update], [1.0], k), k)
