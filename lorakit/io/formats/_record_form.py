"""Whether a text that calls itself a record has the form of one: nothing in a file is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._recipes import is_recipe

_MOST_FORMS = 100  # writings, one after the other


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


def is_forms(found: Any) -> bool:
    """Whether a value says how files were written: a list of them, with None for what is not known."""
    return isinstance(found, list) and 0 < len(found) <= _MOST_FORMS and all(map(_is_form, found))


def _is_form(found: Any) -> bool:
    if found is None:
        return True
    return (
        isinstance(found, dict)
        and all(isinstance(found.get(key), str) for key in ("name", "format", "layout", "dtype"))
        and type(found.get("rank")) is int
        and isinstance(found.get("of", {}), dict)
        and is_conversions(found.get("conversions", []))
    )


def is_conversions(found: Any) -> bool:
    """Whether a value says what was done to an adapter before it was written, or went into an operation."""
    return isinstance(found, list) and len(found) <= _MOST_FORMS and all(map(_is_conversion, found))


def _is_conversion(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    prefix = found.get("prefix")
    return (
        (
            set(found) <= {"to", "component", "family"}
            and "to" in found
            and all(isinstance(text, str) for text in found.values())
        )
        or (set(found) == {"dtype"} and isinstance(found["dtype"], str))
        or (set(found) == {"without_padding"} and found["without_padding"] is True)
        or (set(found) == {"names"} and isinstance(found["names"], dict) and _is_texts(list(found["names"].values())))
        or (set(found) == {"prefix"} and isinstance(prefix, list) and len(prefix) == 2 and _is_texts(prefix))
        or (set(found) == {"split_experts"} and _is_layout(found["split_experts"], {"parts": list}))
        or (
            set(found) == {"join_experts"}
            and _is_layout(found["join_experts"], {"experts": int, "parameters": list, "weights": list})
        )
    )


def _is_layout(found: Any, fields: Mapping[str, type]) -> bool:
    """Whether a value says how the experts of an adapter were split or joined."""
    kinds = {**fields, "interleaved": bool, "transposed": bool}
    return (
        isinstance(found, dict)
        and set(kinds) - {"weights"} <= set(found) <= set(kinds)
        and all(type(value) is kinds[key] for key, value in found.items())
        and all(_is_texts(value) for value in found.values() if isinstance(value, list))
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
        and is_beside(found)
    )


def is_beside(found: Mapping[str, Any]) -> bool:
    """Whether what a source was read with is as it should be: the base by its headers, the initial adapter by files."""
    base, initial = found.get("base", {"headers_sha256": ""}), found.get("initial", {})
    return (
        isinstance(base, dict)
        and isinstance(base.get("headers_sha256"), str)
        and isinstance(initial, dict)
        and all(isinstance(value, str | None) for value in (*base.values(), *initial.values()))
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
