"""Base of the element-wise rules (TIES and its kin), and the four spaces in which they act."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._sklearn import StrOptions
from ..adapters import ModuleInfo
from ..base import BaseMerger, Learned, leading_msus
from ..factors import LoraFactors
from ..linalg import (
    compress,
    core_space,
    dense_randomized_svd,
    dense_svd,
    knots_space,
    split_svd,
    truncate_wide,
)
from ._common import cuts, largest_rank, stack_factors

_TILE = 2**20  # entries of all updates together that are worked on at a time: a few MB, near the caches
_KEPT = 2**24  # entries of all updates together up to which all are formed, and only once: 64 MB in float32
_OVERSAMPLED = 16  # columns of the sketch beyond k
_LARGE = 1024  # width from which a full SVD takes seconds


class ElementwiseMerger(BaseMerger):
    """A rule on T tensors of one shape, applied in the space that ``space`` names.

    ============  =======================================================  ==================
    space         tensors                                                  ranks
    ============  =======================================================  ==================
    ``factors``   A and B themselves (direct merge)                        one for all
    ``delta``     the updates B A (multiplied merge), cut to k by SVD      any
    ``core``      the updates in common bases, R x R (Core Space)          any
    ``knots``     the updates in common outputs, R x d_in (KnOTS)          any
    ============  =======================================================  ==================

    A rule has up to four steps. :meth:`_measure` sees a whole tensor of one adapter (for thresholds),
    :meth:`_sparsify` changes a block of its rows, :meth:`_survey` sees the blocks of all adapters before any are
    merged, :meth:`_combine` merges them. In the spaces 'delta' and 'knots' a block is a few rows, so that
    a module takes the memory of about two of its updates, or two representations, however many adapters there are;
    or of all where that is little.
    """

    _draws: ClassVar[bool] = True  # whether :meth:`_sparsify` may draw random numbers

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "space": [StrOptions({"factors", "delta", "core", "knots"})],
        "svd_solver": [StrOptions({"auto", "exact", "randomized"})],
    }

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether the rule acts on A and B themselves."""
        return self.space == "factors"

    @property
    def invariances(self) -> frozenset[str]:
        """All, unless the rule acts on A and B themselves."""
        return frozenset() if self.space == "factors" else super().invariances

    def _rank_limit(self, infos: Sequence[ModuleInfo]) -> int:
        if self.space == "factors":  # it leaves their rank
            return largest_rank(infos)
        if self.space == "delta":  # a rule on the updates gives up to full rank
            return min(infos[0].d_in, infos[0].d_out)
        return super()._rank_limit(infos)

    def _measure(self, x: Tensor, adapter: int) -> Any:
        """Look at one adapter's whole tensor, (m, n), before it is taken block by block.

        ``adapter`` is its position among those whose weight is not zero.
        """
        raise NotImplementedError

    @property
    def _measures(self) -> bool:
        """Whether :meth:`_measure` is there."""
        return type(self)._measure is not ElementwiseMerger._measure

    def _sparsify(self, x: Tensor, measured: Any, rng: np.random.RandomState) -> Tensor:
        """Change some rows, (rows, n), of one adapter's tensor."""
        return x

    @property
    def _surveys(self) -> bool:
        """Whether :meth:`_survey` is there; in 'delta' the blocks are then made twice, so nothing may be random."""
        return False

    def _survey(self, stack: Tensor, weights: Tensor) -> Tensor:
        """Look at T blocks, (T, rows, n); what is returned is added up over the rows."""
        raise NotImplementedError

    @abstractmethod
    def _combine(self, stack: Tensor, weights: Tensor, survey: Any) -> Tensor:
        """Merge T blocks: (T, rows, n) to (rows, n), with weights of shape (T,) and what :meth:`_survey` found."""

    def _rule(self, stack: Tensor, weights: Tensor, rngs: Sequence[np.random.RandomState]) -> Tensor:
        """Apply the whole rule to T tensors: (T, m, n) to (m, n)."""
        if stack.numel() == 0:  # the updates are all zero: their common bases are empty
            return stack[0]
        measured = [self._measure(x, i) if self._measures else None for i, x in enumerate(stack)]
        sparse = torch.stack(
            [self._sparsify(x, found, rng) for x, found, rng in zip(stack, measured, rngs, strict=True)]
        )
        return self._combine(sparse, weights, self._survey(sparse, weights) if self._surveys else None)

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        active = np.flatnonzero(weights)  # an adapter of weight 0 is not there: no draws, no vote, no rank
        updates, weights = [updates[int(i)] for i in active], weights[active]
        ranks = [largest_rank(updates) if k is None else k for k in ks]
        if any(update.rank for update in updates):
            merged = self._merge_active(updates, weights, ranks, rng)
            if merged[0].rank:
                return [(factors, {}) for factors in merged]
        # nothing is there to merge: whoever has the module weighs zero, or has not trained it
        a, b = updates[0]
        return [(LoraFactors(a.new_zeros(1, a.shape[1]), b.new_zeros(b.shape[0], 1)), {}) for _ in ks]

    def _merge_active(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int], rng: np.random.RandomState
    ) -> list[LoraFactors]:
        """Merge adapters that are there and count, and cut the result to each rank of ``ks``."""
        # in 'delta' the noise of the randomised SVD comes after these draws
        rngs = _streams(updates, weights, rng) if self._draws or self.space == "delta" else [rng] * len(updates)
        w = torch.from_numpy(weights).to(updates[0].A)
        if self.space == "factors":
            a, b = stack_factors(updates)
            return cuts(LoraFactors(self._rule(a, w, rngs), self._rule(b, w, rngs)), ks)
        if self.space == "core":
            small = compress(updates)
            u, v, cores = core_space(small.updates)
            a, b = truncate_wide(self._rule(cores, w, rngs), max(ks))
            widest = LoraFactors(*small.expand((a @ v.mT, u @ b)))
        elif self.space == "knots":
            space = knots_space(updates)
            merged = self._merge_delta([LoraFactors(*part) for part in space.representations], w, rngs)
            a, b = truncate_wide(merged, max(ks))
            widest = LoraFactors(a, space.expand(b))
        else:
            return self._cut_delta(self._merge_delta(updates, w, rngs), ks, rng)
        return [leading_msus(widest, k) for k in ks]

    def _merge_delta(
        self, updates: Sequence[LoraFactors], weights: Tensor, rngs: Sequence[np.random.RandomState]
    ) -> Tensor:
        """Apply the rule to the updates: of large ones, one at a time is whole, and some rows of all."""
        tiles = _tiles(updates)
        merged = updates[0].A.new_empty(updates[0].d_out, updates[0].d_in)
        keep = merged.numel() * len(updates) <= _KEPT
        measured: list[Any] = [None] * len(updates)
        kept: list[Tensor] = []
        for i, update in enumerate(updates if self._measures else ()):
            whole = torch.empty_like(merged) if keep else merged
            for rows in tiles:  # as below: a whole product may differ in its last bits, and thresholds are compared
                torch.mm(update.B[rows], update.A, out=whole[rows])
            measured[i] = self._measure(whole, i)
            if keep:
                kept.append(whole)

        buffer = merged.new_empty(len(updates) * len(merged[: _step(updates)]) * updates[0].d_in)

        def sparse(rows: slice) -> Tensor:
            shape = (len(updates), *merged[rows].shape)
            stack = buffer[: math.prod(shape)].view(shape)  # of all tiles: fresh memory takes longer than the product
            for i, (block, update) in enumerate(zip(stack, updates, strict=True)):
                whole = kept[i][rows] if kept else torch.mm(update.B[rows], update.A, out=block)
                block.copy_(self._sparsify(whole, measured[i], rngs[i]))
            return stack

        survey = sum(self._survey(sparse(rows), weights) for rows in tiles) if self._surveys else None
        for rows in tiles:
            merged[rows] = self._combine(sparse(rows), weights, survey)
        return merged

    def _blocks(self, updates: Sequence[LoraFactors]) -> Iterator[tuple[int, Tensor]]:
        """Yield everything that the rule sees of one module, as pairs of an adapter's position and a block."""
        there = [i for i, update in enumerate(updates) if update.rank]
        if not there:
            return
        if self.space == "core":
            cores = core_space(compress(updates).updates)[2]
            yield from ((i, cores[i]) for i in there)
        elif self.space == "factors":
            yield from ((i, half) for i in there for half in updates[i])
        else:
            if self.space == "knots":
                updates = [LoraFactors(*part) for part in knots_space(updates).representations]
            tiles = _tiles(updates)
            yield from ((i, updates[i].B[rows] @ updates[i].A) for i in there for rows in tiles)

    def _cut_delta(self, matrix: Tensor, ks: Sequence[int], rng: np.random.RandomState) -> list[LoraFactors]:
        """Cut a merged update to each rank of ``ks``: exact SVDs are one, randomised ones each of their own noise."""
        exact = [k for k in ks if not self._randomizes(min(matrix.shape), k)]
        if exact:
            widest = LoraFactors(*split_svd(*dense_svd(matrix), max(exact)))
        merged = []
        for k in ks:
            if k in exact:
                merged.append(leading_msus(widest, k))
                continue
            fresh = deepcopy(rng)  # of each rank what it would draw alone
            noise = torch.from_numpy(fresh.standard_normal((matrix.shape[1], k + _OVERSAMPLED))).to(matrix)
            merged.append(LoraFactors(*split_svd(*dense_randomized_svd(matrix, k, noise), k)))
        return merged

    def _randomizes(self, width: int, k: int) -> bool:
        columns = k + _OVERSAMPLED
        pays = width >= _LARGE and 4 * columns <= width
        return columns < width and (self.svd_solver == "randomized" or (self.svd_solver == "auto" and pays))


def _tiles(updates: Sequence[LoraFactors]) -> list[slice]:
    step = _step(updates)
    return [slice(start, start + step) for start in range(0, updates[0].d_out, step)]


def _step(updates: Sequence[LoraFactors]) -> int:
    """Rows of a tile."""
    return max(1, _TILE // (updates[0].d_in * len(updates)))


def uniform_like(x: Tensor, rng: np.random.RandomState) -> Tensor:
    """Draw numbers in [0, 1), one an entry, row by row: blocks of rows draw what the whole tensor would."""
    return torch.from_numpy(rng.random_sample(tuple(x.shape))).to(x.device)


def _streams(
    updates: Sequence[LoraFactors], weights: np.ndarray, rng: np.random.RandomState
) -> list[np.random.RandomState]:
    """Give each adapter a random stream of its own, which neither the adapters' order nor their factors change.

    The streams are dealt out in the order of ``g^T W h`` for random g and h. It tells any two updates apart; copies
    of one update, equal but for round-off, are told apart by their weights.
    """
    h, g = (
        torch.from_numpy(rng.standard_normal(d)).to(updates[0].A.device) for d in (updates[0].d_in, updates[0].d_out)
    )
    key = np.array([((g @ update.B.double()) @ (update.A.double() @ h)).item() for update in updates])
    rising = np.argsort(key, kind="stable")
    copies = np.empty(len(updates), dtype=int)
    copies[rising] = np.cumsum(np.diff(key[rising], prepend=key[rising[0]]) > 1e-6 * np.abs(key).max())
    place = np.argsort(np.lexsort((key, weights, copies)))
    seeds = rng.randint(2**32, size=len(updates), dtype=np.uint64)
    return [np.random.RandomState(seed) for seed in seeds[place]]
