"""Opening what is at a path: finding the format, and reading the header and the config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..exceptions import CorruptFileError, LorakitError, Setting, UnsafeFileError, UnsupportedAdapterError
from ..files.checks import HOW_TO_CONVERT, SUFFIXES, FileStamp, require_path, require_unchanged, stamp
from .formats._modules import FileModules, Stamps, Stored
from .formats._unsupported import refuse_markers
from .formats.codec import Codec, Location, Opened, ReadOptions
from .formats.registry import abouts, codec

__all__ = ["FileReader", "file_reader", "open_path"]

_OR_ALLOW = ("or ", Setting("allow_pickle", True), ", and it is read without running anything in it")
_TRIES = 10


class FileReader(FileModules):
    """All modules of an adapter that was opened. It pickles as its path, the options and the stamps of its files.

    Parameters
    ----------
    path : Path
        What the user gave, absolute.
    options : ReadOptions
        What the user chose.
    stamps, stored, dtype
        As in :class:`~lorakit.io.formats._modules.FileModules`.
    """

    def __init__(
        self, path: Path, options: ReadOptions, stamps: Stamps, stored: Mapping[str, Stored], dtype: torch.dtype
    ) -> None:
        super().__init__(stamps, stored, dtype)
        self.path, self.options = path, options

    def __reduce__(self) -> tuple[Any, ...]:
        # Paths as texts: joblib.hash tells one object that is met twice from two equal ones, but not for texts.
        return _reopen, (str(self.path), self.options, tuple((str(path), seen) for path, seen in self.stamps))


def file_reader(path: Path, options: ReadOptions, modules: FileModules) -> FileReader:
    """Return a reader of the modules of what was opened at a path."""
    return FileReader(path.absolute(), options, modules.stamps, modules.stored, modules.dtype)


def _reopen(path: str, options: ReadOptions, stamps: tuple[tuple[str, FileStamp], ...]) -> FileReader:
    for file, expected in stamps:  # before anything is parsed: of another file the message would be puzzling
        require_unchanged(Path(file), expected)
    return file_reader(Path(path), options, open_path(Path(path), options).modules)


def open_path(path: Path, options: ReadOptions) -> Opened:
    """Find the format of what is at a path, and open it; again if another process replaced it in between."""
    for _ in range(_TRIES):
        require_path(path)
        before = _identity(path)
        location = Location(path.absolute(), options.allow_pickle)  # a worker may have another working directory
        try:
            opened = _open_once(location, options)
        except (LorakitError, OSError):
            if _identity(path) == before:
                raise
        else:
            versions = location.versions([file for file, _ in opened.modules.stamps])
            if _identity(path) == before and versions is not None:
                return opened._replace(versions=(*versions, None)[:2])
    raise CorruptFileError(
        "is replaced again and again",
        path=path,
        remedy="wait until whoever writes it is done",
    )


def _identity(path: Path) -> object:
    """Return what tells whether a path still names the same: a file is part of the directory that it is in."""
    try:
        seen = path.stat()
        return seen.st_ino, seen.st_mtime_ns, path.parent.stat().st_ino
    except OSError:
        return object()  # gone, so not the same


def _open_once(location: Location, options: ReadOptions) -> Opened:
    if options.format is not None:
        known = codec(options.format)
        return _open_as(known, location, location.weights(known.about) or location.path, options)
    for about in reversed(abouts()):
        weights = location.weights(about)
        if weights is not None and codec(about.name).recognises(location, weights):
            return _open_as(codec(about.name), location, weights, options)
    _raise_unrecognised(location)


def _open_as(known: Codec, location: Location, weights: Path, options: ReadOptions) -> Opened:
    if options.initial is not None and not known.about.initial:
        raise UnsupportedAdapterError(
            f"is of the format {known.about.name}, in which lorakit takes no initial adapter",
            path=weights,
            expected=" or ".join(about.name for about in abouts() if about.initial),
            remedy=["do not ", Setting("initial")],
        )
    return known.open(location, weights, options)


def _raise_unrecognised(location: Location) -> NoReturn:
    path = location.path
    directories = [known for known in abouts() if known.directory]
    expected = " or ".join(f"{known.weights[0]} and {known.config}" for known in directories)
    if not path.is_dir():
        stamp(path)
        if path.suffix in SUFFIXES and not location.allow_pickle:
            raise UnsafeFileError(
                "weights are a pickle",
                path=path,
                remedy=[f"{HOW_TO_CONVERT}; ", *_OR_ALLOW],
            )
        if path.suffix == ".safetensors" or location.allow_pickle:
            keys = list(location.header(path).tensors)
            refuse_markers(path, keys)
            raise UnsupportedAdapterError(
                f"holds no LoRA factors of a known format ({', '.join(known.name for known in abouts())}): "
                f"its first keys are {keys[:3]}",
                path=path,
                remedy="is it another kind of adapter, or a whole model?",
            )
        raise UnsupportedAdapterError(
            "is no adapter",
            path=path,
            expected=f"a directory with {expected}, or a safetensors file",
        )
    pickled = [name for known in abouts() for name in known.pickles if name in location.entries]
    if pickled:
        raise UnsafeFileError(
            f"its weights, {pickled[0]}, are a pickle",
            path=path,
            remedy=[f"{HOW_TO_CONVERT}; ", *_OR_ALLOW],
        )
    weights = [name for known in abouts() for name in known.weights]
    candidates = [name for name in location.entries if name.endswith(".safetensors")]
    if candidates:
        raise UnsupportedAdapterError(
            f"has no {' or '.join(weights)}, but {', '.join(candidates)}",
            path=path,
            remedy="pick one and pass its path",
        )
    inside = [entry for entry in location.entries if any((path / entry / name).is_file() for name in weights)]
    seen = ", ".join(location.entries[:5]) or "nothing"
    hint = f"adapters are in {', '.join(inside[:5])}" if inside else f"it has {seen}"
    raise UnsupportedAdapterError("holds no adapter", path=path, expected=expected, remedy=hint)
