"""Bringing adapters to the module names of one family of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters import Adapter
from ..exceptions import UnsupportedAdapterError


def reading_of(name: str | None, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of reading for one adapter, of those for several: the initial adapter may go by a name."""
    initial = reading.get("initial")
    if not isinstance(initial, dict):
        return dict(reading)
    return {**reading, "initial": initial.get(name) if name is not None else None}


def under_names_of(adapter: Adapter, format: str, component: Any = None, family: Any = None) -> Adapter:
    """Return an adapter with its modules named as files of a format name them.

    Raises
    ------
    UnsupportedAdapterError
        If there are names that have no exact counterpart there.
    """
    if adapter.provenance.format == format and component is None:
        return adapter
    from ..io.convert import convert_adapter

    return convert_adapter(adapter, format, component=component, family=family)


def named_alike(x: Adapter, y: Adapter) -> tuple[Adapter, Adapter]:
    """Return two adapters with the names of one of them: the first's, if there is a way to these.

    Raises
    ------
    UnsupportedAdapterError
        If there is a way in neither direction, saying why not in the first.
    """
    try:
        return x, under_names_of(y, x.provenance.format)
    except UnsupportedAdapterError as error:
        try:
            return under_names_of(x, y.provenance.format), y
        except UnsupportedAdapterError:
            raise error from None
