"""Finding the adapters that a record names, by their hashes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..exceptions import LorakitError

_MOST_ENTRIES = 2000  # of one folder


def find_sources(record: Mapping[str, Any], near: Iterable[Path], searched: Iterable[Path]) -> list[Path | None]:
    """Look for the sources of a record.

    Parameters
    ----------
    record : mapping
        Of a result.
    near : iterable of Path
        Folders in which entries that have a source's name are looked at.
    searched : iterable of Path
        Folders in which every entry is looked at.

    Returns
    -------
    list of Path or None
        For each source, what has the recorded SHA-256; None for one that was not found, or whose hash is not recorded.
    """
    wanted: dict[str, list[int]] = {}
    for i, source in enumerate(record["sources"]):
        if source["sha256"] is not None:
            wanted.setdefault(source["sha256"], []).append(i)
    names = {source["name"] for source in record["sources"]}
    found: list[Path | None] = [None] * len(record["sources"])
    for entry in _entries(near, names, searched):
        if all(path is not None for path in found):
            break
        digest = _digest(entry)
        for i in wanted.get(digest or "", ()):
            found[i] = found[i] or entry
    return found


def _entries(near: Iterable[Path], names: set[str], searched: Iterable[Path]) -> Iterator[Path]:
    """Yield folders and files; a name of the record is only compared, and never becomes part of a path."""
    seen: set[Path] = set()
    for folder, all_of_them in (*((f, False) for f in near), *((f, True) for f in searched)):
        entries: list[Path] = []
        with suppress(OSError), os.scandir(folder) as listed:
            entries = sorted(Path(entry.path) for entry, _ in zip(listed, range(_MOST_ENTRIES), strict=False))
        for entry in entries:
            if entry not in seen and (all_of_them or entry.name in names or entry.stem in names):
                seen.add(entry)
                yield entry


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of an adapter's weights; None for what is no adapter."""
    from .. import load_adapter
    from ..io.formats.record import file_digest

    with suppress(LorakitError, OSError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = load_adapter(path, modules_to_save="drop", differences="drop").provenance.sources[0]
        return file_digest(source.path, source.opened[0])
    return None
