"""What a baked checkpoint says of how it was made: one key in the header of each file that was changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._version import __version__
from ..exceptions import LorakitError
from ..files.checkpoint import FileCheckpoint, headers_digest
from ..files.open_checkpoint import open_checkpoint
from ..io.formats._record_form import is_beside
from ..io.formats.record import file_digest, initial_record
from .baked import Baked

KEY = "lorakit"
_FORM = "bake-1"


def make_record(baked: Baked) -> dict[str, Any]:
    """Return the record: names and hashes, no paths and no dates.

    The weights of the base are not hashed, which would take as long as reading them; a hash of its headers tells
    another model, and `lorakit verify` adds the adapters to the base again.
    """
    return {
        "record": _FORM,
        "class": "bake",
        "params": {"strengths": list(baked.strengths)},
        "versions": {"lorakit": __version__},
        "sources": [
            {"role": "base", "headers_sha256": headers_digest(baked.base), "tensors": len(baked.base)},
            *({"role": "adapter", "name": a.name, "sha256": _digest(a), **_read_with(a)} for a in baked.adapters),
        ],
    }


def _digest(adapter: Any) -> str | None:
    sources = adapter.provenance.sources
    alone = len(sources) == 1 and adapter.provenance.made is None
    return file_digest(sources[0].path, sources[0].opened[0]) if alone else None


def _read_with(adapter: Any) -> dict[str, Any]:
    added = {} if adapter.differences is None else {"differences": True}
    return added | _initial(adapter)


def _initial(adapter: Any) -> dict[str, Any]:
    sources = adapter.provenance.sources
    return initial_record(sources[0]) if len(sources) == 1 and adapter.provenance.made is None else {}


def baked_record(path: str | Path) -> Mapping[str, Any] | None:
    """Return the record of a checkpoint that :func:`lorakit.bake` wrote; None if it is something else."""
    try:
        checkpoint = open_checkpoint(path)
    except (LorakitError, OSError):
        return None
    assert isinstance(checkpoint, FileCheckpoint)
    for shard in checkpoint.shards:
        try:
            record = json.loads(shard.header.metadata.get(KEY, "null"))
        except (ValueError, RecursionError):
            continue
        if _is_well_formed(record):
            return dict(record)
    return None


def _is_well_formed(record: Any) -> bool:
    """Whether what a file holds is a record as :func:`make_record` makes them."""
    if not isinstance(record, dict) or record.get("record") != _FORM:
        return False
    params, versions, sources = (record.get(key) for key in ("params", "versions", "sources"))
    if not isinstance(params, dict) or not isinstance(versions, dict) or not isinstance(sources, list) or not sources:
        return False
    strengths = params.get("strengths")
    return (
        isinstance(strengths, list)
        and all(isinstance(strength, int | float) for strength in strengths)
        and len(strengths) == len(sources) - 1
        and isinstance(versions.get("lorakit"), str)
        and all(isinstance(source, dict) for source in sources)
        and isinstance(sources[0].get("headers_sha256"), str)
        and all(isinstance(s.get("name"), str) and isinstance(s.get("sha256"), str | None) for s in sources[1:])
        and all(is_beside(source) for source in sources[1:])
    )
