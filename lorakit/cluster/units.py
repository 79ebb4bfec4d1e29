"""Cluster the MSUs of many adapters and rebuild one update from the centroids: the core of LoRA-LEGO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.base import ClusterMixin
from torch import Tensor

from ..factors import LoraFactors
from ..linalg import frame_of, pool_msus, split_msus
from ._backends import BACKENDS, Backend, Engine, choose_engine
from ._coordinates import Metric, aligned_signs, canonical_signs, coordinates, cosine_scales
from ._grouping import Posed, pose_points, solve_posed
from ._partition import Partition
from ._pooling import Align, distinct_units, in_order, pool_of
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
    update = LoraFactors(units, units.new_empty(0, len(units)))
    placed = _place_units([update], weights, metric)
    return _pose(placed, [k], clusterer=clusterer, n_init=n_init, rng=rng)[0]


class _Placed(NamedTuple):
    """A pool as points to cluster: all there is to know of it before the number of clusters."""

    pooled: _Pooled
    units: Tensor  # (m, d), the distinct units themselves
    points: Floats  # (m, q), whose Euclidean distances are the metric's
    counts: Floats  # (m,), weights of mean 1 over the units
    order: Ints  # (m,), a canonical order of the points
    width: int  # number of features that k-means' tolerance is relative to


def _tell_apart(updates: Sequence[LoraFactors], weights: Floats, metric: Metric) -> tuple[_Pooled, Tensor]:
    """Return what to know of a pool's distinct units, and these units, (m, d)."""
    signed = metric == "sign_invariant"
    flips = np.ones(len(weights))
    if signed:
        host = pool_msus(updates).cpu().numpy()
        flips = canonical_signs(host)
        distinct = distinct_rows(host * flips[:, None].astype(host.dtype), weights)
    else:
        distinct = distinct_units(updates, weights)
    units = in_order(updates, distinct)
    # Distances in an orthonormal frame of the units are those of the units, which are long
    (block,) = frame_of([units.mT]).blocks
    rows = np.ascontiguousarray(block.mT.cpu().numpy()) * flips[distinct.chosen, None]
    return _Pooled(distinct, flips, rows, signed), units


def _place_units(updates: Sequence[LoraFactors], weights: Floats, metric: Metric) -> _Placed:
    pooled, units = _tell_apart(updates, weights, metric)
    points = coordinates(pooled.rows, metric)
    # Starts are drawn by position: what the metric does not see may not place a unit
    order = np.arange(len(pooled.rows))
    if metric == "cosine":
        order = argsort_rows(units.cpu().numpy() * cosine_scales(pooled.rows))
    # to a clusterer that counts, one of mean weight is one
    counts = pooled.distinct.totals * (len(weights) / weights.sum())
    width = points.shape[1] if pooled.signed else units.shape[1]
    return _Placed(pooled, units, points, counts, order, width)


def _pose(
    placed: _Placed,
    ks: Sequence[int | None],
    *,
    clusterer: ClusterMixin | None,
    n_init: int,
    rng: np.random.RandomState,
) -> list[PosedUnits]:
    pooled, _, points, counts, order, width = placed
    posed = pose_points(points, counts, order, ks, clusterer, n_init=n_init, width=width, rng=rng)
    return [PosedUnits(pooled, problem) for problem in posed]


def solve_units(posed: Sequence[PosedUnits], engine: Engine | None, *, max_iter: int) -> list[FoundUnits]:
    """Cluster the units of many modules, in one call of the engine."""
    partitions = solve_posed([module.posed for module in posed], engine, max_iter=max_iter)
    return [_settled(module.pooled, *found) for module, found in zip(posed, partitions, strict=True)]


def _settled(pooled: _Pooled, labels: Ints, n_iter: int | None) -> FoundUnits:
    distinct, flips, rows, _ = pooled
    turns = pooled.turns(labels)
    inertia = float(squared_residuals(rows * turns[:, None], distinct.totals, labels).sum()) if len(rows) else 0.0
    return FoundUnits(distinct, labels, flips[distinct.chosen] * turns, inertia, n_iter)


def cluster_shares(labels: Ints, weights: Floats) -> csr_array:
    """Return each unit's share of each cluster, (k, m); rows sum to 1, and their product with units is the means."""
    members = np.argsort(labels, kind="stable")
    ends = np.concatenate([[0], np.bincount(labels).cumsum()])
    shares = weights / np.bincount(labels, weights)[labels]
    return csr_array((shares[members], members, ends), shape=(len(ends) - 1, len(labels)))


def _centroids(
    rows: Tensor, sizes: Tensor | None, found: FoundUnits, norm: Norm | None, scale: Callable[[int], float]
) -> Tensor:
    """Weighted means of the distinct units, (m, d), of every cluster, each given its members' mean norm: (k, d).

    ``scale`` gives the factor on k units' update.
    """
    shares = cluster_shares(found.labels, found.distinct.totals)
    signed = shares.copy()
    signed.data *= found.signs[signed.indices]
    centroids = _mixed(signed, rows)
    root = scale(len(centroids)) ** 0.5  # a unit's halves share the factor
    if norm is not None and sizes is not None:
        before, after = _mixed(shares, sizes), _NORMS[norm](centroids)
        centroids *= torch.where(after > 0, root * before / torch.where(after > 0, after, 1), 0)[:, None]
    elif root != 1:
        centroids *= root
    return centroids


def _mixed(shares: csr_array, rows: Tensor) -> Tensor:
    """Return ``shares @ rows``, (k, m) by (m, d) or (m,)."""
    if rows.device.type != "cpu":
        return torch.from_numpy(shares.toarray()).to(rows) @ rows
    values = rows.numpy()  # m additions of rows, where a dense product has k m
    return torch.from_numpy(shares.astype(values.dtype) @ values)


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
    pool = pool_of(updates, weights, align)
    if pool is None:
        none = np.empty(0, dtype=np.intp)
        empty = _Pooled(Distinct(none, np.empty(0), none), np.empty(0), np.empty((0, 0)), False)
        return [PosedUnits(empty, Posed(Partition(none, 0), none))] * len(ks)
    placed = _place_units(pool.updates, pool.weights, metric)
    posed = _pose(placed, [pool.number(k) for k in ks], clusterer=None, n_init=n_init, rng=rng)
    return [PosedUnits(pooled, one.lighter()) for pooled, one in posed]


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
    pool = pool_of(updates, weights, align)
    if pool is None:
        return [Reassembled(updates[0].scaled(0), nobody, owners, 0.0, 0)] * len(ks)
    if found is None:
        placed = _place_units(pool.updates, pool.weights, metric)
        numbers = [pool.number(k) if clusterer is None else k for k in ks]
        posed = _pose(placed, numbers, clusterer=clusterer, n_init=n_init, rng=rng)
        found, rows = solve_units(posed, engine, max_iter=max_iter), placed.units
    else:
        rows = in_order(pool.updates, found[0].distinct)
    sizes = None if norm is None else _NORMS[norm](rows)

    def scale(k: int) -> float:
        return (pool.mean_rank / k) ** 0.5 if output_scale == "sqrt" else 1.0

    made = []
    for clusters in found:
        factors = LoraFactors(*split_msus(_centroids(rows, sizes, clusters, norm, scale), updates[0].d_in))
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
    pool = pool_of(updates, weights, align)
    kept = labels[labels >= 0]
    if pool is None:
        return ClusteredUnits(np.empty((0, updates[0].d_in + updates[0].d_out)), np.empty(0), kept)
    units = pool_msus(pool.updates).cpu().numpy().astype(np.float64)
    if metric == "sign_invariant":
        pooled, _ = _tell_apart(pool.updates, pool.weights, metric)
        distinct = pooled.distinct
        units *= (pooled.flips * pooled.turns(kept[distinct.chosen])[distinct.inverse])[:, None]
    return ClusteredUnits(units, pool.weights, kept)
