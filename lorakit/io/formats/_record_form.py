"""Whether a text that calls itself a record has the form of one: nothing in a file is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._recipes import is_recipe


def is_well_formed(record: Mapping[str, Any]) -> bool:
    """Whether a record of version 1 or 2 has every part that a record has, and points only at what is in it."""
    sources, operations, result = record.get("sources"), record.get("operations"), record.get("result", "none")
    if not isinstance(sources, list) or not isinstance(operations, list):
        return False
    old = record["record"] == 1
    return (
        all(isinstance(record.get(key), str) for key in ("dtype", "layout"))
        and _has_version(record, old=old)
        and type(record.get("modules")) is int
        and _is_texts(record.get("rounded_to"))
        and all(map(_is_source, sources))
        and all(_is_operation(operation, old=old) for operation in operations)
        and (result is None or (_points_at(result, len(sources), len(operations)) and _is_connected(record)))
    )


def _has_version(record: Mapping[str, Any], *, old: bool) -> bool:
    if old:
        return isinstance(record.get("version"), str)
    versions = record.get("versions")
    return isinstance(versions, dict) and _is_texts(list(versions.values())) and "lorakit" in versions


def _is_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(text, str) for text in found)


def _is_source(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("name"), str)
        and all(key in found and isinstance(found[key], str | None) for key in ("sha256", "config_sha256"))
    )


def _is_operation(found: Any, *, old: bool) -> bool:
    if not isinstance(found, dict):
        return False
    return isinstance(found.get("estimator" if old else "text"), str) or (not old and is_recipe(found))


def _is_connected(record: Mapping[str, Any]) -> bool:
    """Whether each operation takes sources, or what operations before it made: no circles."""
    n_sources = len(record["sources"])
    return all(
        isinstance(operation.get("inputs"), list)
        and all(_points_at(given, n_sources, i) and isinstance(given.get("name"), str) for given in operation["inputs"])
        for i, operation in enumerate(record["operations"])
    )


def _points_at(place: Any, n_sources: int, n_operations: int) -> bool:
    if not isinstance(place, dict):
        return False
    if "source" in place:
        return type(place["source"]) is int and 0 <= place["source"] < n_sources
    number, output = place.get("operation"), place.get("output")
    return type(number) is int and 0 <= number < n_operations and type(output) is int and output >= 0
