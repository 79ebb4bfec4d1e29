"""What an adapter's modules are read from: memory, or a view of another reader; files have theirs in ``lorakit.io``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch

from .factors import LoraFactors, promoted_dtype

__all__ = ["ModuleInfo", "ModuleKind", "ModuleReader"]

SVD: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"


@dataclass(frozen=True)
class ModuleKind:
    """What kind of layer a module is, and so how its factors relate to its weight.

    Parameters
    ----------
    name : {'linear', 'embedding', 'conv', 'expert'}, default='linear'
        'embedding': the weight changes by ``(B @ A).T``. 'conv': A is the flattened kernel, (r, in * prod(kernel)).
        'expert': one matrix of a parameter that holds those of several experts; its number ends the module's name.
    kernel : tuple of int, default=()
        Kernel shape of a convolution, empty otherwise.
    experts : int, default=0
        How many experts the parameter holds, 0 for the other kinds.
    parameters : tuple of str, default=()
        Sorted names of all parameters that are adapted where this one is. Which of them it is follows from the name of
        the module, and from their order in the base model.
    """

    name: Literal["linear", "embedding", "conv", "expert"] = "linear"
    kernel: tuple[int, ...] = ()
    experts: int = 0
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.name == "expert":
            return f"expert, one of {self.experts} of {' and '.join(self.parameters)}"
        return " ".join(map(str, (self.name, *self.kernel)))


class ModuleInfo(NamedTuple):
    """What is known of one module without reading its weights.

    Parameters
    ----------
    rank : int
        Number of MSUs.
    d_in, d_out : int
        Widths of the module's update.
    kind : ModuleKind
        How its factors relate to its weight.
    """

    rank: int
    d_in: int
    d_out: int
    kind: ModuleKind = ModuleKind()

    @property
    def n_parameters(self) -> int:
        """Numbers stored, ``r * (d_in + d_out)``."""
        return self.rank * (self.d_in + self.d_out)


class ModuleReader(Protocol):
    """What a lazy adapter reads from; ``lorakit.io`` makes one per file. Must pickle by path, not by content.

    A reader may say ``checked = True``: it refuses values that are not finite itself, so that nobody need look again.
    """

    @property
    def infos(self) -> Mapping[str, ModuleInfo]:
        """What is known of each module without reading it."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the factors are stored."""
        ...

    def read(self, module: str) -> LoraFactors:
        """Read one module's factors, scaling folded in, float32 or better."""
        ...


def narrowed(reader: ModuleReader, modules: Sequence[str]) -> ModuleReader:
    """Return a reader of these modules alone, which pickles without the others."""
    only: Callable[[Sequence[str]], ModuleReader] | None = getattr(reader, "only", None)
    return only(modules) if only is not None else ViewReader(reader, {module: module for module in modules})


def read_in(reader: ModuleReader, module: str, dtype: torch.dtype) -> LoraFactors:
    """Read one module in ``dtype`` or a better one."""
    asked: Callable[[str, torch.dtype], LoraFactors] | None = getattr(reader, "read_in", None)
    if asked is not None:
        return asked(module, dtype)
    factors = reader.read(module)
    return factors.to(promoted_dtype((dtype, factors.dtype)))


def svd_of(reader: ModuleReader, module: str, k: int | None) -> SVD | None:
    asked: Callable[[str, int | None], SVD | None] | None = getattr(reader, "svd", None)
    return None if asked is None else asked(module, k)


class MemoryReader:
    """The modules of an adapter that is held in memory."""

    def __init__(
        self, modules: dict[str, LoraFactors], kinds: Mapping[str, ModuleKind], dtype: torch.dtype | None = None
    ) -> None:
        for module, kind in kinds.items():
            if module not in modules:
                raise ValueError(f"kinds names a module {module!r} that the adapter lacks")
            if modules[module].d_in % prod(kind.kernel):
                raise ValueError(
                    f"module {module!r}: d_in {modules[module].d_in} is no multiple of the kernel {kind.kernel}; "
                    "A of a convolution is (r, in_channels * prod(kernel))"
                )
        self.modules = modules
        self.infos = {
            name: ModuleInfo(f.rank, f.d_in, f.d_out, kinds.get(name, ModuleKind())) for name, f in modules.items()
        }
        self.dtype = promoted_dtype(f.dtype for f in modules.values()) if dtype is None else dtype

    def read(self, module: str) -> LoraFactors:
        return self.modules[module]

    def only(self, modules: Sequence[str]) -> MemoryReader:
        kinds = {module: self.infos[module].kind for module in modules}
        return MemoryReader({module: self.modules[module] for module in modules}, kinds, self.dtype)


class ViewReader:
    """Some of another reader's modules, under names of their own, or in another dtype."""

    def __init__(self, reader: ModuleReader, old_names: dict[str, str], dtype: torch.dtype | None = None) -> None:
        self.reader = reader
        self.old_names = old_names
        self.infos = {new: reader.infos[old] for new, old in old_names.items()}
        self.dtype = dtype or reader.dtype
        self._cast = dtype
        self.narrowed: bool = getattr(reader, "narrowed", False)
        # a cast to fewer bits can overflow
        read = promoted_dtype([torch.float32, reader.dtype])
        self.checked = getattr(reader, "checked", False) and promoted_dtype([read, dtype or read]) == (dtype or read)

    def read(self, module: str) -> LoraFactors:
        factors = self.reader.read(self.old_names[module])
        return factors if self._cast is None else factors.to(self._cast)

    def svd(self, module: str, k: int | None = None) -> SVD | None:
        return svd_of(self.reader, self.old_names[module], k)

    def scale(self, module: str) -> float | None:
        asked: Callable[[str], float | None] | None = getattr(self.reader, "scale", None)
        return None if asked is None else asked(self.old_names[module])

    def only(self, modules: Sequence[str]) -> ViewReader:
        old_names = {new: self.old_names[new] for new in modules}
        return ViewReader(narrowed(self.reader, list(old_names.values())), old_names, self._cast)
