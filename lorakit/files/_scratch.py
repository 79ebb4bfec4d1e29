"""The hidden directory beside an output, in which a writer makes it; and how the next writer clears those left behind.

A writer holds a lock on a file in its directory, which the system releases when the process ends, however it ends. So
whoever can take the lock knows that the writer is dead.

Only writers put anything right; readers look, and change nothing. Nothing is done to what is no directory of this user
itself, so that a link with such a name leads nowhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..exceptions import OutputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

NEW, OLD, GONE = "new", "old", "gone"  # what is made, what it replaces, what was replaced by somebody else
_LOCK = "lock"
_PATIENCE = 100  # times a hundredth of a second


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a scratch directory beside an output; it is gone at the end of the block.

    Those of dead writers of the same output are removed first.

    Parameters
    ----------
    path : Path
        Absolute path of the output.
    """
    for left in _left_beside(path):
        _clear_if_dead(left, path)
    folder, lock = _make(path)
    try:
        yield folder
    finally:
        try:
            _clear(folder, path)
        except BaseException:  # interrupted
            _clear(folder, path)
            raise
        finally:
            if lock is not None:
                os.close(lock)
        if os.path.lexists(folder):
            warnings.warn(
                f"{folder}: could not be removed: something in it is protected, such as a file that is immutable in "
                "what was replaced; the next writer of the same output tries again, or remove it by hand",
                UserWarning,
                stacklevel=6,
            )


def put_back(path: Path) -> None:
    """Put back an output whose writer died after it had moved the old one away and before the new one was in place.

    Called by the next writer of the output. Only a system that cannot exchange two directories in one step has such a
    moment. A living writer is waited for.

    Parameters
    ----------
    path : Path
        The output; nothing is done if it exists.
    """
    for _ in range(_PATIENCE):
        left = [] if os.path.lexists(path) else [folder for folder in _left_beside(path) if _half_done(folder)]
        if not left:
            return
        for folder in left:
            _clear_if_dead(folder, path)
        time.sleep(0.01)
    # The system has no locks, or the writer was suspended: two renames take less time. A writer that goes on copes.
    for folder in left:
        with suppress(OSError):
            (folder / OLD).rename(path)


def being_written(path: Path) -> bool:
    """Whether a writer of this output is at work, or died at it."""
    return bool(_left_beside(path))


def half_replaced(path: Path) -> Path | None:
    """Return where the old version of an output lies, if its writer was stopped before the new one was in place.

    Parameters
    ----------
    path : Path
        The output; None is returned if it exists.
    """
    left = [] if os.path.lexists(path) else _left_beside(path)
    return next((folder / OLD for folder in left if _half_done(folder)), None)


def _make(path: Path) -> tuple[Path, int | None]:
    """Make a scratch directory and lock it; return the open lock too, or None on systems without locks."""
    while True:
        folder = path.parent / f".{_stem(path)}.{secrets.token_hex(4)}.lorakit"
        try:
            folder.mkdir(mode=0o700)
            _check_umask(folder)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            if fcntl is None:
                os.close(lock)  # Windows removes no file that is open, so the folder could not be removed either
                return folder, None
            if _take(lock) is not False and (folder / _LOCK).exists():
                return folder, lock
            os.close(lock)  # another writer looked here before it was locked, and took it for a dead one's
        except FileExistsError:
            continue
        except FileNotFoundError:  # the same, before the lock was made
            if not path.parent.exists():
                raise
        except BaseException:
            _clear(folder, path)
            raise


def _take(lock: int) -> bool | None:
    """Lock a file: whether that worked, or None on systems and file systems without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _clear_if_dead(folder: Path, path: Path) -> None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        with suppress(OSError):  # empty: its writer was killed before it made the lock, or will make another directory
            folder.rmdir()
        return
    except OSError:  # another user's, or a link
        return
    try:
        if _take(lock):
            _clear(folder, path)
    finally:
        os.close(lock)


def _clear(folder: Path, path: Path) -> None:
    """Remove a scratch directory; if the output is half done, put the old one back first."""
    if _half_done(folder) and not os.path.lexists(path):
        try:
            (folder / OLD).rename(path)
        except OSError:
            if not os.path.lexists(path):  # keep it for the next try
                return
    # In this order: without "new", a half-deleted "old" is never put back; a folder without a lock is empty.
    for entry in (folder / NEW, folder / OLD, folder / GONE):
        if _is_folder(entry):
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()
        if os.path.lexists(entry):  # protected: with its lock, the folder can be told from others by the next writer
            return
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _half_done(folder: Path) -> bool:
    """Whether the old output was moved here and the new one is here still; a link was not moved by a writer."""
    old, new = folder / OLD, folder / NEW
    return os.path.lexists(new) and os.path.lexists(old) and not old.is_symlink()


def _left_beside(path: Path) -> list[Path]:
    """Return the scratch directories of an output that writers of this user made."""
    name = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{8}}\.lorakit")
    try:
        return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name) and _is_folder(entry)]
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    """Whether a path is a directory of this user itself, and no link to one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())


def _check_umask(folder: Path) -> None:
    """Refuse to write where the output could not be used by its owner."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o700 != 0o700:
        folder.rmdir()
        raise OutputError(
            f"cannot be written to: the umask takes rights from the owner of what is made (mode {mode:04o})",
            path=folder.parent,
            expected="a umask such as 022",
            remedy="set it with `umask 022`",
        )


def _stem(path: Path) -> str:
    """Return the output's name, or a short stand-in where that leaves no room for more."""
    raw = os.fsencode(path.name)
    return path.name if len(raw) <= 200 else hashlib.sha256(raw).hexdigest()
