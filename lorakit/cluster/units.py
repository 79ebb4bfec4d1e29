"""Cluster the MSUs of many adapters and rebuild one update from the centroids: the core of LoRA-LEGO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn.base import ClusterMixin
from torch import Tensor

from ..factors import LoraFactors
from ..linalg import align_svd, balance_msus, pool_msus, split_msus
from ._backends import BACKENDS, Backend, Engine, choose_engine
from ._coordinates import Metric, aligned_signs, canonical_signs, coordinates
from ._grouping import Posed, pose_points, solve_posed
from ._partition import Partition
from ._rows import Floats, Ints, argsort_rows, distinct_rows, squared_residuals

__all__ = [
    "BACKENDS",
    "Align",
    "Backend",
    "Clusters",
    "Engine",
    "FoundUnits",
    "Metric",
    "Norm",
    "PosedUnits",
    "Reassembled",
    "choose_engine",
    "cluster_units",
    "gauges_kept",
    "pose_module",
    "reassemble",
    "solve_modules",
]

Norm = Literal["inf", "l2"]
Align = Literal["balance", "svd"]

_ALIGN: dict[str | None, Callable[[LoraFactors], tuple[Tensor, Tensor]]] = {
    None: lambda update: (update.A, update.B),
    "balance": balance_msus,
    "svd": align_svd,
}
_ORD: dict[str, float] = {"inf": float("inf"), "l2": 2}


class Clusters(NamedTuple):
    """What :func:`cluster_units` returns."""

    labels: Ints  # (R,), clusters numbered from 0, none empty
    signs: Floats  # (R,), +1 or -1: with these the units of a cluster point the same way; all +1 unless sign_invariant
    inertia: float  # weighted sum of the squared distances of the units, so signed, to their cluster's mean
    n_iter: int | None


class Reassembled(NamedTuple):
    """What :func:`reassemble` returns."""

    factors: LoraFactors
    labels: np.ndarray  # (R,), the cluster of each MSU in the adapters' order; -1 for adapters of weight 0
    owners: np.ndarray  # (R,), the position of the adapter of each MSU
    inertia: float
    n_iter: int | None


def gauges_kept(align: Align | None, metric: Metric) -> frozenset[str]:
    """Changes of factors that leave a reassembled update as it is.

    'cosine' adds nothing: rescaling a unit to ``(c a, b / c)`` turns it, and it tells a unit from its negative.
    """
    if align == "svd":
        return frozenset({"permutation", "sign", "rescaling", "GL(r)"})
    extra = {"sign"} if metric == "sign_invariant" else set()
    return frozenset({"permutation", *extra} | ({"rescaling"} if align == "balance" else set()))


class _Distinct(NamedTuple):
    """The distinct units of a pool, as the clustering sees them, without the units."""

    flips: Floats  # (R,), +1 or -1, by which each unit is multiplied
    totals: Floats  # (n,), summed weights of equal units, in lexicographic order
    inverse: Ints  # (R,), which distinct unit every unit is

    def rows(self, units: np.ndarray) -> Floats:
        """Distinct units, (n, d), from the pool that this was made of."""
        _, first = np.unique(self.inverse, return_index=True)
        rows: Floats = units[first].astype(np.float64) * self.flips[first, None] + 0.0  # -0.0 + 0.0 is 0.0
        return rows


class PosedUnits(NamedTuple):
    """What :func:`pose_module` returns: of R x R numbers, whatever the length of the units."""

    distinct: _Distinct
    posed: Posed


class FoundUnits(NamedTuple):
    """What :func:`solve_modules` returns of each module."""

    distinct: _Distinct
    partition: Partition  # of the distinct units


def _pose_units(
    units: np.ndarray,
    weights: Floats,
    k: int | None,
    *,
    metric: Metric,
    clusterer: ClusterMixin | None,
    n_init: int,
    rng: np.random.RandomState,
) -> PosedUnits:
    flips = canonical_signs(units) if metric == "sign_invariant" else np.ones(len(units))
    rows, totals, inverse = distinct_rows(units * flips[:, None], weights)
    # A clusterer that counts neighbours takes a unit of mean weight for one
    counts = totals * (len(units) / weights.sum())
    points = coordinates(rows, metric)
    # Starts are drawn by position: what the metric does not see may not place a unit
    order = argsort_rows(points) if metric == "cosine" else np.arange(len(rows))
    posed = pose_points(points, counts, order, k, clusterer, n_init=n_init, rng=rng)
    return PosedUnits(_Distinct(flips, totals, inverse), posed)


def solve_modules(posed: Sequence[PosedUnits], engine: Engine | None, *, max_iter: int) -> list[FoundUnits]:
    """Cluster the units of many modules, in one call of the engine."""
    partitions = solve_posed([module.posed for module in posed], engine, max_iter=max_iter)
    return [FoundUnits(module.distinct, found) for module, found in zip(posed, partitions, strict=True)]


def cluster_units(
    units: np.ndarray,
    weights: Floats,
    k: int | None,
    *,
    metric: Metric,
    clusterer: ClusterMixin | None,
    n_init: int,
    max_iter: int,
    rng: np.random.RandomState,
    engine: Engine | None,
    found: FoundUnits | None = None,
) -> Clusters:
    """Cluster a pool of MSUs; the order of the units does not matter.

    Parameters
    ----------
    units : ndarray of shape (R, d)
        One MSU a row.
    weights : ndarray of shape (R,)
        Positive weights.
    k : int or None
        Number of clusters, at most the number of distinct units; None only with a clusterer.
    metric, clusterer, n_init, max_iter, rng, engine, found
        As in :func:`reassemble`.
    """
    if found is None:
        posed = _pose_units(units, weights, k, metric=metric, clusterer=clusterer, n_init=n_init, rng=rng)
        (found,) = solve_modules([posed], engine, max_iter=max_iter)
    (flips, totals, inverse), (labels, n_iter) = found
    rows = found.distinct.rows(units)
    turns = aligned_signs(rows, totals, labels) if metric == "sign_invariant" else np.ones(len(rows))
    inertia = float(squared_residuals(rows * turns[:, None], totals, labels).sum())
    return Clusters(labels[inverse], flips * turns[inverse], inertia, n_iter)


def _centroids(units: Tensor, weights: Floats, labels: Ints, norm: Norm | None) -> Tensor:
    """Weighted means of the units of every cluster, (k, d), each given its members' mean norm; float64."""
    shares = np.zeros((labels.max() + 1, len(labels)))  # row c: each unit's share of cluster c
    shares[labels, np.arange(len(labels))] = weights
    member = torch.from_numpy(shares / shares.sum(axis=1, keepdims=True)).to(units.device)
    centroids = member @ units
    if norm is not None:
        before = member @ units.norm(p=_ORD[norm], dim=1)
        after = centroids.norm(p=_ORD[norm], dim=1)
        centroids *= torch.where(after > 0, before / torch.where(after > 0, after, 1), 0)[:, None]
    return centroids


class _Pool(NamedTuple):
    """The MSUs of the adapters that take part in one module."""

    units: Tensor  # (R, d_in + d_out)
    weights: Floats  # (R,)
    d_in: int
    mean_rank: float
    active: list[bool]  # (n_adapters,), which adapters those are


def _pool(updates: Sequence[LoraFactors], weights: np.ndarray, align: Align | None) -> _Pool | None:
    """None where every adapter that has the module weighs nothing."""
    active = [w > 0 and update.rank > 0 for update, w in zip(updates, weights, strict=True)]
    pooled = [LoraFactors(*_ALIGN[align](u)) for u, on in zip(updates, active, strict=True) if on]
    if not pooled:
        return None
    ranks = np.array([update.rank for update in pooled])
    share = weights[active]
    mean_rank = float(ranks @ share / share.sum())
    return _Pool(pool_msus(pooled), np.repeat(share, ranks), pooled[0].d_in, mean_rank, active)


def pose_module(
    updates: Sequence[LoraFactors],
    weights: np.ndarray,
    k: int | None,
    *,
    align: Align | None,
    metric: Metric,
    n_init: int,
    rng: np.random.RandomState,
) -> PosedUnits:
    """Return what k-means is to solve for one module; the parameters are those of :func:`reassemble`.

    Made first for all modules, it lets :func:`solve_modules` take them together; each module's ``found`` then goes to
    :func:`reassemble`.
    """
    pool = _pool(updates, weights, align)
    if pool is None:
        none = np.empty(0, dtype=np.intp)
        return PosedUnits(_Distinct(np.empty(0), np.empty(0), none), Posed(Partition(none, 0), none))
    k = round(2 * pool.mean_rank) if k is None else k
    units = pool.units.cpu().numpy()
    return _pose_units(units, pool.weights, k, metric=metric, clusterer=None, n_init=n_init, rng=rng)


def reassemble(
    updates: Sequence[LoraFactors],
    weights: np.ndarray,
    k: int | None,
    *,
    norm: Norm | None,
    output_scale: Literal["sqrt"] | float | None,
    align: Align | None,
    metric: Metric,
    clusterer: ClusterMixin | None,
    n_init: int,
    max_iter: int,
    rng: np.random.RandomState,
    engine: Engine | None,
    found: FoundUnits | None = None,
) -> Reassembled:
    """Group, cluster and reconstruct: one module of LoRA-LEGO.

    Parameters
    ----------
    updates : sequence of LoraFactors
        One an adapter; those of rank 0 or weight 0 take no part.
    weights : ndarray of shape (n_adapters,)
        Non-negative.
    k : int or None
        Number of clusters, at most the number of distinct MSUs. None: twice the mean rank, or what the clusterer
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
    n_init, max_iter : int
        As in :class:`MSUKMeans`.
    rng : RandomState
        Seeds the clustering.
    engine : Engine or None
        What runs k-means; not needed with a clusterer.
    found : FoundUnits, default=None
        The clusters, where they are known already; see :func:`pose_module`.
    """
    owners = np.repeat(np.arange(len(updates)), [update.rank for update in updates])
    labels = np.full(len(owners), -1)
    pool = _pool(updates, weights, align)
    if pool is None:
        return Reassembled(updates[0].scaled(0), labels, owners, 0.0, 0)
    if k is None and clusterer is None:
        k = round(2 * pool.mean_rank)
    clusters = cluster_units(
        pool.units.cpu().numpy(),
        pool.weights,
        k,
        metric=metric,
        clusterer=clusterer,
        n_init=n_init,
        max_iter=max_iter,
        rng=rng,
        engine=engine,
        found=found,
    )
    signed = pool.units.double() * torch.from_numpy(clusters.signs).to(pool.units.device)[:, None]
    centroids = _centroids(signed, pool.weights, clusters.labels, norm)
    factors = LoraFactors(*split_msus(centroids.to(pool.units.dtype), pool.d_in))
    if output_scale is not None:
        factors = factors.scaled((pool.mean_rank / factors.rank) ** 0.5 if output_scale == "sqrt" else output_scale)
    labels[np.array(pool.active)[owners]] = clusters.labels
    return Reassembled(factors, labels, owners, clusters.inertia, clusters.n_iter)
