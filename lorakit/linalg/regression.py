"""Least squares on the outputs of several updates, from second moments of their inputs (RegMean)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import Update

# G as (d_in, d_in), or as (diagonal, factor), of shapes (d_in,) and (p, d_in), for diag(diagonal) + factor^T factor
Moment = Tensor | tuple[Tensor, Tensor]


def regression_mean(
    updates: Sequence[Update],
    weights: Sequence[float],
    moments: Sequence[Moment],
    *,
    offdiagonal: float = 1.0,
    ridge: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Factors of the update whose outputs are nearest to those of each update on its own inputs.

    RegMean (Jin et al., arXiv 2212.09849) on factors. Minimises :math:`\sum_i w_i (\|X_i (W - W_i)^T\|^2 / N_i +
    \lambda \|W - W_i\|^2)`. The solution is :math:`\sum_i w_i W_i (G_i + \lambda I) (\sum_j w_j G_j + \lambda I)^{-1}`,
    in which only A is new: :math:`A' = [w_i A_i (G_i + \lambda I) (\dots)^{-1}]_i` and :math:`B' = [B_i]_i`.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    weights : sequence of T floats
        Non-negative; they sum to 1.
    moments : sequence of T Tensor or (Tensor, Tensor)
        Second moments ``G_i = X_i^T X_i / N_i`` of each update's inputs, whole or as a diagonal and a thin factor.
        If all are thin, no d_in x d_in matrix is formed.
    offdiagonal : float in [0, 1], default=1
        Factor on the entries of G off its diagonal.
    ridge : float, default=0
        lambda, as a multiple of the mean of the diagonal of the summed G. On input directions that no adapter has
        seen, the result is the weighted mean of the updates.

    Returns
    -------
    A : Tensor of shape (R, d_in)
    B : Tensor of shape (d_out, R)
        Both in float64. If all moments are zero, they are factors of the weighted mean.

    Raises
    ------
    ValueError
        If the sum of the moments is singular.
    """
    pairs = [(a.double(), b.double()) for a, b in updates]
    shrunk = [shrunk_moment(moment, offdiagonal) for moment in moments]
    level = sum(w * trace(moment) for w, moment in zip(weights, shrunk, strict=True)) / pairs[0][0].shape[1]
    load = ridge * level if level > 0 else 1.0
    rows = torch.cat(
        [w * (times(a, moment) + load * a) for (a, _), w, moment in zip(pairs, weights, shrunk, strict=True)]
    )
    return divided(rows, shrunk, weights, load), torch.cat([b for _, b in pairs], dim=1)


def shrunk_moment(moment: Moment, offdiagonal: float) -> Moment:
    """Return a moment with its entries off the diagonal times a factor."""
    if isinstance(moment, Tensor):
        return offdiagonal * moment + (1 - offdiagonal) * torch.diag(moment.diagonal())
    diagonal, factor = moment
    # the diagonal of factor^T factor is kept: what the smaller factor takes from it is added to `diagonal`
    return diagonal + (1 - offdiagonal) * (factor * factor).sum(dim=0), offdiagonal**0.5 * factor


def trace(moment: Moment) -> float:
    """Return the trace of a moment."""
    if isinstance(moment, Tensor):
        return float(moment.diagonal().sum())
    diagonal, factor = moment
    return float(diagonal.sum() + (factor * factor).sum())


def times(rows: Tensor, moment: Moment) -> Tensor:
    """Return ``rows @ G``."""
    if isinstance(moment, Tensor):
        return rows @ moment
    diagonal, factor = moment
    return rows * diagonal + (rows @ factor.mT) @ factor


def divided(rows: Tensor, moments: Sequence[Moment], weights: Sequence[float], load: float) -> Tensor:
    """Return ``rows @ (sum_i w_i G_i + load I)^-1``."""
    width = rows.shape[1]
    thin = [moment for moment in moments if not isinstance(moment, Tensor)]
    if len(thin) == len(moments):
        diagonal = sum((w * d for w, (d, _) in zip(weights, thin, strict=True)), start=rows.new_zeros(width)) + load
        factor = torch.cat([w**0.5 * f for w, (_, f) in zip(weights, thin, strict=True)])
        # Woodbury's identity loses digits where some entries of the diagonal are far smaller than others
        if len(factor) == 0 or (len(factor) < width and diagonal.min() > 1e-8 * diagonal.max()):
            return _divided_thin(rows, diagonal, factor)
    total = load * torch.eye(width, dtype=rows.dtype, device=rows.device)
    for w, moment in zip(weights, moments, strict=True):
        total += w * (moment if isinstance(moment, Tensor) else torch.diag(moment[0]) + moment[1].mT @ moment[1])
    return _divided_dense(rows, total)


def _divided_thin(rows: Tensor, diagonal: Tensor, factor: Tensor) -> Tensor:
    """Return ``rows @ (D + F^T F)^-1`` by the Woodbury identity: only a (p, p) system is solved."""
    if not (diagonal > 0).all():
        raise _singular()
    quotient = rows / diagonal
    small = torch.eye(len(factor), dtype=rows.dtype, device=rows.device) + (factor / diagonal) @ factor.mT
    correction = torch.cholesky_solve(factor @ quotient.mT, torch.linalg.cholesky(small)).mT
    return quotient - (correction @ factor) / diagonal


def _divided_dense(rows: Tensor, total: Tensor) -> Tensor:
    root = total.diagonal().clamp_min(0).sqrt()
    if not (root > 0).all():
        raise _singular()
    # scaled to a diagonal of ones first, so that inputs of very different sizes do not look like a singular matrix
    chol, info = torch.linalg.cholesky_ex(total / root[:, None] / root)
    pivots = chol.diagonal()
    if info or pivots.min() ** 2 < len(total) * torch.finfo(total.dtype).eps:
        raise _singular()
    return torch.cholesky_solve((rows / root).mT, chol).mT / root


def _singular() -> ValueError:
    return ValueError(
        "the inputs do not span the module's input space, so that their second moments cannot be inverted; "
        "raise ridge (such as 1e-6), lower offdiagonal, or collect more inputs"
    )
