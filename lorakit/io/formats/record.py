"""What a written file says of how it was made: one key in the header of its weights, for programs to read.

The record holds names and hashes, no paths and no dates: the same inputs give the same bytes on every machine.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from ..._execution import report_done
from ..._recipes import recipe_text
from ..._version import __version__
from ...adapters import Adapter, Made, Source, Step
from ...exceptions import LorakitError
from ...factors import dtype_name
from ...files import digests
from ...files.checks import FileVersion, file_version
from ...files.safetensors import read_header
from ._record_form import is_forms, is_well_formed
from ._record_v1 import upgraded

KEY = "lorakit"
VERSION = 2  # of the record's own form
Record = dict[str, Any]


def make_record(adapter: Adapter, *, layout: str, dtype: torch.dtype, rank: int | None = None) -> Record:
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
    rank : int, optional
        The largest of a module as it is written; in the portable layout that of all. Defaults to the largest that the
        adapter has.

    Returns
    -------
    dict
        What JSON can hold. ``sources``: name and SHA-256 of the weights, and of the config where there is one; where
        it was needed, the ``base``, by a hash of its headers, and the ``initial`` adapter, by its files.
        ``operations``: each the ``class`` and ``params`` of an estimator, or the ``text`` of what no estimator did, and
        what went into it: a source or what an operation before it made. ``result``: which of them the file holds; None
        if that is not known. ``versions``: of lorakit and of the libraries that it computed with. ``rounded_to``:
        dtypes in which the same values were stored before. ``written``: how the files were written that hold what the
        operations made, one after the other: name, format, layout, dtype, rank, and ``conversions`` before that; in
        all but the first, ``of``: the hashes of the file before. None in place of what an earlier lorakit wrote.
    """
    written = {"dtype": dtype_name(dtype), "layout": layout, "modules": len(adapter)}
    form: Record = {"name": adapter.name, "format": adapter.provenance.format, "layout": layout}
    rank = max((info.rank for info in adapter.infos.values()), default=0) if rank is None else rank
    form |= {"dtype": written["dtype"], "rank": rank, **_conversions(adapter.provenance.conversions)}
    origin = adapter.provenance.origin
    if isinstance(origin, Source):
        before = _inherited(origin, len(adapter))
        if before is not None:
            rounded = {*before["rounded_to"], before["dtype"]} - {written["dtype"]}
            read = {key: digest for key, digest in _source(origin).items() if key in ("sha256", "config_sha256")}
            forms = [*(before["written"] if is_forms(before.get("written")) else [None]), {**form, "of": read}]
            return {**before, **written, "rounded_to": sorted(rounded), "written": forms}
    history = _History()
    result = None if origin is None else history.place(origin)
    if result is None:
        history.sources = [_source(source) for source in adapter.provenance.sources]
        history.operations = [{"text": text, "inputs": None} for text in adapter.provenance.operations]
    return {
        "record": VERSION,
        "versions": versions(),
        "sources": history.sources,
        "operations": history.operations,
        "result": result,
        "rounded_to": [],
        "written": [form],
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
        If it is not what :func:`make_record` makes, or made in an earlier version, saying why.
    """
    if KEY not in metadata:
        return None
    try:
        record = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its record is not JSON ({error})") from error
    version = record.get("record") if isinstance(record, dict) else type(record).__name__
    if version not in (1, VERSION):
        raise ValueError(f"its record is of version {version!r}, this lorakit reads versions 1 to {VERSION}")
    if not is_well_formed(record):
        raise ValueError("its record is not as lorakit writes them")
    return upgraded(record) if version == 1 else record


def operation_text(operation: Mapping[str, Any]) -> str:
    """Return one of a record's operations as people read it."""
    return recipe_text(operation) if "class" in operation else str(operation["text"])


def versions() -> dict[str, str]:
    """Return the versions of lorakit and of the libraries that it computes with."""
    return {
        "lorakit": __version__,
        "numpy": numpy.__version__,
        "scikit-learn": version("scikit-learn"),  # importing it would take longer than most commands
        "torch": str(torch.__version__),
    }


def file_digest(path: Path | None, opened: FileVersion | None = None) -> str | None:
    """Return the SHA-256 of a file; it is read once, a piece at a time.

    Parameters
    ----------
    path : Path or None
        The file.
    opened : FileVersion, optional
        Which version of it is meant. Defaults to the one that is there.

    Returns
    -------
    str or None
        None if there is no such file, or, with a warning, if it is no longer the version that is meant, or is larger
        than 32 GiB: to hash it would take longer than what is done with it.
    """
    if path is None or not path.is_file():
        return None
    found = file_version(path)
    if found is not None and found[0] > digests.MOST_HASHED:
        warnings.warn(
            f"{path}: has {found[0] / 2**30:.0f} GiB, and files above {digests.MOST_HASHED // 2**30} GiB are not "
            "hashed: the record of what is made from it names no hash of it",
            UserWarning,
            stacklevel=2,
        )
        return None
    if found is not None and opened in (None, found):
        digest = digests.known_digest(path, found, report_done)
        if file_version(path) == found:
            return digest
    warnings.warn(
        f"{path}: has changed since it was opened, so the record of what is made from it names no hash of it; open it "
        "again",
        UserWarning,
        stacklevel=2,
    )
    return None


def hash_beside(sources: Iterable[Source]) -> None:
    """Begin to hash the files of sources, in a thread, as :func:`make_record` will ask for the hashes."""
    digests.hash_beside(
        (path, opened)
        for source in sources
        for path, opened in zip((source.path, source.config), source.opened, strict=True)
        if path is not None
    )


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
            for i, (name, made) in enumerate(step.inputs):
                done = step.conversions[i] if step.conversions else ()
                found = None if made is None else self.place(made)
                if found is None:
                    return None
                inputs.append({"name": name, **found, **_conversions(done)})
            self._places[step] = len(self.operations)
            self.operations.append({**_operation(step), "inputs": inputs})
        return {"operation": self._places[step], "output": origin.output}


def _conversions(done: Sequence[Mapping[str, Any]]) -> Record:
    return {"conversions": list(done)} if done else {}


def _operation(step: Step) -> Record:
    return {"text": step.operation} if step.recipe is None else dict(step.recipe)


def _source(source: Source) -> Record:
    if source.path is None:
        return {"name": source.name, "sha256": None, "config_sha256": None, "in_memory": True}
    return {
        "name": source.name,
        "sha256": file_digest(source.path, source.opened[0]),
        "config_sha256": file_digest(source.config, source.opened[1]),
        "in_memory": False,
        **({} if source.hub is None else {"hub": source.hub}),
        **dict(source.read_with),
        **({} if source.base is None else {"base": dict(zip(("name", "headers_sha256"), source.base, strict=True))}),
        **initial_record(source),
    }


def initial_record(source: Source) -> Record:
    """Return what a record says of the adapter that the training of a source began with; nothing if none was given."""
    if source.initial is None:
        return {}
    first = _source(source.initial)
    return {"initial": {key: first[key] for key in ("name", "sha256", "config_sha256")}}


def _inherited(source: Source, n_modules: int) -> Record | None:
    """Return the record of the file that an adapter was read from, if it says how all its modules were made."""
    with suppress(LorakitError, ValueError, OSError):
        if source.path is not None and source.path.is_file():
            record = read_record(read_header(source.path).metadata)
            made = record is not None and "operation" in (record["result"] or ())
            if record is not None and made and record["modules"] == n_modules:
                return record
    return None
