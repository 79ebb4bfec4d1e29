"""Lloyd's algorithm on the distances between points, in NumPy: all starts at once, and no centre is formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_array

from ._lloyd_torch import TIE
from ._rows import Floats, Ints

_ADD = 6  # what adding one row to another takes, in multiply-adds of a product of matrices


class Solved(NamedTuple):
    """What :func:`lloyd` gives for s starts."""

    labels: Ints  # (s, n), index of the nearest centre
    inertia: Floats  # (s,), weighted sum of the squared distances to the centres
    n_iter: Ints  # (s,)


def lloyd(points: Floats, squared: Floats, weights: Floats, distances: Floats, *, max_iter: int, tol: float) -> Solved:
    """Run Lloyd's algorithm from s starts, each until its own end.

    By the rules of :func:`~lorakit.cluster._lloyd_torch.lloyd`, but without centres. A point's squared distance to the
    mean of some points is the mean of its squared distances to them, less half the mean of theirs to one another. So an
    iteration adds up n rows of a matrix of distances, n x n additions, where products with k centres take k n d. The
    sums of a start are its own, whatever other starts there are.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Points that lie about the origin.
    squared : ndarray of shape (n, n)
        Their :func:`~lorakit.cluster._rows.squared_distances`.
    weights : ndarray of shape (n,)
        Positive weights.
    distances : ndarray of shape (s, k, n)
        Squared, of the points to the centres that each start begins with.
    max_iter : int
        Most iterations.
    tol : float
        Squared shift of all centres at which a start ends.

    Returns
    -------
    Solved
    """
    (s, k, n), d = distances.shape, points.shape[1]
    norms = np.einsum("ij,ij->i", points, points)
    found = Solved(np.empty((s, n), np.intp), np.empty(s), np.empty(s, np.intp))

    def means(shares: csc_array) -> Floats:
        """Return the means of rows of the distances, (s k, n); ``shares`` are of each row in each mean."""
        if _ADD * n <= d * (_ADD + k):
            return shares @ squared
        return (shares @ norms)[:, None] + norms - 2 * ((shares @ points) @ points.T)

    def end(starts: Ints, labels: Ints, least: Floats, n_iter: int) -> None:
        found.labels[starts], found.n_iter[starts] = labels, n_iter
        found.inertia[starts] = (weights * least).sum(axis=1)

    running, before = np.arange(s), np.full((s, n), -1)
    for iteration in range(1, max_iter + 1):
        labels, least = _nearest(distances, norms)
        on = (labels != before).any(axis=1)
        end(running[~on], labels[~on], least[~on], iteration)
        running, distances, labels, least = running[on], distances[on], labels[on], least[on]
        if not len(running):
            break
        distances, shift = _moved(distances, labels, least, weights, means)
        on = shift > tol if iteration < max_iter else np.zeros(len(shift), dtype=bool)
        if not on.all():
            end(running[~on], *_nearest(distances[~on], norms), iteration)
            running, distances, labels = running[on], distances[on], labels[on]
        before = labels
    return found


def _nearest(distances: Floats, norms: Floats) -> tuple[Ints, Floats]:
    """Nearest centre of each point, the first of those that are equally near, and the distance: both (s, n)."""
    k = distances.shape[1]
    least = distances.min(axis=1)
    near = distances <= (least + TIE * (least + norms))[:, None]
    # The largest of products, where argmax would go through the centres of one point after another
    first = (near * np.arange(k, 0, -1, dtype=np.min_scalar_type(k))[:, None]).max(axis=1)
    labels: Ints = k - first.astype(np.intp)
    return labels, least


def _moved(
    distances: Floats, labels: Ints, least: Floats, weights: Floats, means: Callable[[csc_array], Floats]
) -> tuple[Floats, Floats]:
    """Return the distances to the centres, once these are the means of their points; and the squared shift of all."""
    s, k, n = distances.shape
    rows = labels + k * np.arange(s)[:, None]  # (s, n), clusters of all starts
    totals = np.bincount(rows.ravel(), np.tile(weights, s), s * k)
    shares = weights / totals[rows]
    # One entry a start in each column, the next column n numbers on
    columns = np.arange(0, s * n + 1, s)
    moved = means(csc_array((shares.T.ravel(), rows.T.ravel(), columns), shape=(s * k, n)))

    def of_clusters(values: Floats) -> Floats:
        """Mean over the points of each cluster of (s, n) numbers."""
        return np.bincount(rows.ravel(), (shares * values).ravel(), s * k).astype(np.float64, copy=False)

    spread = of_clusters(moved[rows, np.arange(n)]) / 2  # mean squared distance of a cluster's points to their mean
    moved -= spread[:, None]
    empty = totals == 0
    if empty.any():
        moved[empty] = distances.reshape(s * k, n)[empty]
    # Points are farther from any other centre than from their mean, by its squared distance to that
    shift = (of_clusters(least) - spread).reshape(s, k).sum(axis=1)
    return moved.reshape(s, k, n), shift
