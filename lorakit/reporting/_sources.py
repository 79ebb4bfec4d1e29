"""What an adapter's files say of it: alphas, licence, hash."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ..adapters import Adapter, Source
from ..exceptions import LorakitError
from ..files.json_text import is_number, read_json_object
from ..io.formats.record import file_digest

_LARGEST_CARD = 2**16  # characters; the licence is at a model card's beginning
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_LICENCE = re.compile(r"^(license|license_name)\s*:\s*(.+?)\s*$", re.MULTILINE)
_METADATA = ("license", "licence", "modelspec.license", "modelspec.licence")


class About(NamedTuple):
    """What the files of one adapter say."""

    alphas: list[float]
    licence: str | None
    sha256: str | None
    in_memory: bool


def about_files(adapter: Adapter, known: dict[str, Any] | None = None) -> About:
    """Return what an adapter's files say; ``known`` is its source as a record has it, with a hash."""
    sources = adapter.provenance.sources
    source = sources[0] if len(sources) == 1 and not adapter.provenance.operations else None
    if source is None or source.path is None:
        sha256 = None if known is None else known.get("sha256")
        return About([], _of_metadata(adapter), sha256, known is None)
    digest = file_digest(source.path, source.opened[0]) if known is None else known.get("sha256")
    return About(_alphas(adapter, source), _of_metadata(adapter) or _of_card(source), digest, False)


def _alphas(adapter: Adapter, source: Source) -> list[float]:
    """Return the distinct values of lora_alpha, ascending."""
    if source.config is not None and source.config.is_file():
        try:
            fields = read_json_object(source.config)
        except LorakitError:  # it has gone or changed since it was opened
            return []
        pattern = fields.get("alpha_pattern")
        found = [fields.get("lora_alpha"), *(pattern.values() if isinstance(pattern, dict) else ())]
        return sorted({float(alpha) for alpha in found if is_number(alpha)})
    scales = ((adapter.scale(module), info.rank) for module, info in adapter.infos.items())
    return sorted({round(scale * rank, 6) for scale, rank in scales if scale is not None})


def _of_metadata(adapter: Adapter) -> str | None:
    return next((text for key in _METADATA if (text := adapter.provenance.metadata.get(key))), None)


def _of_card(source: Source) -> str | None:
    """Return the licence that the front matter of the model card beside the weights names."""
    card = source.config.parent / "README.md" if source.config is not None else None
    if card is None or not card.is_file():
        return None
    front = _FRONT.match(_beginning(card))
    named = dict(_LICENCE.findall(front[1])) if front else {}
    licence = str(named.get("license", "")).strip("'\"")
    if licence == "other" and "license_name" in named:
        return str(named["license_name"]).strip("'\"")
    return licence or None


def _beginning(card: Path) -> str:
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST_CARD)
    except OSError:
        return ""
