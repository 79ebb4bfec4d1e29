"""The model card, README.md, that says where a written adapter came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ....adapters import Adapter
from ....files.printable import printable
from ..record import operation_text

_ON_HUB = re.compile(r"hf://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([\w.-]+)(/[\w./-]+)?", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_card(adapter: Adapter, record: Mapping[str, Any], *, rank: int) -> str:
    """Return the text of README.md: Hugging Face's front matter, sources, operations, versions.

    It says for people what ``record``, of :func:`~lorakit.io.formats.record.make_record`, says for programs. It has no
    dates and no paths, so that the same inputs give the same bytes on every machine.
    """
    base = adapter.provenance.base_model
    front = ["library_name: peft", "tags:", "- lora", "- lorakit"]
    if base and _HUB_ID.fullmatch(base):  # the hub refuses a card with a local path
        front.insert(0, f"base_model: {json.dumps(base)}")
    sources = [f"| {_origin(source)} | {_digest(source)} |" for source in record["sources"]]
    table = ["| adapter | sha256 of its weights |", "|---|---|", *sources] if sources else ["None known."]
    done = dict.fromkeys(map(operation_text, record["operations"]))
    operations = [f"{i}. `{_line(text)}`" for i, text in enumerate(done, start=1)] or ["None."]
    earlier = f", and {_line(', '.join(record['rounded_to']))} before that" if record["rounded_to"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    lines = [
        *("---", *front, "---", ""),
        *(f"# {_line(adapter.name)}", ""),
        f"A LoRA adapter written by lorakit: {len(adapter)} modules, rank {rank}, {record['dtype']}{earlier}, "
        f"{record['layout']} layout.",
        *("", "## Sources", "", *table),
        *_extra_weights(adapter),
        *("", "## Operations", "", *operations),
        *("", "## Versions", "", _line(versions)),
    ]
    return "\n".join(lines) + "\n"


def _extra_weights(adapter: Adapter) -> list[str]:
    """Say which weights stand beside the factors, and whose they are."""
    known = adapter.provenance
    if known.extra_weights is None:
        return []
    owner = next((source.name for source in known.sources if source.path == known.extra_weights.path), "one of them")
    names = ", ".join(f"`{_line(name)}`" for name in sorted(known.extra_weights.names))
    return [
        *("", "## Weights beside the factors", ""),
        f"Taken as they are from {_line(owner)}, not merged: {names}.",
    ]


def _origin(source: Mapping[str, Any]) -> str:
    """Name a source, with a link to the Hub if it was taken from there."""
    name, hub = str(source["name"]), source.get("hub")
    found = _ON_HUB.fullmatch(hub) if isinstance(hub, str) else None
    if found is None:
        return _cell(f"{name} ({hub})" if hub else name)
    repo, commit, part = found.groups()
    kind = "blob" if part and part.endswith(".safetensors") else "tree"  # a file, or a folder
    return f"{_cell(name)} ([{hub}](https://huggingface.co/{repo}/{kind}/{commit}{part or ''}))"


def _digest(source: Mapping[str, Any]) -> str:
    if source.get("in_memory"):
        return "made in memory"
    return f"`{_line(source['sha256'])}`" if source["sha256"] else "file no longer there"


def _line(text: str) -> str:
    return printable(" ".join(text.split())).replace("`", "'")


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
