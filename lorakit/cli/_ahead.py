"""Hash the inputs of a command while it imports torch, which takes a second of one core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

_LEAST = 2**24  # bytes; less is hashed in no time


def hash_ahead(paths: Sequence[str], *, jobs: int | None) -> None:
    """Begin to hash adapters, in a thread, where there is another core for it.

    Only what is found at a glance; the rest is hashed later. Nothing is checked here: whoever asks for a hash says of
    which version of the file.
    """
    if jobs == 1:
        return
    from .._cores import usable_cores

    if usable_cores() < 2:
        return
    from ..files.checks import file_version
    from ..files.digests import hash_beside

    files = [(path, file_version(path)) for path in _files(paths)]
    if sum(version[0] for _, version in files if version is not None) >= _LEAST:
        hash_beside(files)


def _files(paths: Sequence[str]) -> Iterator[Path]:
    from ..io.formats.peft.about import CONFIG, WEIGHTS  # of the folders in which adapters usually lie

    for path in map(Path, paths):
        found = (path / name for name in (WEIGHTS, CONFIG)) if path.is_dir() else (path,)
        yield from (file for file in found if file.is_file())
