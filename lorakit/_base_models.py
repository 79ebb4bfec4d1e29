"""Whether the names that adapters give of their base models mean the same one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from .adapters import Adapter

_QUANTIZED = re.compile(r"(-unsloth)?-bnb-\d+bit$", re.IGNORECASE)
_CACHED = re.compile(r"models--(?P<org>.+?)--(?P<name>[^/]+)(?:/.*)?$")  # a folder of the Hugging Face cache


class _Base(NamedTuple):
    """A base model's name in parts."""

    whole: str  # without marks of quantization
    name: str  # its last part
    local: bool  # a path, or a name without an organisation, which may be one
    quantized: bool


def differing_bases(adapters: Iterable[Adapter]) -> str | None:
    """Return the base models that adapters name, for a message, unless the names can all mean one model.

    A name and that of its quantized copy (``-bnb-4bit``), as used to train in little memory, mean the same model, also
    where another organisation made the copy; so do a name on the Hugging Face Hub and a local path that ends in it, or
    one in the Hub's cache. Two local paths do not: both may end in ``checkpoint-500``.
    """
    named = {adapter.provenance.base_model: adapter.name for adapter in adapters if adapter.provenance.base_model}
    parts = {base: _parts(base) for base in named if base is not None}
    if all(_same(one, other) for one, other in combinations(parts.values(), 2)):
        return None
    return ", ".join(f"{base!r} ({name!r})" for base, name in named.items())


def _parts(base: str) -> _Base:
    path = base.replace("\\", "/").rstrip("/")
    cached = _CACHED.search(path)
    if cached is not None:
        path = f"{cached['org']}/{cached['name']}"
    whole, marks = _QUANTIZED.subn("", path)
    parts = whole.split("/")
    local = len(parts) != 2 or parts[0] in ("", ".", "..", "~")
    return _Base(whole.lower(), parts[-1].lower(), local, marks > 0)


def _same(one: _Base, other: _Base) -> bool:
    if one.whole == other.whole:
        return True
    return one.name == other.name and (one.quantized or other.quantized or one.local != other.local)
