"""Partition distinct, ordered rows: seed, run every start, keep the best, number the clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._backends import Engine, Problem, Run, solve
from ._pairwise import squared_distances
from ._rows import Floats, Ints, isometric_coordinates, squared_residuals
from ._seeding import plusplus

_TIE = 1e-10  # relative difference below which two inertias differ by round-off only


class Partition(NamedTuple):
    """Clusters of rows."""

    labels: Ints  # (n,), clusters numbered by their first rows, none of them empty
    n_iter: int | None  # of the start that was kept; None from a clusterer that does not count them


def partition(
    rows: Floats,
    weights: Floats,
    n_clusters: int,
    *,
    n_init: int,
    max_iter: int,
    tol: float,
    rng: np.random.RandomState,
    engine: Engine,
) -> Partition:
    """Partition distinct rows into exactly ``min(n_clusters, n)`` clusters that are not empty.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Distinct rows in a canonical order.
    weights : ndarray of shape (n,)
        Positive weights.
    n_clusters, n_init, max_iter, tol
        As in :class:`MSUKMeans`.
    rng : RandomState
        Source of the seedings.
    engine : Engine
        What runs Lloyd's algorithm.
    """
    problem = pose(rows, weights, n_clusters, n_init=n_init, tol=tol, width=rows.shape[1], rng=rng)
    if isinstance(problem, Partition):
        return problem
    return settle(problem, *solve([problem], engine, max_iter=max_iter))


def pose(
    rows: Floats, weights: Floats, n_clusters: int, *, n_init: int, tol: float, width: int, rng: np.random.RandomState
) -> Problem | Partition:
    """Return what Lloyd's algorithm is to solve: :func:`pose_each` for one number of clusters."""
    return pose_each(rows, weights, [n_clusters], n_init=n_init, tol=tol, width=width, rng=rng)[0]


def pose_each(
    rows: Floats, weights: Floats, ks: Sequence[int], *, n_init: int, tol: float, width: int, rng: np.random.RandomState
) -> list[Problem | Partition]:
    """Return what Lloyd's algorithm is to solve for each number of clusters, or the partition if nothing is to solve.

    The parameters are those of :func:`partition`, ``rng`` for each number from the state that it is in; ``width`` is
    the number of features that the tolerance is relative to.
    """
    n = len(rows)
    # Not left to k-means++, to which rows that differ by round-off are the same
    posed: dict[int, Problem | Partition] = {k: Partition(np.arange(n), 1) for k in ks if k >= n}
    fewer = [k for k in dict.fromkeys(ks) if k < n]
    if fewer:
        # As many coordinates as rows are few enough
        points = isometric_coordinates(rows) if n < rows.shape[1] else rows - rows.mean(axis=0)
        squared = squared_distances(points)
        # Seeded here and not by the backend: backends that start alike agree
        for k, seeds in zip(fewer, plusplus(squared, weights, fewer, n_init, rng), strict=True):
            # Fewer coordinates hold the same variance: each holds more, and the tolerance is relative to their mean
            posed[k] = Problem(points, weights, seeds, tol * points.shape[1] / width, squared)
    return [posed[k] for k in ks]


def settle(problem: Problem, runs: Sequence[Run]) -> Partition:
    """Keep the start of lowest inertia, the first of those that differ by round-off, and see to empty clusters."""
    best = runs[0]
    for run in runs[1:]:
        if run.inertia < best.inertia * (1 - _TIE):
            best = run
    labels = fill_clusters(problem.points, problem.weights, best.labels, problem.seeds.shape[1])
    return Partition(number_clusters(labels), best.n_iter)


def fill_clusters(points: Floats, weights: Floats, labels: Ints, n_clusters: int) -> Ints:
    """Move the points that are farthest from their means into the empty clusters, one each.

    Lloyd's algorithm can leave a cluster empty, mostly where points differ by no more than round-off.
    """
    labels = labels.copy()
    for empty in np.flatnonzero(np.bincount(labels, minlength=n_clusters) == 0):
        alone = np.bincount(labels)[labels] == 1
        labels[np.where(alone, -1, squared_residuals(points, weights, labels)).argmax()] = empty
    return labels


def number_clusters(labels: Ints) -> Ints:
    """Number the clusters by their first rows; shape (n,)."""
    _, first, compact = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[compact]
