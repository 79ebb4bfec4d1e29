"""Base class of pruners."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np

from .._execution import map_modules, module_rng, to_output
from .._ranks import bytes_of_rank, choose_ranks, needs_spectra
from .._validation import check_rank
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..factors import LoraFactors
from ._estimator import spectrum_of_mean
from ._transformer import BaseTransformer


class BasePruner(BaseTransformer):
    """Base class of pruners: each adapter in, the same adapter at rank ``k`` out.

    A subclass sets ``method`` and implements :meth:`_prune_module`. A pruner is stateless: :meth:`fit` only checks,
    and :meth:`transform` prunes what it is given. Modules that are at or below rank ``k`` already stay as they are.
    """

    _keeps_differences = True
    _joint = False

    @abstractmethod
    def _prune_module(self, update: LoraFactors, k: int, rng: np.random.RandomState) -> LoraFactors:
        """Prune one module of one adapter.

        Parameters
        ----------
        update : LoraFactors
            In float32 or float64, of rank above k.
        k : int
            Rank to keep.
        rng : RandomState
            The module's own; the only source of randomness to use.

        Returns
        -------
        LoraFactors
            The pruned update.
        """

    def _prune_stored(self, adapter: Adapter, module: str, k: int) -> LoraFactors | None:
        """Prune a module from the form that its file has, without its factors; None where that has no advantage."""
        return None

    def _check(self, X: AdapterSet) -> None:
        if not needs_spectra(self.k):
            limits = {module: max(i.rank for i in X.infos(module) if i) for module in X.module_names}
            check_rank(self.k, limits, "the largest k to prune these adapters to: their rank")

    def _prepare(self, X: AdapterSet) -> list[dict[str, int]]:
        return [self._ranks(adapter) for adapter in X]

    def _ranks(self, adapter: Adapter) -> dict[str, int]:
        """Rank to keep of each module of one adapter."""
        own = {module: info.rank for module, info in adapter.infos.items()}
        if not needs_spectra(self.k):
            return {module: max(1, rank // 2) if self.k is None else self.k for module, rank in own.items()}
        task = partial(spectrum_of_mean, weights=[1.0], device=self.device)
        spectra = map_modules(task, AdapterSet([adapter]), n_jobs=self.n_jobs, verbose=self.verbose)
        size = adapter.dtype.itemsize
        costs = {module: bytes_of_rank(info.d_in, info.d_out, size) for module, info in adapter.infos.items()}
        return choose_ranks(self.k, dict(zip(adapter, spectra, strict=True)), own, costs)

    def _transform_module(self, X: AdapterSet, module: str, *, prepared: Any, seed: int) -> list[LoraFactors]:
        found: dict[int, LoraFactors] = {}
        for i, (adapter, ranks) in enumerate(zip(X, prepared, strict=True)):
            if module in adapter and adapter.infos[module].rank > ranks[module]:
                pruned = self._prune_stored(adapter, module, ranks[module])
                if pruned is not None:
                    found[i] = to_output(pruned, adapter.dtype, module)
        if not found:
            return super()._transform_module(X, module, prepared=prepared, seed=seed)
        others = [i for i in range(len(X)) if i not in found and module in X[i]]
        if others:
            some = [prepared[i] for i in others]
            rest = super()._transform_module(X[others], module, prepared=some, seed=seed)
            found |= dict(zip(others, rest, strict=True))
        # what stands for an adapter that lacks the module is dropped
        return [found.get(i, next(iter(found.values()))) for i in range(len(X))]

    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        pruned = []
        for update, ranks in zip(updates, prepared, strict=True):
            k = ranks.get(module, update.rank)  # an adapter that lacks the module has nothing to prune
            cut = update.rank > k
            pruned.append(self._prune_module(update, k, module_rng(seed, module)) if cut else update)
        return pruned
