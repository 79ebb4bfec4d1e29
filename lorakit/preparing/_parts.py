"""Fused layers and their parts, given once for all layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, ClassVar

from .._nearest import nearest
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BaseTransformer
from ..factors import LoraFactors

Parts = Mapping[str, Mapping[str, int]]


class PartsTransformer(BaseTransformer):
    """What splitting and joining share: ``parts``, and the loop over adapters."""

    _keeps_differences = True  # _joint stays: that no adapter has a layer is known of all of them only

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"parts": [Mapping, None]}

    parts: Parts | None

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

        Raises
        ------
        IncompatibleAdaptersError
            If a layer has another number of outputs than ``parts`` gives, or is no linear layer.
        ValueError
            If two modules would have one name, or, unless it was fitted, no adapter has a layer of ``parts``.
        """
        X = check_adapters(X, differences=True)
        self._validate_params()
        if not hasattr(self, "module_names_in_"):  # what is left of the adapters in a fold may lack a layer
            self._check(X)
        change = self._function()
        return self._with_step(X, (change(adapter, self._layers(adapter)) for adapter in X), conversions=())

    def _function(self) -> Callable[[Adapter, Parts], Adapter]:
        """Return what is done to one adapter, given the parts of its layers by their whole names."""
        raise NotImplementedError

    def _ends(self) -> dict[str, str]:
        """Return the ends of names that are looked for, each with the key of ``parts`` that it belongs to."""
        raise NotImplementedError

    def _check(self, X: AdapterSet) -> None:
        for fused, sizes in (self.parts or {}).items():
            wrong = not isinstance(sizes, Mapping) or not sizes
            if wrong or any(not isinstance(n, Integral) or isinstance(n, bool) or n < 1 for n in sizes.values()):
                raise ValueError(
                    f"parts must map each fused layer to the numbers of outputs of its parts, whole and at least 1; "
                    f"got {sizes!r} for {fused!r}"
                )
        ends = self._ends()
        found = {key for module in X.module_names if (end := _end(module, ends)) for key in [ends[end]]}
        missing = next((key for key in self.parts or {} if key not in found), None)
        if missing is not None:
            wanted = [end for end, key in ends.items() if key == missing]
            raise ValueError(
                f"no adapter has a module whose name is, or ends in a dot and then, {' or '.join(map(repr, wanted))}"
                f"{nearest(wanted[0], X.module_names)} The first module is {X.module_names[0]!r}"
            )

    def _layers(self, adapter: Adapter) -> Parts:
        """Return the parts of each layer that an adapter has, by whole names."""
        ends = self._ends()
        assert self.parts is not None or not ends
        layers: dict[str, dict[str, int]] = {}
        for module in adapter:
            end = _end(module, ends)
            if end is not None and self.parts is not None:
                before = module.removesuffix(end)
                sizes = self.parts[ends[end]]
                layers[before + ends[end]] = {before + part: int(size) for part, size in sizes.items()}
        return layers

    def _change_module(self, updates: list[LoraFactors], module: str, prepared: Any, seed: int) -> list[LoraFactors]:
        return updates  # of the base class's transform, which is not used


def _end(module: str, ends: Mapping[str, str]) -> str | None:
    """Return the longest of these ends that a module's name has, after a dot or as a whole."""
    found = [end for end in ends if module == end or module.endswith(f".{end}")]
    return max(found, key=len, default=None)
