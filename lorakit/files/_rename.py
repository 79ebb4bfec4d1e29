"""Renames that replace nothing, and exchanges in one step, where the system has them."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2(2)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_PERHAPS_TAKEN = (errno.ENOTDIR, errno.EISDIR)  # or something is wrong with a folder above


def move(source: Path, target: Path) -> None:
    """Rename a file or directory; never onto another one.

    Raises
    ------
    FileExistsError
        If ``target`` exists. Where the system cannot rename without replacing, an empty directory counts as nothing.
    OSError
        If the system refuses.
    """
    if _renameat2(source, target, _NOREPLACE) == 0:
        return
    if os.path.lexists(target) and not target.is_dir():  # for systems and files where neither of these two would fail
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    if not source.is_dir():
        with suppress(OSError):  # a link to a file fails if the name is taken; some file systems have none
            os.link(source, target)
            source.unlink()
            return
    try:
        source.rename(target)
    except OSError as error:
        # Another process may have moved away what was in the way.
        if error.errno in _TAKEN or (error.errno in _PERHAPS_TAKEN and os.path.lexists(target)):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two paths name, in one step: a reader sees the state before it or after it.

    Returns
    -------
    bool
        False, and nothing done, if the system or the file system cannot, or a path does not exist.
    """
    return _renameat2(one, other, _EXCHANGE) == 0


def _renameat2(source: Path, target: Path, flag: int) -> int:
    """Call the system; return 0 for success. The reason of a failure shows in what the caller tries next."""
    function = _system_call()
    return -1 if function is None else function(0, os.fsencode(source), 0, os.fsencode(target), flag)


@cache
def _system_call() -> Callable[..., int] | None:
    """Linux' renameat2, from the C library; None where there is none. Absolute paths make its folders (0) unused."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function
