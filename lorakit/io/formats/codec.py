"""The interface of a file format: what it provides to the loader and to the writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...adapters import Adapter, Provenance
from ...exceptions import Note
from ...files.checks import FileStamp, FileVersion, file_version, is_pickled, stamp
from ...files.pickled import read_pickled_header
from ...files.safetensors import Header, read_header
from ..names.kohya import hub_name
from ..names.spelling import Spelling
from ..names.steps import Step
from ._modules import FileModules
from ._servers import Server
from .about import About


@dataclass(frozen=True)
class ReadOptions:
    """What the user may choose about reading. It travels with a pickled reader, so keep it small.

    Parameters
    ----------
    format : str or None
        Name of the codec to use; None finds it by content.
    modules_to_save : {'refuse', 'drop', 'first'}
        What to do with extra weights, which are stored beside the LoRA factors.
    differences : {'refuse', 'keep', 'drop'}
        What to do with differences of biases and norms.
    assume_alpha : float or None
        ``lora_alpha`` for files that do not give it.
    allow_pickle : bool
        Whether weights may be a pickle.
    base : str, mapping of str to Tensor or None
        The base model, for adapters whose files do not say all of their update.
    initial : str or None
        The adapter that training began with.
    """

    format: str | None = None
    modules_to_save: Literal["refuse", "drop", "first"] = "refuse"
    assume_alpha: float | None = None
    allow_pickle: bool = False
    base: str | Mapping[str, Tensor] | None = None
    initial: str | None = None
    differences: Literal["refuse", "keep", "drop"] = "refuse"


@dataclass(frozen=True)
class WriteOptions:
    """What the user may choose about writing.

    Parameters
    ----------
    layout : {'portable', 'compact'}
        One rank for all modules, padded with zeros; or each module with its own.
    dtype : torch.dtype
        Of the file.
    pad_to : int, 'server' or None
        Rank of the portable layout.
    """

    layout: str
    dtype: torch.dtype
    pad_to: int | Literal["server"] | None = None


@dataclass(frozen=True)
class Location:
    """A path that exists, as codecs look at it: every header is read once, whoever asks.

    Parameters
    ----------
    path : Path
        A directory or a file, absolute.
    allow_pickle : bool, default=False
        Whether a pickle counts as weights.
    """

    path: Path
    allow_pickle: bool = False
    _headers: dict[Path, Header] = field(default_factory=dict, repr=False, compare=False)
    _versions: dict[Path, FileVersion] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """Names in the directory, sorted; nothing for a file."""
        return tuple(sorted(entry.name for entry in self.path.iterdir())) if self.path.is_dir() else ()

    def weights(self, about: About) -> Path | None:
        """Return the file with the weights of a format: the path itself, or the first of its names in the directory.

        A pickle is returned where pickles are allowed and there is no safetensors file; :meth:`header` reads both.
        """
        if not self.path.is_dir():
            known = self.path.suffix == ".safetensors" or (self.allow_pickle and is_pickled(self.path))
            return self.path if known else None
        names = (*about.weights, *(about.pickles if self.allow_pickle else ()))
        return next((self.path / name for name in names if name in self.entries), None)

    def header(self, weights: Path) -> Header:
        """Return the checked header of a file."""
        if weights not in self._headers:
            self.stamp(weights)
            pickled = self.allow_pickle and is_pickled(weights)
            self._headers[weights] = read_pickled_header(weights) if pickled else read_header(weights)
        return self._headers[weights]

    def stamp(self, path: Path) -> FileStamp:
        """Return size and time of a file as it was before anything of it was read: ask before reading."""
        if path not in self._versions:
            seen = stamp(path)  # refuses what is no regular file
            self._versions[path] = file_version(path) or (*seen, 0, 0)
        return self._versions[path][:2]

    def versions(self, paths: Sequence[Path]) -> tuple[FileVersion | None, ...] | None:
        """Return which versions of files were read; None if any file has changed since."""
        if any(file_version(path) != version for path, version in self._versions.items()):
            return None
        return tuple(map(self._versions.get, paths))


class Opened(NamedTuple):
    """An adapter whose header has been read and checked, and whose weights have not."""

    modules: FileModules
    provenance: Provenance
    notes: tuple[Note, ...] = ()  # what the user should be warned of, once, in the process that opened it
    versions: tuple[FileVersion | None, ...] = (None, None)  # of weights and config; the loader fills them in


class Codec(NamedTuple):
    """One format: how to tell its files from those of others, how to open and write them, how its names translate.

    Parameters
    ----------
    about : About
        What is known of the format without opening a file.
    recognises : callable
        Whether the file with the weights, which is at a location, looks like the format. It may raise if a file is
        corrupt.
    open : callable
        Read and check the header of that file, and the config.
    write : callable or None
        Make a file, or fill an empty directory, at a path. None for a format that is only read.
    aliases : callable or None
        From module names to two of them that mean one module, or None if there are none. None for a format in which a
        module has one name only.
    ways : mapping of (str, str) to callable
        From the names of one format to those of another: steps that begin or end at this format.
    detours : mapping of (str, str) to str
        Pairs of formats without a step of their own, and the format that a conversion goes through.
    base_model : callable
        From the provenance of an adapter of any format to the name that this format gives its base model, or None.
    spellings : tuple of Spelling
        How its files spell the names of the families of diffusion models that are known; the first is written. A
        conversion to another format that has some needs no step.
    servers : tuple of Server
        Programs that load the format, and what they do with it.
    """

    about: About
    recognises: Callable[[Location, Path], bool]
    open: Callable[[Location, Path, ReadOptions], Opened]
    write: Callable[[Adapter, Path, WriteOptions], None] | None = None
    aliases: Callable[[Iterable[str]], tuple[str, str] | None] | None = None
    ways: Mapping[tuple[str, str], Step] = MappingProxyType({})
    detours: Mapping[tuple[str, str], str] = MappingProxyType({})
    base_model: Callable[[Provenance], str | None] = hub_name
    spellings: tuple[Spelling, ...] = ()
    servers: tuple[Server, ...] = ()
