"""
Where everything that is fetched, trained or measured is kept
=============================================================

One folder: that of the environment variable ``LORAKIT_REPRODUCE``, or one in the platform's cache folder. Files in it
are written whole or not at all, so that a run that is killed goes on where it was.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

VARIABLE = "LORAKIT_REPRODUCE"


def cache_folder(*parts: str) -> Path:
    """Return the cache folder, or a folder inside it, and make it if it is not there."""
    folder = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _platform_folder() / "lorakit" / "reproduce"
    folder = folder.joinpath(*parts).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def content_key(*parts: Any) -> str:
    """Return 16 hexadecimal digits that identify parts which JSON can hold, equal for equal content."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """Read a JSON file; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write a JSON file whole or not at all."""
    with written(path) as beside:
        beside.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder at, which takes the name ``path`` only if the block succeeds.

    A file of that name is replaced. A folder is not: what another process has finished meanwhile stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(prefix=".part-", dir=path.parent))
    beside = work / path.name
    try:
        yield beside
        if not (beside.is_dir() and path.exists()):
            beside.replace(path)
    finally:
        rmtree(work, ignore_errors=True)


def _platform_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
