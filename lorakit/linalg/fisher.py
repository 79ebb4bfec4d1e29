"""Means of factors that are weighted entry by entry."""

from __future__ import annotations

from torch import Tensor, tensordot, where


def entrywise_mean(stack: Tensor, moments: Tensor, weights: Tensor) -> Tensor:
    """Mean of T matrices, each entry weighted by its own moment: ``sum_i w_i F_i X_i / sum_i w_i F_i``.

    Parameters
    ----------
    stack : Tensor of shape (T, p, q)
        The matrices X_i.
    moments : Tensor of shape (T, p, q)
        Importance F_i of each entry; non-negative.
    weights : Tensor of shape (T,)
        Positive weights of the matrices; they sum to 1.

    Returns
    -------
    Tensor of shape (p, q)
        Where the moments of an entry are all zero, the entry is the mean weighted by ``weights`` alone.
    """
    shares = weights[:, None, None] * moments
    total = shares.sum(dim=0)
    known = total > 0
    weighted = (shares * stack).sum(dim=0) / where(known, total, 1)
    return where(known, weighted, tensordot(weights, stack, dims=1))
