"""Write a directory or a file whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ..exceptions import OutputError, Setting
from ._rename import exchange, move
from ._scratch import GONE, NEW, OLD, put_back, scratch_beside

_ATTEMPTS = 1000  # each is lost only to another writer that finished at that moment


def check_directory(path: Path, *, overwrite: bool, own_files: frozenset[str]) -> None:
    """Refuse an output that must not or cannot be replaced, before any work is done.

    Parameters
    ----------
    path : Path
        The directory to be made.
    overwrite : bool
        Whether an existing one may be replaced.
    own_files : frozenset of str
        The only files that a directory to be replaced may contain: names, or paths below it with ``/`` between parts.

    Raises
    ------
    OutputError
        If ``path`` is a symbolic link, no directory, or a directory that may not be replaced.
    """
    kind = _kind_of(path, "a directory")
    if kind is None:
        return
    if not stat.S_ISDIR(kind):
        raise OutputError(
            "exists and is not a directory",
            path=path,
            remedy="an adapter is a directory, give another path",
        )
    if not overwrite:
        raise OutputError(
            "exists",
            path=path,
            remedy=[Setting("overwrite", True), " to replace it, or give another path"],
        )
    with suppress(FileNotFoundError):  # another writer moved it away since
        _refuse_others(path, path, own_files)


def check_file(path: Path, *, overwrite: bool) -> None:
    """Refuse an output file that must not be replaced, before any work is done.

    Raises
    ------
    OutputError
        If ``path`` is a symbolic link, no regular file, or one that may not be replaced.
    """
    kind = _kind_of(path, "a file")
    if kind is None:
        return
    if not stat.S_ISREG(kind):
        what = ", it is a directory" if stat.S_ISDIR(kind) else ""
        raise OutputError(
            f"exists and is not a regular file{what}",
            path=path,
            remedy="give another path",
        )
    if not overwrite:
        raise OutputError(
            "exists",
            path=path,
            remedy=[Setting("overwrite", True), " to replace it, or give another path"],
        )


@contextmanager
def replaced_directory(path: Path, *, overwrite: bool, own_files: frozenset[str]) -> Iterator[Path]:
    """Give an empty directory to fill; it becomes ``path`` when the block ends without an exception.

    An existing ``path`` stays until then. Nothing else is left behind, whatever happens; if the process is killed, the
    next writer of the same output removes what it left.

    Parameters
    ----------
    path : Path
        Absolute path of the directory to make or to replace.
    overwrite, own_files
        As in :func:`check_directory`, which is asked again when the directory is about to be replaced.

    Yields
    ------
    Path
        A directory beside it.

    Raises
    ------
    OutputError
        If the system refuses (disk full, no permission), or there is by then a ``path`` that may not be replaced.
    """
    with _scratch(path) as scratch:
        new, old = scratch / NEW, scratch / OLD
        new.mkdir()  # the scratch directory is for its owner alone; this one has what the umask says
        yield new
        for folder, _, files in os.walk(new, topdown=False):
            for file in files:
                _settle(Path(folder, file))
            _sync_folder(Path(folder))
        _put(new, path, partial(_replace_directory, new, path, old, overwrite, own_files))


@contextmanager
def replaced_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give the path of a file to make; it becomes ``path`` when the block ends without an exception.

    As :func:`replaced_directory`, which it is like in everything else.
    """
    with _scratch(path) as scratch:
        new = scratch / NEW
        yield new
        _settle(new)
        _put(new, path, partial(_replace_file, new, path, overwrite))


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        for folder in reversed(made):  # not parents=True, which calls itself for each folder
            folder.mkdir(exist_ok=True)
        with scratch_beside(path) as scratch:
            yield scratch
            _sync_folder(path.parent)
        made = []
    except OSError as error:
        if error.errno is None:  # not from the system: an input that is read while the output is written
            raise
        raise OutputError(
            f"cannot be written: {error.strerror}",
            path=path,
            remedy="nothing was changed, free some space or give a path that can be written to",
        ) from error
    finally:
        for folder in made:  # the innermost first
            with suppress(OSError):
                folder.rmdir()


def _kind_of(path: Path, expected: str) -> int | None:
    """Return the mode of what is at a path, from one call of ``lstat``; refuse a symbolic link."""
    if "\0" in str(path):
        raise OutputError(
            f"{str(path)!r}: cannot be made: holds a null character",
            remedy="give another path",
        )
    put_back(path)
    try:
        kind = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(
            f"cannot be made: {error.strerror}",
            path=path,
            remedy="give another path",
        ) from error
    if stat.S_ISLNK(kind):
        raise OutputError(
            "is a symbolic link",
            path=path,
            expected=f"{expected} or nothing",
            remedy=f"write to {os.path.realpath(path)}",
        )
    return kind


def _refuse_others(path: Path, folder: Path, own_files: frozenset[str]) -> None:
    """Refuse to delete a folder that holds other files than an output's; the folder is at ``path``, or just was."""
    own_folders = {parent.as_posix() for file in own_files for parent in Path(file).parents}
    others = []
    for inside, folders, files in os.walk(folder):
        below = Path(inside).relative_to(folder)
        others += [name for file in files if (name := (below / file).as_posix()) not in own_files]
        others += [name for sub in folders if (name := (below / sub).as_posix()) not in own_folders]
    if others:
        others.sort()
        expected = sorted(own_files)
        raise OutputError(
            f"also contains {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}, which "
            f"would be deleted (expected only {', '.join(expected[:6])}{' and more' if len(expected) > 6 else ''})",
            path=path,
            remedy="move them, or give another path",
        )


def _put(new: Path, path: Path, replace: Callable[[], bool]) -> None:
    """Rename ``new`` to ``path``; if ``path`` exists, call ``replace``, which returns whether it has replaced it."""
    for _ in range(_ATTEMPTS):
        try:
            move(new, path)
            return
        except FileExistsError:
            if replace():
                return
    raise OutputError(
        "other processes write it without end",
        path=path,
        remedy="stop them, or give another path",
    )


def _replace_directory(new: Path, path: Path, old: Path, overwrite: bool, own_files: frozenset[str]) -> bool:
    check_directory(path, overwrite=overwrite, own_files=own_files)
    if exchange(new, path):
        try:
            _refuse_others(path, new, own_files)  # somebody put a file there since the check
        except OutputError:
            exchange(new, path)
            raise
        return True
    # Whatever is raised from here on: clearing the scratch directory puts the old output back.
    try:
        path.rename(old)
        _refuse_others(path, old, own_files)
    except FileNotFoundError:  # another writer took it away, or a reader put it back
        return False
    try:
        move(new, path)
    except FileExistsError:  # another writer's, whole and newer: what was replaced here is needed no more
        gone = old.with_name(GONE)
        with suppress(FileNotFoundError):
            old.rename(gone)  # in one step, so that it is never put back with files missing
        shutil.rmtree(gone, ignore_errors=True)
        return False
    return True


def _replace_file(new: Path, path: Path, overwrite: bool) -> bool:
    check_file(path, overwrite=overwrite)
    if not overwrite:  # what was there has gone again
        return False
    new.replace(path)
    return True


def _settle(file: Path) -> None:
    """Bring a file to the disk, and give it a time that no other version has.

    Readers tell two versions of a file by size and time, and two that are written within one tick would look the same.
    """
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    with file.open("r+b") as stream:  # Windows brings nothing to the disk that is open for reading only
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some systems cannot open or sync a directory; the files themselves are safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
