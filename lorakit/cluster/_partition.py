"""From distinct points in a canonical order to clusters: by k-means, of many pools at once, or by any clusterer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import ClusterMixin, clone
from sklearn.utils.validation import has_fit_parameter

from ._backends import Backend, Init, Problem, Run, solve
from ._rows import HELD, Floats, Ints, distances_from, isometric_coordinates, squared_distances, squared_residuals
from ._ward import ward

_TIE = 1e-10  # relative difference below which two inertias differ by round-off only
# Candidates whose potentials differ by less are tied. Exact ties are common: when two points are left to each other,
# taking either as a centre leaves the same potential. Without a tolerance round-off would choose between them, and
# adapters that differ only in how their updates are factored could be merged into different adapters.
_CANDIDATE_TIE = 1e-6


class Partition(NamedTuple):
    """Clusters of points."""

    labels: Ints  # (n,), clusters numbered by their first points, none of them empty
    n_iter: int | None  # of the start that was kept; None from a clusterer that does not count them


def problems_of(
    points: Floats,
    weights: Floats,
    ks: Sequence[int],
    *,
    init: Init,
    n_init: int,
    tol: float,
    width: int,
    rng: np.random.RandomState,
) -> list[Problem | Partition]:
    """Return what Lloyd's algorithm is to solve for each number of clusters, or the partition if nothing is to solve.

    Parameters
    ----------
    points : ndarray of shape (n, d)
        Distinct points in a canonical order.
    weights : ndarray of shape (n,)
        Positive weights.
    ks : sequence of int
        Numbers of clusters, at least 1.
    init, n_init, tol
        As in :class:`MSUKMeans`.
    width : int
        Number of features that the tolerance is relative to.
    rng : RandomState
        Source of the seeds of 'k-means++', for each number from the state that it is in.
    """
    n = len(points)
    # Not left to k-means++, to which points that differ by round-off are the same
    found: dict[int, Problem | Partition] = {k: Partition(np.arange(n), 1) for k in ks if k >= n}
    fewer = [k for k in dict.fromkeys(ks) if k < n]
    if fewer:
        # As many coordinates as points are few enough
        points = isometric_coordinates(points) if n < points.shape[1] else points - points.mean(axis=0)
        held = init == "ward" or n <= max(HELD, 4 * points.shape[1])  # Ward's clustering changes them as it goes
        squared = squared_distances(points) if held else None
        # Fewer coordinates hold the same variance: each holds more, and the tolerance is relative to their mean
        tol = tol * points.shape[1] / width
        # Starts are chosen here and not by the backend: backends that start alike agree
        if init == "ward":
            assert squared is not None
            for k, labels in zip(fewer, ward(squared, weights, fewer), strict=True):
                none = np.empty((0, k), dtype=np.intp)
                found[k] = Problem(points, weights, none, tol, squared, number_clusters(labels))
        else:
            if squared is None:
                distances: Callable[[Ints], Floats] = partial(
                    distances_from, points, np.einsum("ij,ij->i", points, points)
                )
            else:
                distances = partial(np.take, squared, axis=0)
            for k, seeds in zip(fewer, plusplus(distances, weights, fewer, n_init, rng), strict=True):
                found[k] = Problem(points, weights, seeds, tol, squared)
    return [found[k] for k in ks]


def plusplus(
    distances: Callable[[Ints], Floats], weights: Floats, ks: Sequence[int], n_init: int, rng: np.random.RandomState
) -> list[Ints]:
    """Choose starting centres by greedy k-means++ (Arthur and Vassilvitskii, 2007; several candidates a step).

    As :func:`sklearn.cluster.kmeans_plusplus`, but from distances that may be computed once, for all starts of all
    numbers of centres side by side, and with ties between candidates going to the one that was drawn first.

    Parameters
    ----------
    distances : callable
        Takes positions of points, an array of any shape, and returns the squared distances from these to all n points,
        of that shape and n.
    weights : ndarray of shape (n,)
        Positive weights.
    ks : sequence of int
        Numbers of centres, each below n. What is chosen for one does not depend on the others.
    n_init : int
        Number of starts.
    rng : RandomState
        Source of the draws, for each number from the state that it is in. A start draws the same numbers however many
        follow it.

    Returns
    -------
    list of ndarray of shape (n_init, k)
        For each of ``ks``, indices of the points to start from.
    """
    # Largest first: the starts that go on are then the first ones
    places = np.argsort(np.argsort(np.negative(ks), kind="stable"))
    sizes = np.repeat(np.sort(ks)[::-1], n_init)
    most = int(sizes[0])
    n_candidates = [2 + int(np.log(k)) for k in ks]  # a step; scikit-learn's number
    first, shares = np.empty(len(sizes)), np.empty((most - 1, len(sizes), max(n_candidates)))
    stream = rng.random_sample(n_init * (1 + shares.shape[0] * shares.shape[2]))
    for place, k, m in zip(places, ks, n_candidates, strict=True):
        own = slice(place * n_init, (place + 1) * n_init)
        drawn = stream[: n_init * (1 + (k - 1) * m)].reshape(n_init, -1)
        first[own] = drawn[:, 0]
        steps = drawn[:, 1:].reshape(n_init, k - 1, m).swapaxes(0, 1)
        shares[: k - 1, own, :m], shares[: k - 1, own, m:] = steps, steps[:, :, :1]  # drawn again, one never wins
    chosen = np.empty((len(sizes), most), dtype=np.intp)
    chosen[:, 0] = _at_shares(weights.cumsum()[None], first[None])[0]
    closest = distances(chosen[:, 0])  # (s, n)
    for step in range(1, most):
        starts = np.arange(np.count_nonzero(sizes > step))
        closest = closest[: len(starts)]
        sums = torch.from_numpy(weights * closest).cumsum(1).numpy()  # in a quarter of NumPy's time
        candidates = _at_shares(sums, shares[step - 1, : len(starts)])
        after = distances(candidates)  # (s, n_candidates, n)
        np.minimum(closest[:, None], after, out=after)
        potentials = (after.reshape(-1, len(weights)) @ weights).reshape(candidates.shape)  # one product for all
        best = np.argmax(potentials <= potentials.min(axis=1, keepdims=True) * (1 + _CANDIDATE_TIE), axis=1)
        chosen[starts, step] = candidates[starts, best]
        closest = after[starts, best]
    return [chosen[place * n_init : (place + 1) * n_init, :k] for place, k in zip(places, ks, strict=True)]


def _at_shares(cumulative: Floats, shares: Floats) -> Ints:
    """Positions where cumulative sums, (s, n), reach shares below 1 of their totals, (s, m): (s, m)."""
    targets = shares * cumulative[:, -1:]
    reached: Ints = (cumulative[:, None] >= targets[:, :, None]).argmax(axis=2)
    return reached


def solved(problems: Sequence[Problem | Partition], backend: Backend | None, *, max_iter: int) -> list[Partition]:
    """Run k-means on problems of one pool or many, all in one call of the backend, and return their partitions.

    ``backend`` may be None where nothing is left to solve.
    """
    unsolved = [problem for problem in problems if isinstance(problem, Problem)]
    runs = iter(solve(unsolved, backend, max_iter=max_iter) if backend else ())
    return [best_of(p, next(runs)) if isinstance(p, Problem) else p for p in problems]


def best_of(problem: Problem, runs: Sequence[Run]) -> Partition:
    """Keep the start of lowest inertia, the first of those that differ by round-off, and fill empty clusters."""
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
    """Number the clusters by their first points; shape (n,)."""
    _, first, compact = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[compact]


def clustered_by(
    clusterer: ClusterMixin, points: Floats, weights: Floats, k: int | None, rng: np.random.RandomState
) -> Partition:
    """Cluster distinct points by a clusterer of scikit-learn's kind.

    Parameters
    ----------
    clusterer : ClusterMixin
        Cloned, not changed.
    points : ndarray of shape (n, d)
        Distinct points in a canonical order.
    weights : ndarray of shape (n,)
        Passed on to clusterers that take ``sample_weight``.
    k : int or None
        Sets ``n_clusters``, if the clusterer has it; None leaves the number to the clusterer.
    rng : RandomState
        Sets a ``random_state`` that is None; it stays in the state that it is in.
    """
    model = clone(clusterer)
    params = model.get_params(deep=False)
    wanted = params.get("n_clusters") if k is None or "n_clusters" not in params else k
    if len(points) == 1 or (isinstance(wanted, (int, np.integer)) and wanted >= len(points)):
        return Partition(np.arange(len(points)), None)
    if "n_clusters" in params:
        model.set_params(n_clusters=wanted)
    if params.get("random_state", 0) is None:
        model.set_params(random_state=deepcopy(rng).randint(np.iinfo(np.int32).max))
    weighted = {"sample_weight": weights} if has_fit_parameter(model, "sample_weight") else {}
    # n centred points span n - 1 dimensions; square arrays are taken for distances by some clusterers
    given = isometric_coordinates(points)[:, : len(points) - 1]
    labels = np.array(model.fit_predict(given, **weighted), dtype=np.intp)
    noise = labels < 0  # outliers are not alike: each stays a unit of its own
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return Partition(number_clusters(labels), getattr(model, "n_iter_", None))
