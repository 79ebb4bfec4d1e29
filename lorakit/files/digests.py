"""SHA-256 of files; in a thread, where it is known early which hashes will be asked for. No torch is imported here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from threading import Thread

from .checks import FileVersion

MOST_HASHED = 2**35  # bytes; what has more is not hashed, as that would take longer than what is done with it
_PIECE, _WATCHED = 2**22, 2**28  # bytes
_LOOK = 0.2  # seconds between two looks at what a thread hashes
Report = Callable[[int, int], None]  # called with megabytes done, and megabytes in all

_report: ContextVar[Report | None] = ContextVar("lorakit_hashing", default=None)
_beside: dict[tuple[str, FileVersion], Future[str]] = {}  # being hashed, or hashed, by a thread
_hashed: dict[Path, int] = {}  # bytes of large files that are being hashed


def hash_beside(files: Iterable[tuple[Path, FileVersion | None]]) -> None:
    """Begin to hash files in a thread, one after the other, each in the version that is meant.

    What is about to be read is then in the system's cache before it is asked for. Files that a thread has already are
    left to it, and those that are too large are left out. An error comes when the hash is asked for. The thread does
    not keep a process from ending.
    """
    waiting: dict[tuple[Path, FileVersion], Future[str]] = {}
    for path, version in files:
        if version is not None and version[0] <= MOST_HASHED and _key(path, version) not in _beside:
            _beside[_key(path, version)] = waiting[path, version] = Future()
    if waiting:
        Thread(target=_hash_all, args=(waiting,), name="lorakit-hash", daemon=True).start()


def known_digest(path: Path, version: FileVersion, report: Report) -> str:
    """Return the SHA-256 of a file: from the thread that has it, or made now."""
    beside = _beside.pop(_key(path, version), None)
    if beside is None:
        token = _report.set(report)
        try:
            return digest(path, version)
        finally:
            _report.reset(token)
    while True:
        try:
            return beside.result(timeout=_LOOK)
        except TimeoutError:
            if beside.done():  # it is the file system's
                raise
            if version[0] >= _WATCHED:
                report(_hashed.get(path, 0) // 10**6, version[0] // 10**6)


def _key(path: Path, version: FileVersion) -> tuple[str, FileVersion]:
    return os.path.realpath(path), version


def _hash_all(waiting: Mapping[tuple[Path, FileVersion], Future[str]]) -> None:
    for (path, version), future in waiting.items():
        try:
            future.set_result(digest(path, version))
        except OSError as error:
            future.set_exception(error)


@lru_cache(maxsize=1024)
def digest(path: Path, version: FileVersion) -> str:
    """Return the SHA-256 of a file, which is read a piece at a time; of large ones it is reported how far it is."""
    found, done, size, report = hashlib.sha256(), 0, version[0], _report.get()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            found.update(piece)
            done += len(piece)
            if size >= _WATCHED:  # of smaller files nobody waits for the hash
                _hashed[path] = done
                if report is not None:
                    report(done // 10**6, size // 10**6)
    _hashed.pop(path, None)
    return found.hexdigest()
