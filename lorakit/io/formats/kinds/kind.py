"""What a kind of adapter is to the readers: the names of its tensors, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ....adapters import ModuleInfo, ModuleKind
from ....exceptions import CorruptFileError, UnsupportedAdapterError
from ....files.safetensors import TensorInfo
from .._modules import Decomposition, Form

_MOST_NUMBERS = 1 << 28  # of both factors: a Kronecker product of full rank of the widest layers of 70B models


@dataclass(frozen=True)
class Tensors:
    """The tensors of one module, by what they are to its kind.

    Parameters
    ----------
    path : Path
        The file, for messages.
    module : str
        The module, for messages.
    keys : mapping of str to str
        From parts, such as ``hada_w1_a``, to keys of the file.
    header : mapping of str to TensorInfo
        The tensors of the file.
    """

    path: Path
    module: str
    keys: Mapping[str, str]
    header: Mapping[str, TensorInfo]

    def shape(self, part: str) -> tuple[int, ...]:
        """Return the shape of a part."""
        return self.header[self.keys[part]].shape

    def require(self, parts: Sequence[str]) -> None:
        """Raise CorruptFileError if one of these parts is missing."""
        missing = [part for part in parts if part not in self.keys]
        if missing:
            raise CorruptFileError(
                f"has {', '.join(map(repr, self.keys.values()))} but lacks {' and '.join(missing)}",
                path=self.path,
                module=self.module,
                remedy="the file is incomplete, save or download it again",
            )

    def require_shapes(self, fit: bool, expected: str) -> None:
        """Raise CorruptFileError with the shapes of all parts if they do not fit."""
        if not fit:
            shapes = ", ".join(f"{part} {self.shape(part)}" for part in self.keys)
            raise CorruptFileError(
                shapes,
                path=self.path,
                module=self.module,
                expected=expected,
                remedy="save or download the file again",
            )

    def require_size(self, numbers: int) -> None:
        """Raise UnsupportedAdapterError if factors of so many numbers would be made: a small file can ask for many."""
        if numbers > _MOST_NUMBERS:
            raise UnsupportedAdapterError(
                f"its tensors stand for factors of {numbers} numbers",
                path=self.path,
                module=self.module,
                expected=f"at most {_MOST_NUMBERS}",
                remedy="extract a plain LoRA of a lower rank from the difference that it makes to its base model",
            )


class Factored(NamedTuple):
    """What the tensors of one module add up to.

    Parameters
    ----------
    parts : tuple of str
        The parts to read, in the order of the form's arguments.
    info : ModuleInfo
        What the form makes of them.
    form : callable
        From the tensors and ``arguments`` to A and B; see :class:`~lorakit.io.formats._modules.Stored`.
    divisor : int or None
        The rank that alpha is divided by; None where the tensors have none.
    arguments : tuple
        Plain values for ``form``.
    svd : callable or None
        As in :class:`~lorakit.io.formats._modules.Stored`.
    """

    parts: tuple[str, ...]
    info: ModuleInfo
    form: Form
    divisor: int | None
    arguments: tuple[Any, ...] = ()
    svd: Decomposition | None = None


class Kind(NamedTuple):
    """A kind of adapter.

    Parameters
    ----------
    name : str
        As people write it.
    parts : frozenset of str
        What the keys of its tensors end in.
    factored : callable
        From the tensors of a module to what they add up to. It raises CorruptFileError if they do not fit.
    """

    name: str
    parts: frozenset[str]
    factored: Callable[[Tensors], Factored]


def kind_of_kernel(kernel: Sequence[int]) -> ModuleKind:
    """Return the kind of a module whose tensors have a kernel of this shape, () for none."""
    return ModuleKind("conv", tuple(kernel)) if kernel else ModuleKind()
