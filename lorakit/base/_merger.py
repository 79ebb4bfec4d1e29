"""Base class of mergers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._execution import iter_modules, map_modules, module_rng, read_module, to_output
from .._ranks import Rank, bytes_of_rank, choose_ranks, needs_spectra
from .._sklearn import Interval, StrOptions, fit_context
from .._validation import check_adapters, check_equal_ranks, check_rank, check_strengths, check_weights, refuse_both
from ..adapter_set import AdapterSet
from ..adapters import Adapter, ModuleInfo
from ..exceptions import IncompatibleAdaptersError
from ..factors import LoraFactors
from ..provenance import Made, combined
from ._comparing import Comparing
from ._estimator import AdapterEstimator, spectrum_of_mean
from ._results import (
    OVERLAP,
    Learned,
    Merge,
    Outcome,
    Products,
    error_of_mean,
    is_nothing,
    largest_k,
    norm_of_merged,
    rounding_of,
    warn_of_zeros,
)

if TYPE_CHECKING:
    from ._adding import AddedDifferences


class BaseMerger(Comparing, AdapterEstimator):
    """Base class of mergers: many adapters in, one out.

    A subclass sets ``method`` and implements :meth:`_merge_module_path`; everything else is here. See
    :doc:`/contributing` for a worked example, and :func:`lorakit.testing.check_merger` to test one.

    A merger is a *reducer*: :meth:`fit` merges, and :meth:`transform` returns the merged adapter whatever it is given.
    A scorer that calls ``transform`` on held-out adapters therefore does not merge them.
    """

    needs_data: ClassVar[bool] = False  # whether it must be given more than adapters
    _signed_weights: ClassVar[bool] = False  # whether a negative weight has a meaning
    _subtracts: bool = False  # of a worker: whether a weight or a strength is negative
    strengths: Any = None  # a parameter of the subclasses

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **AdapterEstimator._parameter_constraints,
        "weights": ["array-like", dict, None],
        "strengths": ["array-like", dict, None],
        "scale": [Interval(Real, None, None, closed="neither"), StrOptions({"match"})],
        "scale_target": [Interval(Real, 0, None, closed="neither")],
        "scale_scope": [StrOptions({"module", "model"})],
    }

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether the adapters must share one rank at each module."""
        return False

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        """Return the estimator whose :meth:`_merge_module_path` is to run on every module.

        For methods that must look at the whole model first: return a copy that carries what they found. ``ranks`` are
        the ``k`` at which each module is merged, one unless :func:`~lorakit.rank_path` asks for more;
        ``module_rng(seed, module)`` is its ``rng``.
        """
        return self

    def _for_module(self, module: str) -> Self:
        """Return the estimator to send to a worker that merges one module.

        For methods that keep something for every module: return a copy that carries this module's part alone.
        """
        return self

    @property
    def weights_as_copies(self) -> bool:
        """Whether an adapter of weight 2 counts as much as the adapter listed twice."""
        return True

    @property
    def averages(self) -> bool:
        """Whether equal weights give a mean of what is merged; ``strengths`` give the sum instead."""
        return False

    @property
    def _weights_degree(self) -> int:
        """Power of the factor by which the update grows if all weights grow by one factor and are not normalised."""
        return 1

    @property
    def _rank_rule(self) -> str:
        """What :meth:`_rank_limit` is, for messages."""
        return "the adapters' rank" if self.needs_equal_ranks else "the sum of the adapters' ranks"

    def _rank_limit(self, infos: Sequence[ModuleInfo]) -> int:
        """Return the largest ``k`` at one module, from what each adapter that has it says of it: :attr:`_rank_rule`."""
        ranks = [info.rank for info in infos]
        return max(ranks) if self.needs_equal_ranks else sum(ranks)

    @abstractmethod
    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        """Merge one module, at each rank of ``ks``.

        :meth:`fit` asks for one rank and :func:`~lorakit.rank_path` for several, so that work that does not depend on
        the rank can be done once. A result must not depend on which other ranks are asked for.

        Parameters
        ----------
        updates : sequence of LoraFactors
            One for each adapter that is merged, on one device, in one dtype (float32 or float64); of rank 0 where the
            adapter lacks the module. Adapters of weight 0 are left out.
        weights : ndarray of shape (n_adapters,)
            Their weights, none of them 0; the absolute values sum to 1. With ``strengths``, by which the updates have
            been multiplied, all weights are alike: 1 if :attr:`averages`, so that a mean becomes a sum.
        ks : sequence of int or None
            Ranks of the results, each at most :meth:`_rank_limit`; None is the method's own choice.
        rng : RandomState
            The module's own, and the only source of randomness to use. Where every rank draws numbers, each draws
            from a copy of it.

        Returns
        -------
        list of (LoraFactors, dict)
            For each rank, the merged update before ``scale``, and what the method learned: each entry of the dict
            becomes the attribute ``<key>_``, a dict by module. But for the entry 'overlap': a function of no arguments
            that gives the :class:`~lorakit.linalg.Overlap` of the merged update and the updates, for a method that has
            these products from its own matrices. Without it they are made anew where they are needed.
        """

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> Self:
        """Merge the adapters.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters to merge. They are not changed.
        y : None
            Ignored.

        Returns
        -------
        self
            With the result in ``merged_``.
        """
        self._fit_ranks(X, [self])
        return self

    def _fit_ranks(self, X: AdapterSet | Iterable[Adapter], mergers: Sequence[Self]) -> None:
        """Fit mergers that are like this one but for ``k``, in one pass over the modules."""
        X = check_adapters(X, differences=self._coefficients(np.ones(1)) is not None)
        given, weights, subtracts = self._weighed(X)
        for merger in mergers:  # by all adapters: a search over weights that sets some to 0 keeps its k
            if not needs_spectra(merger.k):
                check_rank(merger.k, self._limits(X), partial(largest_k, self))
        positions = np.flatnonzero(weights)  # an adapter of weight 0 is left out: it has no rank, no vote and no dtype
        counted, weights = given[positions], weights[positions]
        if self.needs_equal_ranks:
            check_equal_ranks(counted)
        ranks = self._ranks(counted, weights, [merger.k for merger in mergers])
        seed = self._seed()
        worker = self._unfitted()
        worker._subtracts = subtracts
        worker._compares = self._compares and len(positions) == len(X) and self.strengths is None
        worker = worker._prepared(counted, weights, ranks, seed)
        options: dict[str, Any] = {"weights": weights, "seed": seed, "dtype": counted.dtype}

        def task_of(module: str) -> Any:
            return partial(worker._for_module(module)._fit_module, ks=ranks[module], **options)

        merges, added = [Merge() for _ in mergers], self._added_differences(X)
        how: dict[str, Any] = {"n_jobs": self.n_jobs, "verbose": self.verbose, "leave": partial(Merge.leave, merges)}
        with closing(iter_modules(task_of, counted, **how)) as merged:
            for module, outcomes in zip(counted.module_names, merged, strict=True):
                for merge, outcome in zip(merges, outcomes, strict=True):
                    merge.add(module, outcome)
        for merger, merge in zip(mergers, merges, strict=True):
            if self._scaled_last:
                self._rescale(merge, np.abs(weights), counted.dtype, {} if added is None else added.norms)
            if added is not None:
                of_model = next(iter(merge.scales.values())) if self._scaled_last else None
                merge.differences = added.scaled(self, of_model)
            merge.fill(X, counted.dtype)
            merger._store(X, positions, merge)
            if self._compares:
                merger._overlaps = merge.overlaps
            warn_of_zeros(merger, merge)

    def _weighed(self, X: AdapterSet) -> tuple[AdapterSet, np.ndarray, bool]:
        """Return what is merged, with which weights, and whether anything is subtracted.

        Strengths multiply the updates, which then weigh the same: ``1 / T`` each, or 1 where the rule is a mean, so
        that it becomes a sum.
        """
        refuse_both(self.weights, self.strengths)
        if self.strengths is None:
            weights = check_weights(self.weights, X.names, signed=self._signed_weights)
            return X, weights, bool((weights < 0).any())
        from .._scaled import scaled_adapter  # few merges need it

        strengths = check_strengths(self.strengths, X.names)
        counts = strengths != 0
        weights = counts / (1 if self.averages else counts.sum())
        given = (scaled_adapter(x, c) if c else x for x, c in zip(X, strengths.tolist(), strict=True))
        return AdapterSet(given), weights, bool((strengths < 0).any())

    def _unfitted(self) -> Self:
        """Return a copy without what an earlier fit learned: it need not travel to the workers."""
        worker = copy(self)
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(worker, name)
        return worker

    def _store(self, X: AdapterSet, positions: np.ndarray, merge: Merge) -> None:
        """Set the fitted attributes; ``positions`` are those of the adapters that were merged."""
        kinds = {module: info.kind for adapter in X for module, info in adapter.infos.items()}
        for learned_before in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, learned_before)  # other parameters may learn other things
        step = self._step(X)
        if step.recipe is not None:
            step = replace(step, recipe={**step.recipe, "factor": merge.factor()})
        provenance = combined([adapter.provenance for adapter in X], Made(step), merge.differences)
        self.merged_ = merge.results.adapter(name=self.method, kinds=kinds, provenance=provenance)
        self.module_names_in_ = X.module_names
        self.n_adapters_in_ = len(X)
        for key, by_module in merge.learned.items():
            setattr(self, f"{key}_", by_module)

    def _added_differences(self, X: AdapterSet) -> AddedDifferences | None:
        if all(adapter.differences is None for adapter in X):
            return None
        from ._adding import AddedDifferences  # few adapters have some

        return AddedDifferences(self, X)

    def _coefficients(self, weights: np.ndarray) -> np.ndarray | None:
        """Return the factors of the updates in the sum that the result is, scale and rank apart; None if it is none."""
        return None

    def _limits(self, X: AdapterSet) -> dict[str, int]:
        """Largest ``k`` of each module."""
        return {module: self._rank_limit([info for info in X.infos(module) if info]) for module in X.module_names}

    def _ranks(self, X: AdapterSet, weights: np.ndarray, ks: Sequence[Rank]) -> dict[str, list[int | None]]:
        """Ranks of each module, one for each of ``ks``."""
        limits = self._limits(X)
        spectra = {}
        if any(needs_spectra(k) for k in ks):
            task = partial(spectrum_of_mean, weights=weights.tolist(), device=self.device)
            found = map_modules(task, X, n_jobs=self.n_jobs, verbose=self.verbose)
            spectra = dict(zip(X.module_names, found, strict=True))
        some = {module: next(filter(None, X.infos(module))) for module in limits}
        costs = {m: bytes_of_rank(info.d_in, info.d_out, X.dtype.itemsize) for m, info in some.items()}
        by_rank: list[Mapping[str, int | None]] = []
        for k in ks:
            if k is None or isinstance(k, (int, np.integer)):
                by_rank.append({module: k and min(int(k), limit) for module, limit in limits.items()})
            else:
                by_rank.append(choose_ranks(k, spectra, limits, costs))
        return {module: [ranks[module] for ranks in by_rank] for module in limits}

    def _fit_module(
        self,
        X: AdapterSet,
        module: str,
        *,
        weights: np.ndarray,
        ks: Sequence[int | None],
        seed: int,
        dtype: torch.dtype,
    ) -> list[Outcome]:
        updates = read_module(X, module, self.device)
        merged = self._merge_module_path(updates, weights, ks, module_rng(seed, module))
        outcomes = []
        for factors, learned in merged:
            products = Products(factors, updates, learned.pop(OVERLAP, None))
            outcomes.append(self._outcome(factors, learned, products, weights, dtype, module))
        return outcomes

    def _outcome(
        self,
        factors: LoraFactors,
        learned: Learned,
        products: Products,
        weights: np.ndarray,
        dtype: torch.dtype,
        module: str,
    ) -> Outcome:
        """Scale one module's result, if its scale is known, and bring it back."""
        overlap = products.overlap if self._compares else None
        norm = norm_of_merged(factors, products, weights, subtracts=self._subtracts)
        norms = np.array([norm, *products.given] if self.scale == "match" else [])
        if self._scaled_last:
            scale, out = 1.0, factors.to(device="cpu")
        else:
            scale = self._matching_scale(norms, np.abs(weights)) if self.scale == "match" else float(self.scale)
            scaled = factors.scaled(scale)
            out = to_output(scaled, dtype, module)
            overlap = overlap and overlap.scaled(scale, rounding_of(scaled, out))
        # what is nothing in the output's dtype is lost as well, unless nothing was asked for
        gone = norm == 0 or (self.scale != 0 and is_nothing(out))
        nothing = gone and not any(products.given)
        return Outcome(out, learned, norms, gone, nothing, scale, overlap)

    @property
    def _scaled_last(self) -> bool:
        """Whether the scale is known only when every module is merged."""
        return bool(self.scale == "match" and self.scale_scope == "model")

    def _matching_scale(self, norms: np.ndarray, weights: np.ndarray) -> float:
        # weights sum to 1 but for round-off, or to the number of adapters; see _weighed
        mean = float(weights @ norms[1:]) / round(float(weights.sum()), 6)
        # a merge that came out as zero has no direction to scale
        return self.scale_target * mean / norms[0] if norms[0] > 0 else 1.0

    def _rescale(self, merge: Merge, weights: np.ndarray, dtype: torch.dtype, others: Mapping[str, np.ndarray]) -> None:
        """Bring the results to the one scale that matches the norm of the whole model, other parameters included."""
        norms = [*merge.norms.values(), *others.values()]
        scale = self._matching_scale(np.sqrt(np.sum([n**2 for n in norms], axis=0)), weights)
        merge.rescale(scale, dtype)

    def transform(self, X: AdapterSet | Iterable[Adapter]) -> AdapterSet:
        """Return the merged adapter, whatever X holds.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            Checked against the modules that were merged, and not merged: a scorer passes left-out adapters here.

        Returns
        -------
        AdapterSet
            ``AdapterSet([merged_])``.

        Raises
        ------
        IncompatibleAdaptersError
            If a module of X is not in ``merged_``, or has other widths.
        """
        check_is_fitted(self)
        self._check_seen(check_adapters(X, differences=True))
        return AdapterSet([self.merged_])

    def _check_seen(self, X: AdapterSet) -> None:
        for adapter in X:
            for module, info in adapter.infos.items():
                seen = self.merged_.infos.get(module)
                if seen is None or (seen.d_in, seen.d_out, seen.kind) != (info.d_in, info.d_out, info.kind):
                    there = "lacks it" if seen is None else f"has {seen.d_out} x {seen.d_in} ({seen.kind.name})"
                    raise IncompatibleAdaptersError(
                        f"module {module!r} is {info.d_out} x {info.d_in} ({info.kind.name}) in adapter "
                        f"{adapter.name!r}",
                        module=module,
                        remedy=f"the adapters this {type(self).__name__} was fitted on: {there}",
                    )

    def score(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> float:
        """Score the merge: minus the relative reconstruction error of the mean update of X.

        On the adapters it was fitted on this rewards rank: for :class:`~lorakit.SVDMerger` the largest ``k`` always
        wins. Choose ``k`` on task data, or on left-out adapters. The plain mean is taken for the truth, so ``weights``,
        ``scale`` and LEGO's reweightings count as errors.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            Adapters whose mean update the merge should equal.
        y : None
            Ignored.

        Returns
        -------
        float
            ``-||W_merged - mean_i W_i|| / ||mean_i W_i||`` over all modules, in Frobenius norms; 0 is perfect.
        """
        check_is_fitted(self)
        X = check_adapters(X)
        self._check_seen(X)
        return -error_of_mean(self.merged_, X)
