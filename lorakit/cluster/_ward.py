"""Ward's hierarchical clustering of weighted points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._rows import Floats, Ints

# Merges whose costs differ by less are tied, and the first pair of points wins: without a tolerance round-off would
# choose, where points are equally far from one another.
_TIE = 1e-6


def ward(squared: Floats, weights: Floats, ks: Sequence[int]) -> list[Ints]:
    r"""Cut Ward's hierarchy into each number of clusters.

    It begins with one cluster a point and joins two clusters at a time, those that add least to the inertia, the
    weighted sum of the squared distances of the points to the means of their clusters [1]_. Joining clusters of total
    weights :math:`v` and :math:`w`, whose means are :math:`\delta` apart, adds :math:`\delta^2 v w / (v + w)`. Nothing
    is drawn at random. A point of weight two is the same as a point listed twice, which
    :class:`sklearn.cluster.AgglomerativeClustering` cannot be told.

    Parameters
    ----------
    squared : ndarray of shape (n, n)
        Squared distances of the points, which are in a canonical order.
    weights : ndarray of shape (n,)
        Positive weights.
    ks : sequence of int
        Numbers of clusters, each at least 1 and below n.

    Returns
    -------
    list of ndarray of shape (n,)
        For each of ``ks``, the cluster of each point, named by the cluster's first point.

    References
    ----------
    .. [1] J. H. Ward, "Hierarchical Grouping to Optimize an Objective Function", Journal of the American Statistical
       Association 58, 1963.
    """
    totals, labels = weights.copy(), np.arange(len(weights))
    costs = squared * (np.multiply.outer(totals, totals) / np.add.outer(totals, totals))  # (n, n), of joining two
    np.fill_diagonal(costs, np.inf)
    least = costs.min(axis=1)
    found = {}
    for n_clusters in range(len(weights) - 1, min(ks) - 1, -1):
        limit = least.min() * (1 + _TIE)
        i = int(np.argmax(least <= limit))
        j = int(np.argmax(costs[i] <= limit))  # after i: the costs are symmetric
        stale = (costs[i] <= least) | (costs[j] <= least)  # what was nearest to them; others come no nearer by a join
        # The formula of Lance and Williams: no mean is formed
        joined = (totals[i] + totals) * costs[i] + (totals[j] + totals) * costs[j] - totals * costs[i, j]
        joined /= totals[i] + totals[j] + totals
        joined[[i, j]] = np.inf
        costs[i], costs[:, i] = joined, joined
        costs[j], costs[:, j] = np.inf, np.inf
        totals[i] += totals[j]
        labels[labels == j] = i
        stale[[i, j]] = True
        least[stale] = costs[stale].min(axis=1)
        if n_clusters in ks:
            found[n_clusters] = labels.copy()
    return [found[k] for k in ks]
