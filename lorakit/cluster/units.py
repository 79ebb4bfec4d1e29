"""Cluster the MSUs of many adapters and rebuild one update from the centroids: the core of LoRA-LEGO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.base import ClusterMixin
from torch import Tensor

from ..factors import LoraFactors
from ..linalg import pool_msus, split_msus
from ._backends import BACKENDS, Backend, BackendName, Init, Problem, choose_backend
from ._coordinates import Metric
from ._overlaps import Mixture
from ._partition import Partition, clustered_by, problems_of, solved
from ._pool import Align, Clusters, Members, Placed, Pool, empty_pool, in_order, members_of, pool_units
from ._rows import Floats, Ints

__all__ = [
    "BACKENDS",
    "Align",
    "Backend",
    "BackendName",
    "ClusteredUnits",
    "Clusters",
    "Init",
    "Metric",
    "Norm",
    "Reassembled",
    "UnitProblems",
    "chosen_backend",
    "cluster_shares",
    "clustered_units",
    "gauges_kept",
    "problems_of_module",
    "problems_of_units",
    "reassemble",
    "solve_units",
]

_TOL = 1e-4  # MSUKMeans' default

Norm = Literal["inf", "l2"]


_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    # by the extremes: many times faster than a norm of order infinity, or than torch.aminmax
    "inf": lambda rows: torch.maximum(rows.amax(dim=1), -rows.amin(dim=1)),
    "l2": lambda rows: torch.linalg.vector_norm(rows, dim=1),
}


class Reassembled(NamedTuple):
    """What :func:`reassemble` returns."""

    factors: LoraFactors
    labels: np.ndarray  # (R,), the cluster of each MSU in the adapters' order; -1 for adapters of weight 0
    owners: np.ndarray  # (R,), the position of the adapter of each MSU
    inertia: float
    n_iter: int | None
    mixture: Mixture | None = None  # of the units, where their Gram matrices are known


def gauges_kept(align: Align | None, metric: Metric) -> frozenset[str]:
    """Changes of factors that leave a reassembled update as it is.

    'cosine' adds nothing: rescaling a unit to ``(c a, b / c)`` turns it, and it tells a unit from its negative.
    """
    if align == "svd":
        return frozenset({"permutation", "sign", "rescaling", "GL(r)"})
    extra = {"sign"} if metric == "sign_invariant" else set()
    return frozenset({"permutation", *extra} | ({"rescaling"} if align == "balance" else set()))


def chosen_backend(
    name: BackendName, device: str | None, *, clusterer: ClusterMixin | None, init: Init
) -> Backend | None:
    """Return what runs k-means: None with a clusterer.

    Raises
    ------
    ImportError, ValueError
        If the backend cannot run, as :func:`choose_backend`; or if the start of k-means is chosen, and a clusterer that
        takes its place.
    """
    if clusterer is None:
        return choose_backend(name, device)
    if init != "k-means++":
        raise ValueError(
            f"init={init!r} says where k-means starts, and clusterer={clusterer!r} takes the place of k-means; pass "
            "one of them: clusterer=None, or the default init='k-means++'"
        )
    return None


class UnitProblems(NamedTuple):
    """The units of one module and what k-means is to solve for them: R x R numbers, whatever the units' length."""

    pool: Pool
    problems: list[Problem | Partition]  # one for each number of clusters; a partition where nothing is to solve


def problems_of_module(
    updates: Sequence[LoraFactors],
    weights: np.ndarray,
    ks: Sequence[int | None],
    *,
    align: Align | None,
    metric: Metric,
    init: Init,
    n_init: int,
    rng: np.random.RandomState,
) -> UnitProblems:
    """Return what k-means is to solve for one module, at each of ``ks``; the parameters are :func:`reassemble`'s.

    Made first for all modules, it lets :func:`solve_units` take them together; each module's ``found`` then goes to
    :func:`reassemble`.
    """
    members = members_of(updates, weights, align)
    if members is None:
        return UnitProblems(empty_pool(), [Partition(np.empty(0, dtype=np.intp), 0)] * len(ks))
    found, _ = problems_of_units(members, ks, metric=metric, clusterer=None, init=init, n_init=n_init, rng=rng)
    # The distances were needed for the seeds; they would be kept for every module
    lighter = [p._replace(squared=None) if isinstance(p, Problem) else p for p in found.problems]
    return UnitProblems(found.pool, lighter)


def problems_of_units(
    members: Members,
    ks: Sequence[int | None],
    *,
    metric: Metric,
    clusterer: ClusterMixin | None,
    init: Init,
    n_init: int,
    rng: np.random.RandomState,
) -> tuple[UnitProblems, Placed]:
    """Return what is to be solved, which is nothing with a clusterer; and the distinct units."""
    pool, placed = pool_units(members.updates, members.weights, metric)
    units, points, counts, _ = placed
    problems: list[Problem | Partition]
    if clusterer is not None:
        problems = [clustered_by(clusterer, points, counts, k, rng) for k in ks]
    else:
        numbers = [round(2 * members.mean_rank) if k is None else k for k in ks]
        width = points.shape[1] if pool.signed else units.shape[1]
        problems = problems_of(points, counts, numbers, init=init, n_init=n_init, tol=_TOL, width=width, rng=rng)
    return UnitProblems(pool, problems), placed


def solve_units(modules: Sequence[UnitProblems], backend: Backend | None, *, max_iter: int) -> list[list[Clusters]]:
    """Cluster the units of many modules, in one call of the backend; one list a module, in it one for each number."""
    problems = list(chain.from_iterable(module.problems for module in modules))
    partitions = iter(solved(problems, backend, max_iter=max_iter))
    return [[pool.assign(next(partitions)) for _ in problems] for pool, problems in modules]


def cluster_shares(labels: Ints, weights: Floats) -> csr_array:
    """Return each unit's share of each cluster, (k, m); rows sum to 1, and their product with units is the means."""
    members = np.argsort(labels, kind="stable")
    ends = np.concatenate([[0], np.bincount(labels).cumsum()])
    shares = weights / np.bincount(labels, weights)[labels]
    return csr_array((shares[members], members, ends), shape=(len(ends) - 1, len(labels)))


def _centroids(
    rows: Tensor, sizes: Tensor | None, clusters: Clusters, norm: Norm | None, mean_rank: float | None
) -> tuple[Tensor, csr_array]:
    """Weighted means of the distinct units, (m, d), of every cluster, each given its members' mean norm: (k, d).

    ``mean_rank`` is that of output reweighting, and None without it. Also return what the means hold of each distinct
    unit, (k, m).
    """
    shares = cluster_shares(clusters.labels, clusters.distinct.totals)
    signed = shares.copy()
    signed.data *= clusters.signs[signed.indices]
    centroids = _mixed(signed, rows)
    scale = 1.0 if mean_rank is None else (mean_rank / len(centroids)) ** 0.5
    root = scale**0.5  # a unit's two parts share the factor on the update
    if norm is not None and sizes is not None:
        before, after = _mixed(shares, sizes), _NORMS[norm](centroids)
        factor = torch.where(after > 0, root * before / torch.where(after > 0, after, 1), 0)
        centroids *= factor[:, None]
        signed.data *= np.repeat(factor.double().cpu().numpy(), np.diff(signed.indptr))
    elif root != 1:
        centroids *= root
        signed.data *= root
    return centroids, signed


def _mixed(shares: csr_array, rows: Tensor) -> Tensor:
    """Return ``shares @ rows``, (k, m) by (m, d) or (m,)."""
    if rows.device.type != "cpu":
        return torch.from_numpy(shares.toarray()).to(rows) @ rows
    values = rows.numpy()  # m additions of rows, where a dense product has k m
    return torch.from_numpy(shares.astype(values.dtype) @ values)


def reassemble(
    updates: Sequence[LoraFactors],
    weights: np.ndarray,
    ks: Sequence[int | None],
    *,
    norm: Norm | None,
    output_scale: Literal["sqrt"] | float | None,
    align: Align | None,
    metric: Metric,
    clusterer: ClusterMixin | None,
    init: Init,
    n_init: int,
    max_iter: int,
    rng: np.random.RandomState,
    backend: BackendName,
    device: str | None,
    found: Sequence[Clusters] | None = None,
) -> list[Reassembled]:
    """Group, cluster and reconstruct: one module of LoRA-LEGO, at one number of clusters or several.

    Parameters
    ----------
    updates : sequence of LoraFactors
        One an adapter; those of rank 0 or weight 0 take no part.
    weights : ndarray of shape (n_adapters,)
        Non-negative.
    ks : sequence of (int or None)
        Numbers of clusters, each at most the number of distinct MSUs. None: twice the mean rank, or what the clusterer
        finds.
    norm : {'inf', 'l2'} or None
        Parameter reweighting: each centroid gets the mean norm of its members, in this norm.
    output_scale : 'sqrt', float or None
        Output reweighting: a factor on the update; 'sqrt' is ``sqrt(mean rank / k)``.
    align : {'balance', 'svd'} or None
        What to do to each adapter's factors before pooling.
    metric : {'euclidean', 'cosine', 'sign_invariant'}
        Distance between MSUs.
    clusterer : ClusterMixin or None
        What clusters the MSUs; None is k-means.
    init, n_init, max_iter
        As in :class:`MSUKMeans`.
    rng : RandomState
        Seeds the clustering, for each number from the state that it is in.
    backend, device
        What runs k-means, as :func:`chosen_backend` takes them.
    found : sequence of Clusters, default=None
        The clusters for each of ``ks``, where they are known already; see :func:`problems_of_module`.
    """
    owners = np.repeat(np.arange(len(updates)), [update.rank for update in updates])
    nobody = np.full(len(owners), -1)
    members = members_of(updates, weights, align)
    if members is None:
        return [Reassembled(updates[0].scaled(0), nobody, owners, 0.0, 0)] * len(ks)
    if found is None:
        (pool, problems), placed = problems_of_units(
            members, ks, metric=metric, clusterer=clusterer, init=init, n_init=n_init, rng=rng
        )
        units, grams = placed.units, placed.grams
        chosen = chosen_backend(backend, device, clusterer=clusterer, init=init)
        found = [pool.assign(partition) for partition in solved(problems, chosen, max_iter=max_iter)]
    else:
        units, grams = in_order(members.updates, found[0].distinct), None
    sizes = None if norm is None else _NORMS[norm](units)
    mean_rank = members.mean_rank if output_scale == "sqrt" else None
    made = []
    for clusters in found:
        centroids, mix = _centroids(units, sizes, clusters, norm, mean_rank)
        factors = LoraFactors(*split_msus(centroids, updates[0].d_in))
        if output_scale is not None and output_scale != "sqrt":
            factors = factors.scaled(output_scale)
            grams = None if output_scale < 0 else grams  # then a factor of the units has no sign
            mix = mix * abs(output_scale) ** 0.5
        labels = nobody.copy()
        labels[np.array(members.active)[owners]] = clusters.labels[clusters.distinct.inverse]
        mixture = None
        if grams is not None and sum(update.rank for update in updates) == len(clusters.distinct.inverse):
            mixture = Mixture(mix.toarray(), grams, clusters.distinct.inverse, [update.rank for update in updates])
        made.append(Reassembled(factors, labels, owners, clusters.inertia, clusters.n_iter, mixture))
    return made


class ClusteredUnits(NamedTuple):
    """The MSUs that were clustered, as they were averaged."""

    units: Floats  # (n, d), aligned, and with signs by which those of a cluster point the same way
    weights: Floats  # (n,)
    labels: Ints  # (n,)


def clustered_units(
    updates: Sequence[LoraFactors], weights: np.ndarray, labels: Ints, *, align: Align | None, metric: Metric
) -> ClusteredUnits:
    """Return the MSUs that :func:`reassemble` averaged into centroids, those that take part, in the updates' order.

    Parameters
    ----------
    updates, weights, align, metric
        As :func:`reassemble` was given them.
    labels : ndarray of shape (R,)
        As it returned them.
    """
    members = members_of(updates, weights, align)
    kept = labels[labels >= 0]
    if members is None:
        return ClusteredUnits(np.empty((0, updates[0].d_in + updates[0].d_out)), np.empty(0), kept)
    units = pool_msus(members.updates).cpu().numpy().astype(np.float64)
    if metric == "sign_invariant":
        pool, _ = pool_units(members.updates, members.weights, metric)
        units *= (pool.flips * pool.turns(kept[pool.distinct.chosen])[pool.distinct.inverse])[:, None]
    return ClusteredUnits(units, members.weights, kept)
