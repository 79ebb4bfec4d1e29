"""What a file format gives to the loader and to the writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ...adapters import Adapter, Provenance
from ...files.pickled import is_pickled, read_pickled_header
from ...files.safetensors import Header, read_header
from ._modules import FileModules


@dataclass(frozen=True)
class ReadOptions:
    """What the user may choose about reading. It travels with a pickled reader, so keep it small.

    Parameters
    ----------
    format : str or None
        Name of the codec to use; None finds it by content.
    modules_to_save : {'refuse', 'drop', 'first'}
        What to do with weights that are stored beside the LoRA factors.
    assume_alpha : float or None
        ``lora_alpha`` for files that do not give it.
    allow_pickle : bool
        Whether weights may be a pickle.
    """

    format: str | None = None
    modules_to_save: Literal["refuse", "drop", "first"] = "refuse"
    assume_alpha: float | None = None
    allow_pickle: bool = False


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

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """Names in the directory, sorted; nothing for a file."""
        return tuple(sorted(entry.name for entry in self.path.iterdir())) if self.path.is_dir() else ()

    def weights(self, *names: str) -> Path | None:
        """Return the file with the weights: the path itself, or the first of these names that the directory has.

        A pickle is returned where pickles are allowed and there is no safetensors file; :meth:`header` reads both.
        """
        if not self.path.is_dir():
            known = self.path.suffix == ".safetensors" or (self.allow_pickle and is_pickled(self.path))
            return self.path if known else None
        pickles = [f"{Path(name).stem}.bin" for name in names] if self.allow_pickle else []
        return next((self.path / name for name in (*names, *pickles) if name in self.entries), None)

    def header(self, weights: Path) -> Header:
        """Return the checked header of a file."""
        if weights not in self._headers:
            pickled = self.allow_pickle and is_pickled(weights)
            self._headers[weights] = read_pickled_header(weights) if pickled else read_header(weights)
        return self._headers[weights]


class Opened(NamedTuple):
    """An adapter whose header has been read and checked, and whose weights have not."""

    modules: FileModules
    provenance: Provenance
    notes: tuple[str, ...] = ()  # what the user should be warned of, once, in the process that opened it


class Writer(NamedTuple):
    """How a format is written.

    Parameters
    ----------
    write : callable
        Makes a file or fills an empty directory at a path.
    layouts : tuple of str
        Those that it can write, the default first.
    files : tuple of str
        Names of all files in the directory that it writes; empty for a format of one file.
    extra_weights : bool
        Whether it can hold extra weights beside the factors. Only PEFT's directory can.
    experts : bool
        Whether it can hold those of one layer in one tensor.
    """

    write: Callable[[Adapter, Path, WriteOptions], None]
    layouts: tuple[str, ...]
    files: tuple[str, ...] = ()
    extra_weights: bool = False
    experts: bool = False


class Codec(NamedTuple):
    """One on-disk format: its name, how to tell it from the others, how to open it and how to write it.

    Parameters
    ----------
    name : str
        As in ``format=`` and in :class:`~lorakit.adapters.Provenance`.
    recognises : callable
        Whether what is at a location looks like it. May raise if it is corrupt.
    open : callable
        Read and check config and header.
    writer : Writer or None
        None for a format that is only read.
    aliases : callable or None
        From module names to two of them that mean one module, or None; None where a module has one name only.
    """

    name: str
    recognises: Callable[[Location], bool]
    open: Callable[[Location, ReadOptions], Opened]
    writer: Writer | None = None
    aliases: Callable[[Iterable[str]], tuple[str, str] | None] | None = None


def by_name(codecs: tuple[Codec, ...], name: str, *, written: bool = False) -> Codec:
    """Return the codec of a name.

    Raises
    ------
    ValueError
        Naming those there are.
    """
    known: Mapping[str, Codec] = {c.name: c for c in codecs if c.writer is not None or not written}
    if name not in known:
        raise ValueError(f"format must be one of {', '.join(map(repr, known))}, got {name!r}")
    return known[name]
