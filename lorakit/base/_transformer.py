"""Base class of transformers: as many adapters out as in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any, ClassVar, Self

from .._execution import iter_modules, read_module, to_output
from .._sklearn import fit_context
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..factors import LoraFactors
from ..provenance import Made, combined
from ..results import Results
from ._estimator import AdapterEstimator


class BaseTransformer(AdapterEstimator):
    """Base class of steps that change adapters one module at a time: an AdapterSet in, one of the same size out.

    A subclass implements :meth:`_change_module`. It is stateless: :meth:`fit` only checks, and :meth:`transform`
    changes what it is given. Pipelines can therefore put it before a merger.
    """

    _keeps_differences: ClassVar[bool] = False  # whether differences of whole parameters stay as they are
    _joint: ClassVar[bool] = True  # whether what becomes of an adapter depends on those it is passed with

    def _check(self, X: AdapterSet) -> None:
        """Refuse adapters or parameters that cannot be worked with, before any work is done."""

    def _prepare(self, X: AdapterSet) -> Any:
        """Look at all adapters once, before the loop over modules; what it returns must pickle."""
        return None

    @abstractmethod
    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        """Change one module of all adapters.

        Parameters
        ----------
        updates : list of LoraFactors
            One an adapter, in float32 or float64; of rank 0 where the adapter lacks the module.
        module : str
            The module's name.
        prepared : object
            What :meth:`_prepare` returned.
        seed : int
            For ``module_rng``, where random numbers are needed.

        Returns
        -------
        list of LoraFactors
            As many, in the same order. What is returned for an adapter that lacks the module is dropped.
        """

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> Self:
        """Check the adapters and the parameters; nothing is learned.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        X = check_adapters(X, differences=self._keeps_differences)
        self._check(X)
        self.module_names_in_ = X.module_names
        self.n_adapters_in_ = len(X)
        return self

    def transform(self, X: AdapterSet | Iterable[Adapter]) -> AdapterSet:
        """Change every adapter.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters. They are not changed themselves.

        Returns
        -------
        AdapterSet
            As many adapters as X, in the same order, under the same names.
        """
        X = check_adapters(X, differences=self._keeps_differences)
        self._validate_params()
        task = partial(self._transform_module, prepared=self._prepare(X), seed=self._seed())
        made = [Results() for _ in X]

        def leave(module: str, updates: list[Any]) -> list[Any]:
            given = zip(X, made, updates, strict=True)
            return [kept.leave(update) if module in adapter else update for adapter, kept, update in given]

        loop = iter_modules(lambda module: task, X, n_jobs=self.n_jobs, verbose=self.verbose, leave=leave)
        with closing(loop) as changed:
            for module, updates in zip(X.module_names, changed, strict=True):
                for adapter, results, update in zip(X, made, updates, strict=True):
                    if module in adapter:
                        results.put(module, update)
        origins = self._made(X)
        return AdapterSet(
            results.adapter(
                name=adapter.name,
                kinds={module: info.kind for module, info in adapter.infos.items()},
                provenance=combined([adapter.provenance], origins[i], adapter.differences),
            )
            for i, (adapter, results) in enumerate(zip(X, made, strict=True))
        )

    def _transform_module(self, X: AdapterSet, module: str, *, prepared: Any, seed: int) -> list[LoraFactors]:
        changed = self._change_module(read_module(X, module, self.device), module, prepared, seed)
        return [to_output(update, adapter.dtype, module) for update, adapter in zip(changed, X, strict=True)]

    def _with_step(self, X: AdapterSet, changed: Iterable[Adapter], **provenance: Any) -> AdapterSet:
        """Return adapters that were changed lazily, in the order of X, with how they were made."""
        return AdapterSet(
            adapter.with_provenance(
                operations=(*adapter.provenance.operations, made.step.operation), made=made, **provenance
            )
            for adapter, made in zip(changed, self._made(X), strict=True)
        )

    def _made(self, X: AdapterSet) -> list[Made]:
        """Return for each adapter what is to be remembered of how it was made."""
        if self._joint:
            step = self._step(X)
            return [Made(step, i) for i in range(len(X))]
        return [Made(self._step(X[i : i + 1])) for i in range(len(X))]

    def __sklearn_is_fitted__(self) -> bool:
        return True  # stateless

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags
