"""Data-free merge rules on singular values and vectors: TSV, Iso, SVC, Tucker-2 (CtM) and WUDI, all in thin form.

Each rule is a function of the updates alone. Directions that are round-off (of an update of lower rank than its
factors, or of updates that depend on one another) are dropped: their singular vectors are arbitrary, and the rules here
would give them as much weight as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import Update, frobenius_norm
from .svd import svd_of_sum, svds_of_each

Svd = tuple[Tensor, Tensor, Tensor]  # U (d_out, q), S (q,) descending, Vh (q, d_in)


def task_svds(updates: Sequence[Update], weights: Sequence[float]) -> list[Svd]:
    """SVD of each ``w_i W_i``, cut to its numerical rank."""
    return [_cut(svd, svd[1][:1]) for svd in svds_of_each(updates, weights)]


def orthogonalize(columns: Tensor) -> Tensor:
    """Orthonormal columns nearest to the given ones: the polar factor.

    If the columns are linearly dependent, the result is the partial isometry onto their span: two equal columns stay
    equal, and no direction of round-off is put between them.

    Parameters
    ----------
    columns : Tensor of shape (d, n)
        Any matrix.

    Returns
    -------
    Tensor of shape (d, n)
        Its singular values are 1, or 0 where those of ``columns`` are round-off.
    """
    return _polar(columns)[0]


def _polar(columns: Tensor) -> tuple[Tensor, bool]:
    """Return the polar factor of (d, n) columns, and whether all of its singular values are 1."""
    d, n = columns.shape
    if columns.dtype == torch.float64 or n > d:
        u, s, vh = torch.linalg.svd(columns, full_matrices=False)
        u, kept, vh = _cut((u, s, vh), s[:1])
        return u @ vh, len(kept) == n
    # C (C^T C)^(-1/2), in float64: half the time of an SVD. Singular values down to the round-off of float32, below
    # which they are dropped, are found to three digits or more.
    wide = columns.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide)  # ascending
    kept = values > values[-1:] * (max(d, n) * torch.finfo(columns.dtype).eps) ** 2
    vectors, roots = vectors[:, kept], values[kept].sqrt()
    return (wide @ ((vectors / roots) @ vectors.mT)).to(columns.dtype), len(roots) == n


def merge_singular_vectors(svds: Sequence[Svd]) -> Svd:
    """SVD of ``U diag(S) V^T``: all triples pooled, the stacked U and the stacked V each orthogonalised.

    Parameters
    ----------
    svds : sequence of (U, S, Vh)
        Triples of the tasks, R in all.

    Returns
    -------
    U, S, Vh : Tensor
        SVD of the merged update, of rank at most R.
    """
    u, s, vh = _pool(svds)
    (left, full_left), (right, full_right) = _polar(u), _polar(vh.mT)
    if full_left and full_right:  # orthonormal columns: it is the SVD already, but for the order
        order = torch.argsort(s, descending=True, stable=True)
        return left[:, order], s[order], right[:, order].mT
    return _svd_of_triples(left, s, right.mT, s)


def isotropic_sum(svds: Sequence[Svd], *, common_share: float = 1.0) -> Svd:
    """SVD of the sum of updates, with one value for all its singular values; or with task-specific directions added.

    Parameters
    ----------
    svds : sequence of (U, S, Vh)
        SVDs of the updates, R triples in total.
    common_share : float in [0, 1], default=1.0
        Share of the ``n = min(R, d_out, d_in)`` directions that come from the sum: its leading ones. The rest are
        divided equally between the updates; each gives the leading directions of its part outside those of the sum.
        The numbers of directions are rounded as in the authors' code.

    Returns
    -------
    U, S, Vh : Tensor
        Every entry of S is the mean over the n directions. The directions are in the order of the singular values that
        were replaced, so that a cut to rank k keeps those that were largest: equal values alone give no order.
    """
    pooled = _pool(svds)
    present = [svd for svd in svds if len(svd[1])]
    n = min(len(pooled[1]), pooled[0].shape[0], pooled[2].shape[1])
    common = _svd_of_triples(*pooled, pooled[1])
    if (per_task := _directions_per_task(n, len(present), common_share)) > 0:
        leading = n - per_task * len(present)
        common = common[0][:, :leading], common[1][:leading], common[2][:leading]
        common = merge_singular_vectors([common, *(_outside(svd, common[0], per_task) for svd in present)])
    u, s, vh = common
    return u, flatten_spectrum(s, n), vh


def flatten_spectrum(s: Tensor, n: int) -> Tensor:
    """Replace singular values by their mean over n directions; those beyond ``len(s)`` count as zeros."""
    return (s.sum() / max(n, 1)).expand(len(s))


def calibrate_sum(svds: Sequence[Svd], weights: Sequence[float], *, alpha: float) -> Svd:
    """SVD of the sum of updates, each singular value divided by how much the sum over-counts its direction.

    Parameters
    ----------
    svds : sequence of (U, S, Vh)
        SVDs of the updates ``w_i W_i`` that are summed, R triples in total.
    weights : sequence of float
        Their weights, of mean 1.
    alpha : float
        Smallest amount of over-counting that a task reports; also what a task without any response reports.

    Returns
    -------
    U, S, Vh : Tensor
        In descending order of the calibrated singular values.
    """
    pooled = _pool(svds)
    updates = [(s[:, None] * vh, u) for u, s, vh in svds]
    return calibrate(_svd_of_triples(*pooled, pooled[1]), updates, weights, alpha=alpha)


def calibrate(merged: Svd, updates: Sequence[Update], weights: Sequence[float], *, alpha: float) -> Svd:
    """Divide each singular value of a merged update W by how much W over-counts its direction.

    Parameters
    ----------
    merged : U, S, Vh
        SVD of W, without directions that are round-off.
    updates : sequence of (A, B)
        The updates ``w_i W_i``, T of them.
    weights : sequence of float
        Their positive weights w_i, of mean 1.
    alpha : float
        Smallest amount of over-counting that a task reports; also what a task without any response reports.

    Returns
    -------
    U, S, Vh : Tensor
        In descending order of the calibrated singular values.
    """
    u, s, vh = merged
    counted = torch.zeros_like(s)
    for (a, b), w in zip(updates, weights, strict=True):
        response = (u.mT @ b) @ a / w  # (q, d_in): row r is u_r^T W_i
        squared = response.square().sum(dim=1)
        floor = (frobenius_norm((a, b)).to(s) / w * _round_off(u, vh)) ** 2
        along = s * (response * vh).sum(dim=1)  # <u_r^T W, u_r^T W_i>, as u_r^T W = s_r v_r^T
        share = torch.where(squared > floor, along / torch.where(squared > floor, squared, 1), 0)
        counted += w * share.clamp_min(alpha)
    s = s * len(updates) / counted
    order = torch.argsort(s, descending=True, stable=True)
    return u[:, order], s[order], vh[order]


def numerical_svd(update: Update) -> Svd:
    """SVD of one update, cut to its numerical rank."""
    return task_svds([update], [1.0])[0]


def tucker2(
    stack: Tensor, weights: Tensor, k: int, *, max_iter: int = 100, tol: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Common bases of k inputs and k outputs that keep most of several matrices: Tucker-2 by HOOI.

    Maximises ``sum_i w_i ||U^T M_i V||^2`` over orthonormal U and V. It starts from the leading singular vectors of the
    stacked matrices (HOSVD), and replaces U and V in turn by those of the matrices projected on the other.

    Parameters
    ----------
    stack : Tensor of shape (T, p, q)
        The matrices M_i.
    weights : Tensor of shape (T,)
        Positive weights.
    k : int
        Number of directions.
    max_iter : int, default=100
        Largest number of rounds.
    tol : float, default=1e-6
        Stop earlier once a round adds no more than this share, or round-off, to the energy that is kept.

    Returns
    -------
    U : Tensor of shape (p, min(k, p, q))
    V : Tensor of shape (q, min(k, p, q))
    cores : Tensor of shape (T, min(k, p, q), min(k, p, q))
        ``U^T M_i V``.
    """
    k = min(k, *stack.shape[1:])
    scaled = stack * weights.sqrt()[:, None, None]
    v = _leading(scaled.mT, k)
    kept, least = 0.0, max(tol, 4 * torch.finfo(stack.dtype).eps)
    for _ in range(max_iter):
        u = _leading(scaled @ v, k)
        v = _leading(scaled.mT @ u, k)
        before, kept = kept, float((u.mT @ scaled @ v).square().sum())
        if kept <= before * (1 + least):
            break
    return u, v, u.mT @ stack @ v


def least_interference(svds: Sequence[Svd], weights: Sequence[float], *, ridge: float) -> Svd:
    """SVD of the X that minimises ``sum_i w_i ||(X - W_i) W_i^T||^2 / ||W_i||^2 + rho ||X||^2``.

    Parameters
    ----------
    svds : sequence of (U, S, Vh)
        SVDs of the updates W_i, R triples in total.
    weights : sequence of float
        Positive weights; a common factor does not matter.
    ridge : float
        ``rho``, as a multiple of the mean of the non-zero eigenvalues of ``H = sum_i w_i W_i^T W_i / ||W_i||^2``. An
        update that is linearly dependent on the others then does not change ``rho``. 0 takes the pseudo-inverse of H.

    Returns
    -------
    U, S, Vh : Tensor
        SVD of X, of rank at most R.
    """
    # W_i enters only by its Gram matrix, so diag(S_i) V_i^T can stand for it. H itself is never formed, because its
    # condition number is the square of that of the stack.
    # S_i over its norm, as the square of a large singular value would overflow.
    units = [
        s / s.double().norm().clamp_min(1e-300).to(s.dtype) * w**0.5 for (_, s, _), w in zip(svds, weights, strict=True)
    ]
    stack = torch.cat([unit[:, None] * vh for (_, _, vh), unit in zip(svds, units, strict=True)])  # (R, d_in)
    targets = torch.cat([u * (s * unit) for (u, s, _), unit in zip(svds, units, strict=True)], dim=1)
    q, d, ph = torch.linalg.svd(stack, full_matrices=False)
    q, d, ph = _cut((q, d, ph), d[:1])
    rho = ridge * d.square().sum() / max(len(d), 1)
    return svd_of_sum([(ph, (targets @ q) * (d / (d.square() + rho)))], [1.0])


def _pool(svds: Sequence[Svd]) -> Svd:
    u, s, vh = zip(*svds, strict=True)
    return torch.cat(u, dim=1), torch.cat(s), torch.cat(vh)


def _svd_of_triples(u: Tensor, s: Tensor, vh: Tensor, sizes: Tensor) -> Svd:
    """SVD of ``u diag(s) vh``, without what is round-off against the largest of ``sizes``."""
    svd = svd_of_sum([(s[:, None] * vh, u)], [1.0])
    return _cut(svd, sizes.max().reshape(1) if len(sizes) else sizes)


def _round_off(u: Tensor, vh: Tensor) -> float:
    """Relative size up to which a singular value counts as zero."""
    return max(u.shape[0], vh.shape[1]) * torch.finfo(u.dtype).eps


def _cut(svd: Svd, largest: Tensor) -> Svd:
    u, s, vh = svd
    keep = int((s > largest * _round_off(u, vh)).sum())
    return u[:, :keep], s[:keep], vh[:keep]


def _directions_per_task(n: int, n_tasks: int, common_share: float) -> int:
    if n_tasks == 0:
        return 0
    return min(round((n - int(n * common_share)) / n_tasks), n // n_tasks)


def _outside(svd: Svd, common: Tensor, k: int) -> Svd:
    """Leading k triples of an update's part whose outputs are orthogonal to ``common``."""
    u, s, vh = svd
    rest = svd_of_sum([(s[:, None] * vh, u - common @ (common.mT @ u))], [1.0])
    u, s, vh = _cut(rest, s[:1])
    return u[:, :k], s[:k], vh[:k]


def _leading(stack: Tensor, k: int) -> Tensor:
    """Leading k left singular vectors of ``[M_1 ... M_T]``: (T, p, n) to (p, min(k, p))."""
    # From the Gram matrix, in float64. It squares the condition number, but the directions that are lost hold nothing.
    side_by_side = torch.cat(list(stack), dim=1).double()
    _, vectors = torch.linalg.eigh(side_by_side @ side_by_side.mT)  # ascending
    leading: Tensor = vectors.flip(1)[:, :k].to(stack.dtype)
    return leading
