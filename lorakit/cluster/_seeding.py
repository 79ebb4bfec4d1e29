"""Greedy k-means++ on a matrix of squared distances, insensitive to round-off."""

from __future__ import annotations

import numpy as np

from ._rows import Floats, Ints

# Candidates whose potentials differ by less are tied. Exact ties are common: when two points are left to each other,
# taking either as a centre leaves the same potential. Without a tolerance round-off would choose between them, and
# adapters that differ only in how their updates are factored could be merged into different adapters.
_TIE = 1e-6


def plusplus(squared: Floats, weights: Floats, n_clusters: int, n_init: int, rng: np.random.RandomState) -> Ints:
    """Choose starting centres by greedy k-means++ (Arthur and Vassilvitskii, 2007; several candidates a step).

    As :func:`sklearn.cluster.kmeans_plusplus`, but from distances that are computed once, for all starts side by side,
    and with ties between candidates going to the one that was drawn first.

    Parameters
    ----------
    squared : ndarray of shape (n, n)
        Squared distances of the points.
    weights : ndarray of shape (n,)
        Positive weights.
    n_clusters : int
        Number of centres, below n.
    n_init : int
        Number of starts.
    rng : RandomState
        Source of the draws. A start draws the same numbers however many follow it.

    Returns
    -------
    ndarray of shape (n_init, n_clusters)
        Indices of the points to start from.
    """
    n_candidates = 2 + int(np.log(n_clusters))  # scikit-learn's number
    draws = rng.random_sample((n_init, 1 + (n_clusters - 1) * n_candidates))
    starts = np.arange(n_init)
    chosen = np.empty((n_init, n_clusters), dtype=np.intp)
    chosen[:, 0] = _at_shares(np.cumsum(weights)[None], draws[:, :1].T)[0]
    closest = squared[chosen[:, 0]]  # (n_init, n)
    for step in range(1, n_clusters):
        first = 1 + (step - 1) * n_candidates
        candidates = _at_shares(np.cumsum(weights * closest, axis=1), draws[:, first : first + n_candidates])
        after = np.minimum(closest[:, None], squared[candidates])  # (n_init, n_candidates, n)
        potentials = after @ weights
        best = np.argmax(potentials <= potentials.min(axis=1, keepdims=True) * (1 + _TIE), axis=1)
        chosen[:, step] = candidates[starts, best]
        closest = after[starts, best]
    return chosen


def _at_shares(cumulative: Floats, shares: Floats) -> Ints:
    """Positions where cumulative sums, (s, n), reach shares of their totals, (s, m): (s, m)."""
    targets = shares * cumulative[:, -1:]
    # round-off can place a draw past the last sum
    return (cumulative[:, None] < targets[:, :, None]).sum(axis=2).clip(max=cumulative.shape[1] - 1)
