"""Cluster the MSUs of many adapters and rebuild one update from the centroids: the core of LoRA-LEGO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import ClusterMixin
from torch import Tensor
from torch.nn.functional import pad

from ..factors import LoraFactors
from ..linalg import align_svd, balance_msus, frame_of, pool_msus, split_msus
from ._backends import BACKENDS, Backend, Engine, choose_engine
from ._coordinates import Metric, aligned_signs, canonical_signs, coordinates, cosine_scales
from ._grouping import Posed, pose_points, solve_posed
from ._partition import Partition
from ._rows import Distinct, Floats, Ints, argsort_rows, distinct_rows, squared_residuals

__all__ = [
    "BACKENDS",
    "Align",
    "Backend",
    "ClusteredUnits",
    "Engine",
    "FoundUnits",
    "Metric",
    "Norm",
    "PosedUnits",
    "Reassembled",
    "choose_engine",
    "cluster_shares",
    "clustered_units",
    "gauges_kept",
    "pose_module",
    "pose_units",
    "reassemble",
    "solve_units",
]

Norm = Literal["inf", "l2"]
Align = Literal["balance", "svd"]


def _by_svd(update: LoraFactors) -> tuple[Tensor, Tensor]:
    """As many units as before: those beyond what a narrow module's update can have are zero."""
    a, b = align_svd(update)
    more = update.rank - len(a)
    return (pad(a, (0, 0, 0, more)), pad(b, (0, more))) if more else (a, b)


_ALIGN: dict[str | None, Callable[[LoraFactors], tuple[Tensor, Tensor]]] = {
    None: lambda update: (update.A, update.B),
    "balance": balance_msus,
    "svd": _by_svd,
}
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


def gauges_kept(align: Align | None, metric: Metric) -> frozenset[str]:
    """Changes of factors that leave a reassembled update as it is.

    'cosine' adds nothing: rescaling a unit to ``(c a, b / c)`` turns it, and it tells a unit from its negative.
    """
    if align == "svd":
        return frozenset({"permutation", "sign", "rescaling", "GL(r)"})
    extra = {"sign"} if metric == "sign_invariant" else set()
    return frozenset({"permutation", *extra} | ({"rescaling"} if align == "balance" else set()))


class _Pooled(NamedTuple):
    """The distinct units of a pool, without their lengths."""

    distinct: Distinct
    flips: Floats  # (R,), +1 or -1, by which each unit of the pool is multiplied
    rows: Floats  # (m, p), coordinates of the distinct units, so multiplied: norms and inner products are theirs
    signed: bool  # whether units are to be turned to point the same way

    def turns(self, labels: Ints) -> Floats:
        """Signs (m,), beside the flips, with which the distinct units of each cluster point the same way."""
        return aligned_signs(self.rows, self.distinct.totals, labels) if self.signed else np.ones(len(self.rows))


class PosedUnits(NamedTuple):
    """What :func:`pose_units` returns: of R x R numbers, whatever the length of the units."""

    pooled: _Pooled
    posed: Posed


class FoundUnits(NamedTuple):
    """The clusters of a pool."""

    distinct: Distinct
    labels: Ints  # (m,), of the distinct units; clusters numbered from 0, none empty
    signs: Floats  # (m,), +1 or -1: with these the units of a cluster point the same way; all +1 unless sign_invariant
    inertia: float  # weighted sum of the squared distances of the units, so signed, to their cluster's mean
    n_iter: int | None


def pose_units(
    units: Tensor,
    weights: Floats,
    k: int | None,
    *,
    metric: Metric,
    clusterer: ClusterMixin | None,
    n_init: int,
    rng: np.random.RandomState,
) -> PosedUnits:
    """Return what is to be solved to cluster a pool of MSUs; the order of the units does not matter.

    Parameters
    ----------
    units : Tensor of shape (R, d)
        One MSU a row.
    weights : ndarray of shape (R,)
        Positive weights.
    k : int or None
        Number of clusters, at most the number of distinct units; None only with a clusterer.
    metric, clusterer, n_init, rng
        As in :func:`reassemble`.
    """
    return _pose(_place_units(units, weights, metric), k, clusterer=clusterer, n_init=n_init, rng=rng)


class _Placed(NamedTuple):
    """A pool as points to cluster: all there is to know of it before the number of clusters."""

    pooled: _Pooled
    units: Tensor  # (m, d), the distinct units themselves
    points: Floats  # (m, q), whose Euclidean distances are the metric's
    counts: Floats  # (m,), weights of mean 1 over the units
    order: Ints  # (m,), a canonical order of the points
    width: int  # number of features that k-means' tolerance is relative to


def _tell_apart(units: Tensor, weights: Floats, metric: Metric) -> tuple[_Pooled, Tensor, np.ndarray]:
    """Return what to know of a pool's distinct units; these units, (m, d); and the whole pool, (R, d), on the host."""
    host = units.cpu().numpy()
    signed = metric == "sign_invariant"
    flips = canonical_signs(host) if signed else np.ones(len(host))
    distinct = distinct_rows(host * flips[:, None].astype(host.dtype) if signed else host, weights)
    # Distances in an orthonormal frame of the units are those of the units, which are long
    chosen = _taken(units, distinct.chosen)
    (block,) = frame_of([chosen.mT]).blocks
    rows = np.ascontiguousarray(block.mT.cpu().numpy()) * flips[distinct.chosen, None]
    return _Pooled(distinct, flips, rows, signed), chosen, host


def _place_units(units: Tensor, weights: Floats, metric: Metric) -> _Placed:
    pooled, chosen, host = _tell_apart(units, weights, metric)
    points = coordinates(pooled.rows, metric)
    # Starts are drawn by position: what the metric does not see may not place a unit
    order = np.arange(len(pooled.rows))
    if metric == "cosine":
        order = argsort_rows(host[pooled.distinct.chosen] * cosine_scales(pooled.rows))
    # to a clusterer that counts, one of mean weight is one
    counts = pooled.distinct.totals * (len(units) / weights.sum())
    width = points.shape[1] if pooled.signed else units.shape[1]
    return _Placed(pooled, chosen, points, counts, order, width)


def _pose(
    placed: _Placed, k: int | None, *, clusterer: ClusterMixin | None, n_init: int, rng: np.random.RandomState
) -> PosedUnits:
    pooled, _, points, counts, order, width = placed
    posed = pose_points(points, counts, order, k, clusterer, n_init=n_init, width=width, rng=rng)
    return PosedUnits(pooled, posed)


def solve_units(posed: Sequence[PosedUnits], engine: Engine | None, *, max_iter: int) -> list[FoundUnits]:
    """Cluster the units of many modules, in one call of the engine."""
    # The points are our own: checking them for each start takes scikit-learn about as long as the start
    with config_context(assume_finite=True, skip_parameter_validation=True):
        partitions = solve_posed([module.posed for module in posed], engine, max_iter=max_iter)
    return [_settled(module.pooled, *found) for module, found in zip(posed, partitions, strict=True)]


def _settled(pooled: _Pooled, labels: Ints, n_iter: int | None) -> FoundUnits:
    distinct, flips, rows, _ = pooled
    turns = pooled.turns(labels)
    inertia = float(squared_residuals(rows * turns[:, None], distinct.totals, labels).sum()) if len(rows) else 0.0
    return FoundUnits(distinct, labels, flips[distinct.chosen] * turns, inertia, n_iter)


def _taken(units: Tensor, positions: Ints) -> Tensor:
    return units.index_select(0, torch.from_numpy(positions).to(units.device))


def cluster_shares(labels: Ints, weights: Floats) -> Floats:
    """Return each unit's share of each cluster, (k, m); rows sum to 1, and their product with units is the means."""
    shares = np.zeros((labels.max(initial=-1) + 1, len(labels)))
    shares[labels, np.arange(len(labels))] = weights
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _centroids(
    rows: Tensor, sizes: Tensor | None, found: FoundUnits, norm: Norm | None, scale: Callable[[int], float]
) -> Tensor:
    """Weighted means of the distinct units, (m, d), of every cluster, each given its members' mean norm: (k, d).

    ``scale`` gives the factor on k units' update.
    """
    shares = cluster_shares(found.labels, found.distinct.totals)
    centroids = torch.from_numpy(shares * found.signs).to(rows) @ rows
    root = scale(len(centroids)) ** 0.5  # a unit's halves share the factor
    if norm is not None and sizes is not None:
        before, after = torch.from_numpy(shares).to(rows) @ sizes, _NORMS[norm](centroids)
        centroids *= torch.where(after > 0, root * before / torch.where(after > 0, after, 1), 0)[:, None]
    elif root != 1:
        centroids *= root
    return centroids


class _Pool(NamedTuple):
    """The MSUs of the adapters that take part in one module."""

    units: Tensor  # (R, d_in + d_out)
    weights: Floats  # (R,)
    d_in: int
    mean_rank: float
    active: list[bool]  # (n_adapters,), which adapters those are

    def number(self, k: int | None) -> int:
        """Return how many clusters k-means is to make: twice the mean rank where it is not said."""
        return round(2 * self.mean_rank) if k is None else k


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
    ks: Sequence[int | None],
    *,
    align: Align | None,
    metric: Metric,
    n_init: int,
    rng: np.random.RandomState,
) -> list[PosedUnits]:
    """Return what k-means is to solve for one module, at each of ``ks``; the parameters are :func:`reassemble`'s.

    Made first for all modules, it lets :func:`solve_units` take them together; each module's ``found`` then goes to
    :func:`reassemble`.
    """
    pool = _pool(updates, weights, align)
    if pool is None:
        none = np.empty(0, dtype=np.intp)
        empty = _Pooled(Distinct(none, np.empty(0), none), np.empty(0), np.empty((0, 0)), False)
        return [PosedUnits(empty, Posed(Partition(none, 0), none))] * len(ks)
    placed = _place_units(pool.units, pool.weights, metric)
    return [_pose(placed, pool.number(k), clusterer=None, n_init=n_init, rng=deepcopy(rng)) for k in ks]


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
    n_init: int,
    max_iter: int,
    rng: np.random.RandomState,
    engine: Engine | None,
    found: Sequence[FoundUnits] | None = None,
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
    n_init, max_iter : int
        As in :class:`MSUKMeans`.
    rng : RandomState
        Seeds the clustering, for each number from the state that it is in.
    engine : Engine or None
        What runs k-means; not needed with a clusterer.
    found : sequence of FoundUnits, default=None
        The clusters for each of ``ks``, where they are known already; see :func:`pose_module`.
    """
    owners = np.repeat(np.arange(len(updates)), [update.rank for update in updates])
    nobody = np.full(len(owners), -1)
    pool = _pool(updates, weights, align)
    if pool is None:
        return [Reassembled(updates[0].scaled(0), nobody, owners, 0.0, 0)] * len(ks)
    rows = None
    if found is None:
        placed = _place_units(pool.units, pool.weights, metric)
        numbers = [pool.number(k) if clusterer is None else k for k in ks]
        posed = [_pose(placed, k, clusterer=clusterer, n_init=n_init, rng=deepcopy(rng)) for k in numbers]
        found, rows = solve_units(posed, engine, max_iter=max_iter), placed.units
    # In the order of the distinct units, whatever that of the pool: sums depend on the order of their terms
    rows = _taken(pool.units, found[0].distinct.chosen) if rows is None else rows
    sizes = None if norm is None else _NORMS[norm](rows)

    def scale(k: int) -> float:
        return (pool.mean_rank / k) ** 0.5 if output_scale == "sqrt" else 1.0

    made = []
    for clusters in found:
        factors = LoraFactors(*split_msus(_centroids(rows, sizes, clusters, norm, scale), pool.d_in))
        if output_scale is not None and output_scale != "sqrt":
            factors = factors.scaled(output_scale)
        labels = nobody.copy()
        labels[np.array(pool.active)[owners]] = clusters.labels[clusters.distinct.inverse]
        made.append(Reassembled(factors, labels, owners, clusters.inertia, clusters.n_iter))
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
    pool = _pool(updates, weights, align)
    kept = labels[labels >= 0]
    if pool is None:
        return ClusteredUnits(np.empty((0, updates[0].d_in + updates[0].d_out)), np.empty(0), kept)
    units = pool.units.cpu().numpy().astype(np.float64)
    if metric == "sign_invariant":
        pooled, *_ = _tell_apart(pool.units, pool.weights, metric)
        distinct = pooled.distinct
        units *= (pooled.flips * pooled.turns(kept[distinct.chosen])[distinct.inverse])[:, None]
    return ClusteredUnits(units, pool.weights, kept)
