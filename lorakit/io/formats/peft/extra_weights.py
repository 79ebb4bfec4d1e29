"""Weights that PEFT stores beside the factors, ``modules_to_save`` and trained tokens: carried, never merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....exceptions import Setting, UnsupportedAdapterError
from ....files.checks import FileStamp
from ....files.safetensors import READ_DTYPES, TensorInfo
from .._factors import read_checked
from .keys import PREFIX


@dataclass(frozen=True)
class FileExtraWeights:
    """Whole weights in the file of an adapter, read when they are written. It pickles as where they lie.

    Parameters
    ----------
    file : str
        The weights.
    size, mtime_ns : int
        Size and time of the file when it was opened.
    tensors : tuple of (str, str, TensorInfo)
        Name without PEFT's prefix, key in the file, dtype and shape.
    settings : mapping
        What the config says of them.
    """

    file: str
    size: int  # no stamp: joblib.hash tells a tuple that the reader has too from an equal one
    mtime_ns: int
    tensors: tuple[tuple[str, str, TensorInfo], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, without PEFT's prefix."""
        return tuple(name for name, _, _ in self.tensors)

    @property
    def path(self) -> Path:
        """The file that holds them."""
        return Path(self.file)

    def info(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return the dtype and shape of one tensor."""
        _, info = self._place(name)
        return READ_DTYPES[info.dtype], info.shape

    def read(self, name: str) -> Tensor:
        """Read one tensor, as it is stored; one of fp8 as bfloat16."""
        key, _ = self._place(name)
        opened = self.size, self.mtime_ns
        says = ", which is carried along as an extra weight,"
        return read_checked(self.path, key, opened, says, Setting("modules_to_save", "drop"))

    def _place(self, name: str) -> tuple[str, TensorInfo]:
        return next((key, info) for known, key, info in self.tensors if known == name)


@dataclass(frozen=True, eq=False)
class MemoryExtraWeights:
    """Whole weights of an adapter that is held in memory; as :class:`FileExtraWeights` in everything else."""

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, without PEFT's prefix."""
        return tuple(self.tensors)

    def info(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return the dtype and shape of one tensor."""
        return self.tensors[name].dtype, tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return self.tensors[name]


def carried(
    path: Path, stamp: FileStamp, infos: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> FileExtraWeights:
    """Return what is beside the factors as something to carry along.

    Parameters
    ----------
    path : Path
        The weights.
    stamp : FileStamp
        Of the file as it was opened.
    infos : mapping of str to TensorInfo
        The tensors that are no factors, by their keys.
    settings : mapping
        What the config says of them.

    Raises
    ------
    UnsupportedAdapterError
        If one is no floating-point tensor, or the config speaks of weights that the file does not hold.
    """
    for key, info in infos.items():
        if info.dtype not in READ_DTYPES:
            raise UnsupportedAdapterError(
                f"{key!r} is stored as {info.dtype}",
                path=path,
                expected=f"one of {', '.join(READ_DTYPES)} for weights that are carried along",
                remedy=[Setting("modules_to_save", "drop"), " to leave them out"],
            )
    if settings and not infos:
        raise UnsupportedAdapterError(
            f"the config sets {' and '.join(settings)}, but the file holds no extra weights beside the LoRA factors",
            path=path,
            remedy=["copy the file that belongs to it, or ", Setting("modules_to_save", "drop")],
        )
    tensors = tuple((key.removeprefix(PREFIX), key, info) for key, info in infos.items())
    return FileExtraWeights(str(path), *stamp, tensors, dict(settings))
