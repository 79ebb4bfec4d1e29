"""What a written file says of how it was made: one key in the header of its weights, for programs to read.

The record holds names and hashes, no paths and no dates: the same inputs give the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..._version import __version__
from ...adapters import Adapter, Made, Source
from ...exceptions import LorakitError
from ...factors import dtype_name
from ...files.checks import FileStamp, stamp
from ...files.safetensors import read_header

KEY = "lorakit"
VERSION = 1  # of the record's own form
Record = dict[str, Any]


def make_record(adapter: Adapter, *, layout: str, dtype: torch.dtype) -> Record:
    """Return what is to be known of an adapter that is about to be written.

    A result that was only read, and is written again, keeps the record of the file that it was read from.

    Parameters
    ----------
    adapter : Adapter
        The adapter.
    layout : str
        In which it is written.
    dtype : torch.dtype
        In which it is written.

    Returns
    -------
    dict
        What JSON can hold. ``sources``: name and SHA-256 of the weights, and of the config where there is one.
        ``operations``: each an estimator with its parameters and what went into it, a source or what an operation
        before it made. ``result``: which of them the file holds; None if that is not known. ``rounded_to``: dtypes in
        which the same values were stored before.
    """
    written = {"dtype": dtype_name(dtype), "layout": layout, "modules": len(adapter)}
    origin = adapter.provenance.origin
    if isinstance(origin, Source):
        before = _inherited(origin, len(adapter))
        if before is not None:
            rounded = {*before["rounded_to"], before["dtype"]} - {written["dtype"]}
            return {**before, **written, "rounded_to": sorted(rounded)}
    history = _History()
    result = None if origin is None else history.place(origin)
    if result is None:
        history.sources = [_source(source) for source in adapter.provenance.sources]
        history.operations = [{"estimator": text, "inputs": None} for text in adapter.provenance.operations]
    return {
        "record": VERSION,
        "version": __version__,
        "sources": history.sources,
        "operations": history.operations,
        "result": result,
        "rounded_to": [],
        **written,
    }


def header_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record as the metadata of a safetensors header."""
    return {KEY: json.dumps(record, sort_keys=True, separators=(",", ":"))}


def read_record(metadata: Mapping[str, str]) -> Record | None:
    """Return the record that the metadata of a header holds; None if there is none.

    Raises
    ------
    ValueError
        If it is not what :func:`make_record` makes, saying why.
    """
    if KEY not in metadata:
        return None
    try:
        record = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its record is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("record") != VERSION:
        seen = record.get("record") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"its record is of version {seen!r}, this lorakit reads version {VERSION}")
    if not _well_formed(record):
        raise ValueError("its record is not as lorakit writes them")
    return record


def file_digest(path: Path | None) -> str | None:
    """Return the SHA-256 of a file, None if there is no such file; it is read once, a piece at a time."""
    if path is None or not path.is_file():
        return None
    return _digest(path, stamp(path))


@lru_cache(maxsize=1024)
def _digest(path: Path, _: FileStamp) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _History:
    """Sources and operations in the order in which they are needed, each once."""

    def __init__(self) -> None:
        self.sources: list[Record] = []
        self.operations: list[Record] = []
        self._places: dict[Any, int] = {}

    def place(self, origin: Source | Made) -> dict[str, int] | None:
        """Return where an origin stands in the record; None if it, or what it was made of, is not known."""
        if isinstance(origin, Source):
            if origin not in self._places:
                self._places[origin] = len(self.sources)
                self.sources.append(_source(origin))
            return {"source": self._places[origin]}
        step = origin.step
        if step not in self._places:
            inputs = []
            for name, made in step.inputs:
                found = None if made is None else self.place(made)
                if found is None:
                    return None
                inputs.append({"name": name, **found})
            self._places[step] = len(self.operations)
            self.operations.append({"estimator": step.operation, "inputs": inputs})
        return {"operation": self._places[step], "output": origin.output}


def _source(source: Source) -> Record:
    if source.path is None:
        return {"name": source.name, "sha256": None, "config_sha256": None, "in_memory": True}
    return {
        "name": source.name,
        "sha256": file_digest(source.path),
        "config_sha256": file_digest(source.config),
        "in_memory": False,
        **({} if source.hub is None else {"hub": source.hub}),
    }


def _inherited(source: Source, n_modules: int) -> Record | None:
    """Return the record of the file that an adapter was read from, if it says how all its modules were made."""
    with suppress(LorakitError, ValueError, OSError):
        if source.path is not None and source.path.is_file():
            record = read_record(read_header(source.path).metadata)
            made = record is not None and "operation" in (record["result"] or ())
            if record is not None and made and record["modules"] == n_modules:
                return record
    return None


def _well_formed(record: Record) -> bool:
    sources, operations = record.get("sources"), record.get("operations")
    if not isinstance(sources, list) or not isinstance(operations, list):
        return False
    texts = all(isinstance(record.get(key), str) for key in ("version", "dtype", "layout"))
    rounded = record.get("rounded_to")
    known = all(
        isinstance(source, dict) and isinstance(source.get("name"), str) and _text_or_none(source, "sha256")
        and _text_or_none(source, "config_sha256")
        for source in sources
    )  # fmt: skip
    if not texts or not known or not isinstance(rounded, list) or not all(isinstance(dtype, str) for dtype in rounded):
        return False
    if type(record.get("modules")) is not int or "result" not in record:
        return False
    if record["result"] is None:
        return all(isinstance(op, dict) and isinstance(op.get("estimator"), str) for op in operations)
    return _points_at(record["result"], len(sources), len(operations)) and all(
        isinstance(op, dict)
        and isinstance(op.get("estimator"), str)
        and isinstance(op.get("inputs"), list)
        # only at operations before it: no circles
        and all(_points_at(made, len(sources), i) and isinstance(made.get("name"), str) for made in op["inputs"])
        for i, op in enumerate(operations)
    )


def _points_at(place: Any, n_sources: int, n_operations: int) -> bool:
    if not isinstance(place, dict):
        return False
    if "source" in place:
        return type(place["source"]) is int and 0 <= place["source"] < n_sources
    number, output = place.get("operation"), place.get("output")
    return type(number) is int and 0 <= number < n_operations and type(output) is int and output >= 0


def _text_or_none(fields: Mapping[str, Any], key: str) -> bool:
    return key in fields and isinstance(fields[key], str | None)
