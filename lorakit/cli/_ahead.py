"""Hash the inputs of a command while it imports torch, which takes a second of one core."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_NAMES = ("adapter_model.safetensors", "adapter_config.json")  # of the folders in which adapters usually lie
_LEAST = 2**24  # bytes; less is hashed in no time


def hash_ahead(paths: Sequence[str], *, jobs: int | None) -> None:
    """Begin to hash adapters, in a thread, where there is another core for it.

    Only what is found at a glance; the rest is hashed later. Nothing is checked here: whoever asks for a hash says of
    which version of the file.
    """
    if jobs == 1 or _cores() < 2:
        return
    from ..files.checks import file_version
    from ..files.digests import hash_beside

    files = [(path, file_version(path)) for path in _files(paths)]
    if sum(version[0] for _, version in files if version is not None) >= _LEAST:
        hash_beside(files)


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        found = (path / name for name in _NAMES) if path.is_dir() else (path,)
        yield from (file for file in found if file.is_file())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
