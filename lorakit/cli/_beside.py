"""Whether a source is read with the base and the initial adapter that a record names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..io.formats.record import initial_record
from ..provenance import Source

_FILES = ("sha256", "config_sha256")


def same_beside(recorded: Mapping[str, Any], source: Source) -> dict[str, bool]:
    """Return whether a source was read with the recorded base and initial adapter; nothing of what neither names.

    Parameters
    ----------
    recorded : mapping
        A source of a record.
    source : Source
        What was given for it.

    Returns
    -------
    dict of str to bool
        ``same_base`` and ``same_initial``, each if the record or the source names one.
    """
    found = {}
    if "base" in recorded or source.base is not None:
        theirs = recorded.get("base", {}).get("headers_sha256")
        found["same_base"] = source.base is not None and source.base[1] == theirs
    if "initial" in recorded or source.initial is not None:
        before, now = recorded.get("initial", {}), initial_record(source).get("initial", {})
        found["same_initial"] = bool(before and now) and all(before.get(key) == now[key] for key in _FILES)
    return found
