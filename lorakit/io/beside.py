"""What was given beside an adapter's files, and was needed to read them: the base model, the initial adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files.checkpoint import headers_digest
from ..files.checks import file_version
from ..files.open_checkpoint import open_checkpoint
from ..provenance import Source
from .formats.codec import ReadOptions
from .formats.known_kinds import known_kind
from .formats.peft.about import CONFIG
from .formats.peft.initial import initial_location

__all__ = ["base_used", "initial_used"]


def base_used(kinds: Sequence[str], options: ReadOptions) -> tuple[str, str] | None:
    """Return name and hash of the headers of the base that adapters of these kinds were read with; None if of none."""
    needs = [known_kind(kind).needs for kind in kinds]
    if options.base is None or not any("base" in n and not (options.initial and "initial" in n) for n in needs):
        return None
    checkpoint = open_checkpoint(options.base)
    return Path(checkpoint.name).name, headers_digest(checkpoint)


def initial_used(weights: Path, options: ReadOptions) -> Source | None:
    """Return the adapter whose update was taken away from that of these weights; None if none was."""
    found = initial_location(weights, options)
    if found is None:
        return None
    config = found[1].parent / CONFIG
    files = (found[1], config if config.exists() else None)
    versions = tuple(map(file_version, files))
    return Source(Path(str(options.initial)).name, *files, opened=versions)
