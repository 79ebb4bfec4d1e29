"""Lloyd's algorithm on many points of few coordinates, in NumPy: some points at a time, so that memory stays small."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._lloyd_torch import TIE
from ._rows import Floats, Ints, weighted_means

_BLOCK = 2**18  # distances from points to centres that are held at a time


class Solved(NamedTuple):
    """What :func:`lloyd` gives for one start."""

    labels: Ints  # (n,), index of the nearest centre
    inertia: float  # weighted sum of the squared distances to the centres
    n_iter: int


def lloyd(points: Floats, weights: Floats, centers: Floats, *, max_iter: int, tol: float) -> Solved:
    """Run Lloyd's algorithm from given centres, by the rules of :func:`~lorakit.cluster._lloyd_torch.lloyd`.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Points that lie about the origin.
    weights : ndarray of shape (n,)
        Positive weights.
    centers : ndarray of shape (k, d)
        Centres to start from.
    max_iter : int
        Most iterations.
    tol : float
        Squared shift of all centres at which to end.

    Returns
    -------
    Solved
    """
    norms = np.einsum("ij,ij->i", points, points)
    before = np.full(len(points), -1)
    for n_iter in range(1, max_iter + 1):
        labels = _nearest(points, norms, centers)
        if (labels == before).all():
            break
        moved = centers.copy()
        means = weighted_means(points, weights, labels)  # up to the last cluster that has a point
        moved[: len(means)] = np.where(np.isnan(means), centers[: len(means)], means)  # an empty one stays where it is
        shift = np.square(moved - centers).sum()
        centers, before = moved, labels
        if shift <= tol or n_iter == max_iter:
            labels = _nearest(points, norms, centers)
            break
    inertia = float(weights @ np.square(points - centers[labels]).sum(axis=1))
    return Solved(labels, inertia, n_iter)


def _nearest(points: Floats, norms: Floats, centers: Floats) -> Ints:
    """Nearest centre of each point, the first of those that are equally near: (n,)."""
    of_centers = np.einsum("ij,ij->i", centers, centers)
    labels = np.empty(len(points), dtype=np.intp)
    size = max(1, _BLOCK // len(centers))
    for first in range(0, len(points), size):
        block = slice(first, first + size)
        squared = np.add.outer(norms[block], of_centers)
        squared -= 2 * (points[block] @ centers.T)
        least = np.maximum(squared.min(axis=1), 0)
        labels[block] = (squared <= (least + TIE * (least + norms[block]))[:, None]).argmax(axis=1)
    return labels
