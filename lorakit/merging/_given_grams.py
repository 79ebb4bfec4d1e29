"""What RegMean asks of the Grams that it is given."""

from __future__ import annotations

from typing import Any

from ..activations import Gram
from ..adapter_set import AdapterSet
from ..exceptions import IncompatibleAdaptersError, ParameterError, Words


def check_grams(X: AdapterSet, grams: Any) -> None:
    """Check that there are Grams of all modules of all adapters, before any is merged."""
    if grams is None:
        raise ParameterError(
            "the method regmean needs to know the inputs of each adapter's task",
            remedy=Words(
                "pass grams={adapter.name: collect_grams(model, adapter, batches)} for every adapter, or take a method "
                "that needs no data, such as SVDMerger",
                "give them in Python, or take a method that needs no data, such as --method svd",
            ),
        )
    if missing := [name for name in X.names if name not in grams]:
        raise ValueError(f"grams names no Grams for the adapters {missing}; it names {list(grams)}")
    for adapter in X:
        _check_modules(adapter.name, grams[adapter.name], adapter.infos)


def _check_modules(name: str, grams: Any, infos: Any) -> None:
    for module, info in infos.items():
        gram = grams.get(module)
        if not isinstance(gram, Gram):
            raise ValueError(
                f"grams[{name!r}] has no Gram for module {module!r}; collect_grams gathers those of all modules of the "
                "adapter it is given, so were these collected with another adapter?"
            )
        if gram.d_in != info.d_in:
            raise IncompatibleAdaptersError(
                f"module {module!r} has d_in {info.d_in} in adapter {name!r} and {gram.d_in} in its Grams",
                module=module,
                remedy="collect them with the base model that the adapter was trained on",
            )
