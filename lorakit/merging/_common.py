"""Small steps that several merge methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from sklearn.base import clone
from torch import Tensor

from ..base import OVERLAP, BaseMerger, Learned, leading_msus
from ..factors import LoraFactors
from ..linalg import Overlap, split_svd, truncate


def largest_rank(updates: Sequence[LoraFactors]) -> int:
    """Largest rank that an adapter has at this module: the rank of a result when none is asked for."""
    return max(update.rank for update in updates)


def cuts(factors: LoraFactors, ks: Sequence[int | None]) -> list[LoraFactors]:
    """Truncate to each rank of ``ks`` by one SVD where that is lower; None leaves the rank as it is."""
    lower = [k for k in ks if k is not None and k < factors.rank]
    truncated = LoraFactors(*truncate(factors, max(lower))) if lower else factors
    return [factors if k is None or k >= factors.rank else leading_msus(truncated, k) for k in ks]


def svd_cuts(
    svd: tuple[Tensor, Tensor, Tensor], ks: Sequence[int], overlap: Callable[[int], Overlap] | None = None
) -> list[tuple[LoraFactors, Learned]]:
    """Cut one SVD to each rank of ``ks``; what is learned are all singular values, and the norm of those cut.

    ``overlap`` gives the products of a cut with the updates, where they are known.
    """
    u, s, vh = svd
    widest, values = LoraFactors(*split_svd(u, s, vh, max(ks))), s.cpu().numpy()
    learned: list[Learned] = [{"singular_values": values, "truncation_error": float(s[k:].double().norm())} for k in ks]
    if overlap is not None:
        learned = [own | {OVERLAP: partial(overlap, k)} for own, k in zip(learned, ks, strict=True)]
    return list(zip([leading_msus(widest, k) for k in ks], learned, strict=True))


def stack_factors(updates: Sequence[LoraFactors]) -> tuple[Tensor, Tensor]:
    """Stack the factors of adapters of one rank; a module that an adapter lacks is a stack of zeros.

    Returns
    -------
    A : Tensor of shape (T, r, d_in)
    B : Tensor of shape (T, d_out, r)
    """
    like = next(update for update in updates if update.rank)
    present = [update if update.rank else like.scaled(0) for update in updates]
    return torch.stack([u.A for u in present]), torch.stack([u.B for u in present])


def like_outer(start: BaseMerger, merger: BaseMerger, seed: int) -> BaseMerger:
    """Return a clone of the start with what it takes from the merger that it is for."""
    made = clone(start)
    known = made.get_params(deep=False)
    given = {"k": merger.k, "weights": merger.weights, "n_jobs": merger.n_jobs, "device": merger.device}
    if known.get("random_state", 0) is None:
        given["random_state"] = seed
    return made.set_params(**{name: value for name, value in given.items() if name in known})
