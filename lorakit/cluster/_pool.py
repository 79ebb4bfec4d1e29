"""The MSUs of one module as a pool of distinct units: aligned, told apart, put in order, placed by a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..factors import LoraFactors
from ..linalg import align_svd, balance_msus, frame_of, pool_msus
from ..linalg.frames import uses_gram
from ..linalg.products import gram_of
from ._coordinates import Metric, aligned_signs, canonical_signs, coordinates, cosine_scales
from ._overlaps import Grams
from ._partition import Partition
from ._rows import PREFIX, Distinct, Floats, Ints, argsort_rows, distinct_rows, squared_residuals

Align = Literal["balance", "svd"]


def _align_by_svd(update: LoraFactors) -> tuple[Tensor, Tensor]:
    """As many units as before: those beyond the rank that a narrow module's update can have are zero."""
    a, b = align_svd(update)
    more = update.rank - len(a)
    return (pad(a, (0, 0, 0, more)), pad(b, (0, more))) if more else (a, b)


_ALIGN: dict[str | None, Callable[[LoraFactors], tuple[Tensor, Tensor]]] = {
    None: lambda update: (update.A, update.B),
    "balance": balance_msus,
    "svd": _align_by_svd,
}


class Members(NamedTuple):
    """The adapters that take part in the merge of one module: those of positive rank and weight."""

    updates: list[LoraFactors]  # aligned, R units in all
    weights: Floats  # (R,), of each unit
    mean_rank: float  # weighted
    active: list[bool]  # (n_adapters,), which adapters take part


def members_of(updates: Sequence[LoraFactors], weights: np.ndarray, align: Align | None) -> Members | None:
    """Align the adapters that take part; None if every adapter that has the module weighs nothing."""
    active = [w > 0 and update.rank > 0 for update, w in zip(updates, weights, strict=True)]
    aligned = [LoraFactors(*_ALIGN[align](u)) for u, on in zip(updates, active, strict=True) if on]
    if not aligned:
        return None
    ranks = np.array([update.rank for update in aligned])
    share = weights[active]
    mean_rank = float(ranks @ share / share.sum())
    return Members(aligned, np.repeat(share, ranks), mean_rank, active)


class Clusters(NamedTuple):
    """The clusters of a pool."""

    distinct: Distinct
    labels: Ints  # (m,), of the distinct units; clusters numbered from 0, none empty
    signs: Floats  # (m,), +1 or -1: with these the units of a cluster point the same way; all +1 unless sign_invariant
    inertia: float  # weighted sum of the squared distances of the units, so signed, to their cluster's mean
    n_iter: int | None


class Pool(NamedTuple):
    """The m distinct units of a pool of R, without their lengths: m x m numbers."""

    distinct: Distinct
    flips: Floats  # (R,), +1 or -1, by which each unit of the pool is multiplied
    rows: Floats  # (m, p), coordinates of the distinct units, so multiplied: norms and inner products are theirs
    signed: bool  # whether the units of a cluster are to be turned to point the same way
    order: Ints  # (m,), a canonical order of the distinct units as the metric sees them

    def turns(self, labels: Ints) -> Floats:
        """Signs (m,), on top of the flips, with which the distinct units of each cluster point the same way."""
        return aligned_signs(self.rows, self.distinct.totals, labels) if self.signed else np.ones(len(self.rows))

    def assign(self, partition: Partition) -> Clusters:
        """Give the units the labels of a partition of the points that :func:`pool_units` made of them."""
        labels = np.empty(len(self.order), dtype=np.intp)
        labels[self.order] = partition.labels
        turns, totals = self.turns(labels), self.distinct.totals
        inertia = float(squared_residuals(self.rows * turns[:, None], totals, labels).sum()) if len(labels) else 0.0
        return Clusters(self.distinct, labels, self.flips[self.distinct.chosen] * turns, inertia, partition.n_iter)


def empty_pool() -> Pool:
    """Return the pool of no units."""
    none = np.empty(0, dtype=np.intp)
    return Pool(Distinct(none, np.empty(0), none), np.empty(0), np.empty((0, 0)), False, none)


class Placed(NamedTuple):
    """The distinct units of a pool, and where the metric places them."""

    units: Tensor  # (m, d), in the order of Pool.rows
    points: Floats  # (m, q), in the pool's canonical order; their Euclidean distances are the metric's
    counts: Floats  # (m,), weights of mean 1 over the R units: to a clusterer that counts, a unit of mean weight is one
    grams: Grams | None = None  # of the units, where they were needed


def pool_units(updates: Sequence[LoraFactors], weights: Floats, metric: Metric) -> tuple[Pool, Placed]:
    """Find the distinct units of a pool, and place them.

    Parameters
    ----------
    updates : sequence of LoraFactors
        R units in all.
    weights : ndarray of shape (R,)
        Positive weights of the units.
    metric : {'euclidean', 'cosine', 'sign_invariant'}
        For 'sign_invariant' a unit and its negative are equal.

    Returns
    -------
    pool : Pool
    placed : Placed
    """
    signed = metric == "sign_invariant"
    flips = np.ones(len(weights))
    if signed:
        host = pool_msus(updates).cpu().numpy()
        flips = canonical_signs(host)
        distinct = distinct_rows(host * flips[:, None].astype(host.dtype), weights)
    else:
        heads = [LoraFactors(u.A[:, :PREFIX], u.B[: max(0, PREFIX - u.d_in)]) for u in updates]
        distinct = distinct_rows(pool_msus(heads).cpu().numpy(), weights)
        if len(distinct.chosen) < len(weights):  # some begin alike
            distinct = distinct_rows(pool_msus(updates).cpu().numpy(), weights)
    units = in_order(updates, distinct)
    # Distances in an orthonormal frame of the units are those of the units, which are long
    grams = None
    if uses_gram(units.mT):  # its two parts apart, from which products of updates follow too
        parts = units.mT.split([updates[0].d_in, units.shape[1] - updates[0].d_in])
        grams = Grams(*(gram_of([part]) for part in parts))
    (block,) = frame_of([units.mT], gram=True if grams is None else grams.inputs + grams.outputs).blocks
    rows = np.ascontiguousarray(block.mT.cpu().numpy()) * flips[distinct.chosen, None]
    order = np.arange(len(rows))
    if metric == "cosine":  # starts are drawn by position: what the metric does not see may not place a unit
        order = argsort_rows(units.cpu().numpy() * cosine_scales(rows))
    counts = distinct.totals * (len(weights) / weights.sum())
    placed = Placed(units, coordinates(rows, metric)[order], counts[order], grams)
    return Pool(distinct, flips, rows, signed, order), placed


def in_order(updates: Sequence[LoraFactors], distinct: Distinct) -> Tensor:
    """Return the distinct units themselves, (m, d). In their order: sums depend on the order of their terms."""
    if len(distinct.chosen) == len(distinct.inverse):
        return pool_msus(updates, distinct.inverse)
    pool = pool_msus(updates)
    return pool.index_select(0, torch.from_numpy(distinct.chosen).to(pool.device))
