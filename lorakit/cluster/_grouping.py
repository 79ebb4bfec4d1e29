"""Put points into clusters: by k-means, for many pools at once, or by any clusterer of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
from sklearn.base import ClusterMixin, clone
from sklearn.utils.validation import has_fit_parameter

from ._backends import Engine, Problem, solve
from ._partition import Partition, number_clusters, pose_each, settle
from ._rows import Floats, Ints, isometric_coordinates

_TOL = 1e-4  # MSUKMeans' default


class Posed(NamedTuple):
    """One pool, ready to be clustered: of R x R numbers, so that those of a whole model fit in memory."""

    problem: Problem | Partition  # a partition where nothing is left for k-means to do
    order: Ints  # (n,), the canonical order of the points that the problem has

    def lighter(self) -> Posed:
        """Return it without what was needed to pose it only, to be kept beside many others."""
        problem = self.problem
        return self._replace(problem=problem._replace(squared=None)) if isinstance(problem, Problem) else self


def pose_points(
    points: Floats,
    weights: Floats,
    order: Ints,
    ks: Sequence[int | None],
    clusterer: ClusterMixin | None,
    *,
    n_init: int,
    width: int,
    rng: np.random.RandomState,
) -> list[Posed]:
    """Prepare points for k-means with each number of clusters, or cluster them at once with another clusterer.

    Parameters
    ----------
    points : ndarray of shape (n, p)
        Distinct points.
    weights : ndarray of shape (n,)
        Positive weights, of mean 1 over what the points stand for.
    order : ndarray of shape (n,)
        A canonical order of the points.
    ks : sequence of (int or None)
        Numbers of clusters, at least 1; None leaves it to the clusterer.
    clusterer : ClusterMixin or None
        Cloned, not changed. None is k-means, which needs numbers.
    n_init : int
        Starts of k-means.
    width : int
        Number of features that k-means' tolerance is relative to.
    rng : RandomState
        Source of all randomness, for each number from the state that it is in.
    """
    points, weights = points[order], weights[order]
    problems: Sequence[Problem | Partition]
    if clusterer is not None:
        problems = [_fit(clusterer, points, weights, k, deepcopy(rng)) for k in ks]
    else:
        numbers = [k for k in ks if k is not None]
        assert len(numbers) == len(ks)
        problems = pose_each(points, weights, numbers, n_init=n_init, tol=_TOL, width=width, rng=rng)
    return [Posed(problem, order) for problem in problems]


def solve_posed(posed: Sequence[Posed], engine: Engine | None, *, max_iter: int) -> list[Partition]:
    """Run k-means on pools, all of them in one call, and return their partitions in the points' own order.

    Where nothing is left for k-means to do, ``engine`` may be None.
    """
    problems = [pool.problem for pool in posed if isinstance(pool.problem, Problem)]
    runs = iter(solve(problems, engine, max_iter=max_iter) if engine else ())
    found = []
    for problem, order in posed:
        labels, n_iter = settle(problem, next(runs)) if isinstance(problem, Problem) else problem
        own = np.empty(len(order), dtype=np.intp)
        own[order] = labels
        found.append(Partition(own, n_iter))
    return found


def _fit(
    clusterer: ClusterMixin, points: Floats, weights: Floats, k: int | None, rng: np.random.RandomState
) -> Partition:
    model = clone(clusterer)
    params = model.get_params(deep=False)
    wanted = params.get("n_clusters") if k is None or "n_clusters" not in params else k
    if len(points) == 1 or (isinstance(wanted, (int, np.integer)) and wanted >= len(points)):
        return Partition(np.arange(len(points)), None)
    if "n_clusters" in params:
        model.set_params(n_clusters=wanted)
    if params.get("random_state", 0) is None:
        model.set_params(random_state=rng.randint(np.iinfo(np.int32).max))
    weighted = {"sample_weight": weights} if has_fit_parameter(model, "sample_weight") else {}
    # n centred points span n - 1 dimensions; square arrays are taken for distances by some clusterers
    given = isometric_coordinates(points)[:, : len(points) - 1]
    labels = np.array(model.fit_predict(given, **weighted), dtype=np.intp)
    noise = labels < 0  # outliers are not alike: each stays a unit of its own
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return Partition(number_clusters(labels), getattr(model, "n_iter_", None))
