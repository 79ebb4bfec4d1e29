"""Write a directory or a file whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..exceptions import OutputError


def check_directory(path: Path, *, overwrite: bool, own_files: frozenset[str]) -> None:
    """Refuse an output that must not or cannot be replaced, before any work is done.

    Parameters
    ----------
    path : Path
        The directory to be made.
    overwrite : bool
        Whether an existing one may be replaced.
    own_files : frozenset of str
        The only names that a directory to be replaced may contain.

    Raises
    ------
    OutputError
        If ``path`` is a symbolic link, no directory, or a directory that may not be replaced.
    """
    if path.is_symlink():
        raise OutputError(f"{path}: is a symbolic link, expected a directory or nothing; write to {path.resolve()}")
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path}: exists and is not a directory; an adapter is a directory, give another path")
    if not overwrite:
        raise OutputError(f"{path}: exists; pass overwrite=True to replace it, or give another path")
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in own_files or entry.is_dir())
    if others:
        raise OutputError(
            f"{path}: also contains {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}, which would be "
            f"deleted (expected only {', '.join(sorted(own_files))}); move them, or give another path"
        )


def check_file(path: Path, *, overwrite: bool) -> None:
    """Refuse an output file that must not be replaced, before any work is done.

    Raises
    ------
    OutputError
        If ``path`` is a symbolic link, no regular file, or one that may not be replaced.
    """
    if path.is_symlink():
        raise OutputError(f"{path}: is a symbolic link, expected a file or nothing; write to {path.resolve()}")
    if not path.exists():
        return
    if not path.is_file():
        raise OutputError(f"{path}: exists and is not a regular file; give another path")
    if not overwrite:
        raise OutputError(f"{path}: exists; pass overwrite=True to replace it, or give another path")


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory to fill; it becomes ``path`` when the block ends without an exception.

    An existing ``path`` stays until then, and comes back if the exchange fails. Whatever happens, KeyboardInterrupt
    included, nothing else is left behind.

    Parameters
    ----------
    path : Path
        Absolute path of the directory to make or to replace.

    Yields
    ------
    Path
        A directory beside it.

    Raises
    ------
    OutputError
        If the system refuses: disk full, no permission.
    """
    with _scratch(path) as scratch:
        new = scratch / "new"
        new.mkdir()  # inside, because mkdtemp gives mode 0700 and mkdir what the umask says
        yield new
        for entry in new.iterdir():
            _sync(entry)
        _sync_folder(new)
        _exchange(new, path, scratch / "old")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to make; it becomes ``path`` when the block ends without an exception.

    As :func:`replaced_directory`, which it is like in everything else.
    """
    with _scratch(path) as scratch:
        new = scratch / "new"
        yield new
        _sync(new)
        new.replace(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    made = [folder for folder in path.parents if not folder.exists()]
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield scratch
        _sync_folder(path.parent)
        made = []
    except OSError as error:
        if error.errno is None:  # not from the system: an input that is read while the output is written
            raise
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; nothing was changed, free some space or give a path that "
            "can be written to"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:  # the innermost first
            with suppress(OSError):
                folder.rmdir()


def _exchange(new: Path, path: Path, old: Path) -> None:
    rename: Callable[[Path, Path], None] = os.rename
    try:
        if path.exists():
            rename(path, old)
        rename(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            rename(old, path)
        raise


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some systems cannot open or sync a directory; the files themselves are safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
