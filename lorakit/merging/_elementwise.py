"""Base of the element-wise rules (TIES and others like it), and the spaces in which they act."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._sklearn import StrOptions
from ..adapters import ModuleInfo
from ..base import OVERLAP, BaseMerger, Learned, leading_msus
from ..factors import LoraFactors
from ..linalg import (
    Overlap,
    compress,
    core_space,
    dense_randomized_svd,
    dense_svd,
    elected_mean,
    fixed_direction,
    knots_space,
    norm_ratio,
    overlap_of,
    split_svd,
    truncate_wide,
)
from ..linalg.sparsify import Norm
from ._common import cuts, largest_rank, stack_factors
from ._draws import streams
from ._tiles import TILE, Matrices, Products, Stack

_OVERSAMPLED = 16  # columns of the sketch beyond k
_LARGE = 1024  # width from which a full SVD takes seconds

SIGN_ELECTION: list[Any] = ["boolean", StrOptions({"frequency"})]  # what the parameter of this name may be


class Inside(NamedTuple):
    """A merged update and the updates that it was merged from, in orthonormal frames: products are the updates' own."""

    merged: LoraFactors
    updates: Sequence[tuple[Tensor, Tensor]]

    def overlap(self, k: int) -> Callable[[], Overlap]:
        """Return the function that gives the products of the leading k units."""
        return partial(overlap_of, leading_msus(self.merged, k), self.updates)


class ElementwiseMerger(BaseMerger):
    """A rule on T tensors of one shape, applied in the space that ``space`` names.

    ================  ===============================================================  ===========
    space             tensors                                                          ranks
    ================  ===============================================================  ===========
    ``factors``       A and B themselves (direct merge)                                one for all
    ``delta``         the updates B A (multiplied merge), cut to k by SVD              any
    ``core``          the updates in common bases of the updates, R x R                any
    ``core_factors``  the updates in common bases of the factors, R x R (Core Space)   any
    ``knots``         the updates in common outputs, R x d_in (KnOTS)                  any
    ================  ===============================================================  ===========

    A rule has up to four steps. :meth:`_measure` sees a whole tensor of one adapter (for thresholds),
    :meth:`_sparsify` changes a block of its rows, :meth:`_survey` sees the blocks of all adapters before any are
    merged, :meth:`_combine` merges them. In the spaces 'delta' and 'knots' a block is a few rows. A module then takes
    the memory of about two of its updates, or two representations, however many adapters there are; small modules are
    held whole.
    """

    _draws: ClassVar[bool] = True  # whether :meth:`_sparsify` may draw random numbers
    _fills: ClassVar[bool] = True  # whether the update can have a higher rank than the sum of the adapters' ranks

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "space": [StrOptions({"factors", "delta", "core", "core_factors", "knots"})],
        "svd_solver": [StrOptions({"auto", "exact", "randomized"})],
    }

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether the rule acts on A and B themselves."""
        return self.space == "factors"

    @property
    def invariances(self) -> frozenset[str]:
        """All, unless the rule acts on A and B themselves, or in bases made from them."""
        if self.space == "core_factors":
            return frozenset({"permutation", "sign"})
        return frozenset() if self.space == "factors" else super().invariances

    @property
    def weights_as_copies(self) -> bool:
        """Whether nothing is drawn: each copy would have draws of its own."""
        return not self._draws

    @property
    def _to_full_rank(self) -> bool:
        return self.space == "delta" and self._fills

    @property
    def _rank_rule(self) -> str:
        return "the module's smaller width" if self._to_full_rank else super()._rank_rule

    def _rank_limit(self, infos: Sequence[ModuleInfo]) -> int:
        if self._to_full_rank:
            return min(infos[0].d_in, infos[0].d_out)
        return super()._rank_limit(infos)

    def _measure(self, x: Tensor, adapter: int, rng: np.random.RandomState) -> Any:
        """Look at one adapter's whole tensor, (m, n), before it is taken block by block.

        ``adapter`` is its position among those that are merged; ``rng`` will draw for it, from its first row
        on, what it draws for the blocks.
        """
        raise NotImplementedError

    @property
    def _measures(self) -> bool:
        """Whether :meth:`_measure` has something to find."""
        return type(self)._measure is not ElementwiseMerger._measure

    def _sparsify(self, x: Tensor, measured: Any, rng: np.random.RandomState) -> Tensor:
        """Change some rows, (rows, n), of one adapter's tensor."""
        return x

    def _survey(self, blocks: Callable[[], Iterator[Tensor]], weights: Tensor) -> Any:
        """Look at the blocks of all adapters, (T, rows, n), from the first row to the last, as often as needed.

        Each time they are made anew, and are the same.
        """
        return None

    @abstractmethod
    def _combine(self, stack: Tensor, weights: Tensor, survey: Any) -> Tensor:
        """Merge T blocks: (T, rows, n) to (rows, n), with weights of shape (T,) and what :meth:`_survey` found."""

    def _rule(self, matrices: Matrices, weights: Tensor, rngs: Sequence[np.random.RandomState]) -> Tensor:
        """Apply the whole rule to T matrices: (T, m, n) to (m, n)."""
        merged = matrices.empty()
        if merged.numel() == 0:  # the updates are all zero: their common bases are empty
            return merged
        blocks = self._sparse(matrices, rngs, merged)
        survey = self._survey(lambda: (stack for _, stack in blocks(deepcopy(rngs))), weights)
        for rows, stack in blocks(rngs):
            merged[rows] = self._combine(stack, weights, survey)
        return merged

    def _sparse(
        self, matrices: Matrices, rngs: Sequence[np.random.RandomState], scratch: Tensor
    ) -> Callable[[Sequence[np.random.RandomState]], Iterator[tuple[slice, Tensor]]]:
        """Measure T matrices, and return the way to go over their sparse blocks with the streams that it is given."""
        measures = self._measures
        measured = [
            self._measure(matrices.whole(i, scratch), i, rng) if measures else None for i, rng in enumerate(rngs)
        ]

        def blocks(streams: Sequence[np.random.RandomState]) -> Iterator[tuple[slice, Tensor]]:
            for rows in matrices.tiles:
                yield rows, matrices.stacked(rows, lambda i, x: self._sparsify(x, measured[i], streams[i]))

        return blocks

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        ranks = [largest_rank(updates) if k is None else k for k in ks]
        if any(update.rank for update in updates):
            merged = self._merge_active(updates, weights, ranks, rng)
            if merged[0][0].rank:
                return merged
        # nothing is there to merge: no adapter that has the module has trained it
        a, b = updates[0]
        return [(LoraFactors(a.new_zeros(1, a.shape[1]), b.new_zeros(b.shape[0], 1)), {}) for _ in ks]

    def _merge_active(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        """Merge adapters that are there and count, and cut the result to each rank of ``ks``."""
        # in 'delta' the noise of the randomised SVD comes after these draws
        rngs = streams(updates, weights, rng) if self._draws or self.space == "delta" else [rng] * len(updates)
        w = torch.tensor(weights).to(updates[0].A)  # a copy: engines may send read-only weights
        if self.space == "factors":
            a, b = (self._rule(matrices, w, rngs) for matrices in self._seen(updates, weights))
            return [(factors, {}) for factors in cuts(LoraFactors(a, b), ks)]
        if self.space == "delta":
            return [(factors, {}) for factors in self._cut_delta(self._rule(Products(updates), w, rngs), ks, rng)]
        matrices, back = self._small_space(updates, weights)
        widest, inside = back(self._rule(matrices, w, rngs), max(ks))
        return [(leading_msus(widest, k), {} if inside is None else {OVERLAP: inside.overlap(k)}) for k in ks]

    def _seen(self, updates: Sequence[LoraFactors], weights: np.ndarray) -> list[Matrices]:
        """Return all that the rule sees of one module: one group of T matrices, or in 'factors' those of A and of B."""
        if self.space == "factors":
            return [Stack(stack) for stack in stack_factors(updates)]
        return [Products(updates) if self.space == "delta" else self._small_space(updates, weights)[0]]

    def _small_space(
        self, updates: Sequence[LoraFactors], weights: np.ndarray
    ) -> tuple[Matrices, Callable[[Tensor, int], tuple[LoraFactors, Inside | None]]]:
        """Return the updates in small common bases, and the way back to the leading k units of what is merged there.

        With these comes what they are in orthonormal frames, if there are such.
        """
        if self.space == "knots":
            space = knots_space(updates, weights.tolist())

            def expanded(merged: Tensor, k: int) -> tuple[LoraFactors, None]:
                a, b = truncate_wide(merged, k)
                return LoraFactors(a, space.expand(b)), None

            return Products([LoraFactors(*part) for part in space.representations]), expanded
        small = compress(updates)
        device = updates[0].A.device
        along = (
            small.outputs.coordinates(fixed_direction(updates[0].d_out, device)),
            small.inputs.coordinates(fixed_direction(updates[0].d_in, device)),
        )
        balanced = self.space == "core"
        u, v, cores = core_space(small.updates, weights.tolist(), balanced=balanced, along=along)

        def lifted(merged: Tensor, k: int) -> tuple[LoraFactors, Inside]:
            a, b = truncate_wide(merged, k)
            inside = LoraFactors(a @ v.mT, u @ b)
            return LoraFactors(*small.expand(tuple(inside))), Inside(inside, small.updates)

        return Stack(cores), lifted

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


def consensus(stack: Tensor, weights: Tensor, sign_election: Any) -> Tensor:
    """Weighted mean of T blocks, or of the entries that have the elected sign: (T, ...) to (...).

    ``sign_election`` is False for the mean of all; True for an election by the weighted sum; 'frequency' for one by the
    number of entries of either sign.
    """
    if sign_election is False:
        return torch.tensordot(weights, stack, dims=1)
    return elected_mean(stack, weights, vote="frequency" if sign_election == "frequency" else "total")


def norm_factor(x: Tensor, sparsify: Callable[[Tensor], Tensor], norm: Norm | None) -> float:
    """Factor that gives a tensor, (m, n), its norm back after ``sparsify``, which is applied some rows at a time."""
    if norm is None:
        return 1.0
    parts = torch.split(x, max(1, TILE // x.shape[1]))
    return norm_ratio(((part, sparsify(part)) for part in parts), norm)


def scaled(x: Tensor, factor: float) -> Tensor:
    """Multiply a tensor in place, unless by 1."""
    return x if factor == 1 else x.mul_(factor)
