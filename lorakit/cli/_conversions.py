"""What commands do to the names and the stored numbers of an adapter, done so that a record can say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import Adapter, LoraFactors, convert_adapter, join_experts, split_experts
from ..factors import dtype_name
from ..files.safetensors import FLOAT_DTYPES
from ..io.formats._record_form import is_conversions


def in_memory(adapter: Adapter, *, without_padding: bool) -> Adapter:
    """Return an adapter that holds its factors; without the units of zeros that padding to one rank left, if wanted."""
    modules = {}
    for module, factors in adapter.items():
        a, b = factors
        if without_padding:
            kept = a.any(dim=1) & b.any(dim=0)
            a, b = a[kept], b[:, kept]
        modules[module] = LoraFactors(a, b)
    kinds = {module: info.kind for module, info in adapter.infos.items()}
    made = Adapter(modules, name=adapter.name, kinds=kinds, provenance=adapter.provenance)
    done = (*adapter.provenance.conversions, {"without_padding": True})
    return made.with_provenance(conversions=done) if without_padding else made


def renamed_modules(adapter: Adapter, renaming: Mapping[str, str]) -> Adapter:
    """Return an adapter with some of its modules renamed, and say it in its provenance: as one prefix if it is one."""
    old, new = next(iter(renaming.items()))
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    prefix = {module: new + module.removeprefix(old) for module in adapter if module.startswith(old)}
    done: dict[str, Any] = {"prefix": [old, new]} if prefix == renaming else {"names": dict(renaming)}
    return _renamed(adapter, renaming, done)


def converted(adapter: Adapter, conversions: Sequence[Mapping[str, Any]]) -> Adapter:
    """Do again what a record says was done to an adapter.

    Raises
    ------
    CannotTell
        If it says something else than records say, or it cannot be done.
    """
    from ._rebuild import CannotTell  # which imports every estimator, and converting needs none

    if not is_conversions(conversions):
        raise CannotTell("its record says of an adapter what no record says")
    for step in conversions:
        try:
            adapter = _converted(adapter, step)
        except ValueError as error:
            raise CannotTell(f"{adapter.name} cannot be converted as it was: {error}") from error
    return adapter


def _converted(adapter: Adapter, step: Mapping[str, Any]) -> Adapter:
    if "to" in step:
        return convert_adapter(adapter, step["to"], component=step.get("component"), family=step.get("family"))
    if "dtype" in step:
        dtypes = {dtype_name(dtype): dtype for dtype in FLOAT_DTYPES.values()}
        if step["dtype"] not in dtypes:
            raise ValueError(f"there is no dtype {step['dtype']!r}")
        return adapter.astype(dtypes[step["dtype"]])
    if "without_padding" in step:
        return in_memory(adapter, without_padding=True)
    if "split_experts" in step:
        return split_experts(adapter, **step["split_experts"])
    if "join_experts" in step:
        return join_experts(adapter, **step["join_experts"])
    if "names" in step:
        return _renamed(adapter, step["names"], step)
    old, new = step["prefix"]
    return _renamed(adapter, {m: new + m.removeprefix(old) for m in adapter if m.startswith(old)}, step)


def _renamed(adapter: Adapter, renaming: Mapping[str, str], done: Mapping[str, Any]) -> Adapter:
    renamed = adapter.rename_modules(lambda module: renaming.get(module, module))
    return renamed.with_provenance(conversions=(*adapter.provenance.conversions, done))
