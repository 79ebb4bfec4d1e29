"""Checks of paths and of a file's first bytes: a message can then say what the file is, not only what it is not."""

from __future__ import annotations

import errno
import stat
import time
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from ..exceptions import CorruptFileError, LorakitError, UnsafeFileError
from ._scratch import being_written, half_replaced

FileStamp = tuple[int, int]  # size and mtime_ns
FileVersion = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode: no program can set the third back

_LOOKS = 100  # a hundredth of a second apart, while somebody writes what is missing
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # of pickles
HOW_TO_CONVERT = (
    "a pickle can run code when it is loaded. Convert it where it is trusted: "
    "`safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')`"
)


def require_path(path: Path) -> None:
    """Raise FileNotFoundError unless ``path`` exists; name similar paths, and wait for a writer that is replacing it.

    Where a writer was stopped between its two renames, the message says where the old version is.
    """
    outputs = (path, path.parent)
    for _ in range(_LOOKS):
        if path.exists():
            return
        # Another of several writers may have moved it away just now. Without any writer, the second look is certain.
        if not any(map(being_written, outputs)) and not path.exists():
            break
        time.sleep(0.01)
    for output in outputs:
        old = half_replaced(output)
        if old is not None:
            raise FileNotFoundError(
                f"{output}: is half replaced: its writer was stopped before the new version was in place; write it "
                f"again, or take the old version: rename {old} to {output}"
            )
    folder = path.parent
    if path.is_symlink():
        hint = "it is a symbolic link to nothing"
    elif not folder.is_dir():
        hint = f"neither does the folder {folder}"
    else:
        names = sorted(entry.name for entry in folder.iterdir())
        near = get_close_matches(path.name, names, n=3) or names[:3]
        hint = f"{folder} has {', '.join(map(repr, near))}" if near else f"{folder} is empty"
    raise FileNotFoundError(f"{path}: does not exist; {hint}")


def is_pickled(path: Path) -> bool:
    """Whether a file is read as a pickle and not as safetensors, by its suffix; its content must then agree."""
    return path.suffix.lower() in SUFFIXES


def stamp(path: Path) -> FileStamp:
    """Return size and modification time of a regular file, without opening it (opening a FIFO would block)."""
    while True:
        require_path(path)
        with suppress(FileNotFoundError):  # a writer moved it away since: look again, as if it had been before
            status = path.stat()
            break
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(
            f"is not a regular file (a {_kind(status.st_mode)})",
            path=path,
            expected="a file on disk, copy it to one first",
        )
    return status.st_size, status.st_mtime_ns


def file_version(path: Path | None) -> FileVersion | None:
    """Return what tells one version of a file from another on one machine; None if there is no such file."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def require_unchanged(path: Path, expected: FileStamp) -> None:
    """Raise unless the file is still the one that was opened."""
    with suppress(OSError):  # one look where all is well: it is asked at every module of every adapter
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == expected and stat.S_ISREG(status.st_mode):
            return
    found = stamp(path)
    if found != expected:
        raise CorruptFileError(
            f"has changed since the adapter was opened (it had {expected[0]} bytes and has {found[0]}, "
            "or was written again)",
            path=path,
            remedy="call load_adapter again",
        )


def require_openable(path: Path) -> None:
    """Raise OSError in plain words if no file can be opened because too many are: the files are in order."""
    try:
        path.open("rb").close()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise OSError(error.errno, "too many files are open: raise the limit (ulimit -n)", str(path)) from error


def foreign_bytes(path: Path, head: bytes) -> LorakitError | None:
    """Name a file that is no safetensors file by its first bytes; None if they are not known."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        return CorruptFileError(
            "is a Git LFS pointer, not the weights",
            path=path,
            remedy="run `git lfs pull` in its repository, or download the file",
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return CorruptFileError(
            "is an HTML page, not weights",
            path=path,
            remedy="the download returned a web page (a login or an error?), download the file itself again",
        )
    if head.startswith((*_PICKLES, b"PK\x03\x04")):
        return UnsafeFileError(
            "is a pickle, not a safetensors file, whatever its name says",
            path=path,
            remedy=HOW_TO_CONVERT,
        )
    return None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "FIFO",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFSOCK: "socket",
        stat.S_IFDIR: "directory",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
