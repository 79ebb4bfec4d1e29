"""The MSUs of many adapters as one pool: aligned, told apart, put in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..factors import LoraFactors
from ..linalg import align_svd, balance_msus, pool_msus
from ._rows import PREFIX, Distinct, Floats, distinct_rows

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


class Pool(NamedTuple):
    """The MSUs of the adapters that take part in one module."""

    updates: list[LoraFactors]  # as they are aligned, R units in all
    weights: Floats  # (R,)
    mean_rank: float
    active: list[bool]  # (n_adapters,), which adapters those are

    def number(self, k: int | None) -> int:
        """Return how many clusters k-means is to make: twice the mean rank where it is not said."""
        return round(2 * self.mean_rank) if k is None else k


def pool_of(updates: Sequence[LoraFactors], weights: np.ndarray, align: Align | None) -> Pool | None:
    """None where every adapter that has the module weighs nothing."""
    active = [w > 0 and update.rank > 0 for update, w in zip(updates, weights, strict=True)]
    pooled = [LoraFactors(*_ALIGN[align](u)) for u, on in zip(updates, active, strict=True) if on]
    if not pooled:
        return None
    ranks = np.array([update.rank for update in pooled])
    share = weights[active]
    mean_rank = float(ranks @ share / share.sum())
    return Pool(pooled, np.repeat(share, ranks), mean_rank, active)


def distinct_units(updates: Sequence[LoraFactors], weights: Floats) -> Distinct:
    """Distinct units of a pool, in the lexicographic order of all of them."""
    heads = [LoraFactors(u.A[:, :PREFIX], u.B[: max(0, PREFIX - u.d_in)]) for u in updates]
    distinct = distinct_rows(pool_msus(heads).cpu().numpy(), weights)
    if len(distinct.chosen) < len(weights):  # some begin alike
        distinct = distinct_rows(pool_msus(updates).cpu().numpy(), weights)
    return distinct


def in_order(updates: Sequence[LoraFactors], distinct: Distinct) -> Tensor:
    """Return the distinct units themselves, (m, d). In their order: sums depend on the order of their terms."""
    if len(distinct.chosen) == len(distinct.inverse):
        return pool_msus(updates, distinct.inverse)
    pool = pool_msus(updates)
    return pool.index_select(0, torch.from_numpy(distinct.chosen).to(pool.device))
