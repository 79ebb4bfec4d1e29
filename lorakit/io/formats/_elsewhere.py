"""Tensors that a module needs from outside of the adapter's file: of its base, or of the adapter that it began as."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from ...files.checks import FileStamp
from ...files.tensors import read_whole


class Elsewhere(Protocol):
    """A tensor that lies elsewhere. It must pickle."""

    @property
    def name(self) -> str:
        """Its name, for messages."""
        ...

    @property
    def path(self) -> Path | None:
        """The file that holds it; None if it is in memory."""
        ...

    def read(self) -> Tensor:
        """Return the tensor, as it is stored."""
        ...


class InFile(NamedTuple):
    """A tensor of another file.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Its key there.
    stamp : FileStamp
        Of the file whose header was read.
    """

    path: Path
    name: str
    stamp: FileStamp

    def read(self) -> Tensor:
        """Return the tensor, as it is stored."""
        (tensor,) = read_whole(self.path, (self.name,), self.stamp)
        return tensor


class Held(NamedTuple):
    """A tensor of a state dict."""

    name: str
    tensor: Tensor
    path: Path | None = None

    def read(self) -> Tensor:
        """Return the tensor."""
        return self.tensor
