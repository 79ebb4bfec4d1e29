"""Lazy reading, shared by all formats: where each module lies in its file, and how its tensors become A and B."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ...adapters import ModuleInfo
from ...exceptions import CancellingUnitsWarning, CorruptFileError
from ...factors import LoraFactors, all_finite, promoted_dtype
from ...files.checks import FileStamp, require_unchanged
from ...files.safetensors import FP8_DTYPES, READ_DTYPES, TensorInfo
from ...files.tensors import read_expert, read_whole
from ...linalg.rounding import surely_sound, units_cancel
from ._elsewhere import Elsewhere

Stamps = tuple[tuple[Path, FileStamp], ...]  # of every file that the adapter was made of, the weights first
Form = Callable[..., tuple[Tensor, Tensor]]
Decomposition = Callable[..., tuple[Tensor, Tensor, Tensor]]


class Stored(NamedTuple):
    """Where one module lies in the file.

    Parameters
    ----------
    keys : tuple of str
        Names of the tensors that make it.
    info : ModuleInfo
        What becomes of them.
    scale : float
        The factor on ``B @ A``.
    form : callable
        From those tensors, in float32 or better, and ``arguments``, to A (r, d_in) and B (d_out, r). A function at the
        top of a file, as it travels to workers.
    arguments : tuple
        Plain values for ``form``.
    expert : (int, int) or None
        Which of how many experts it is, if the tensors hold those of all. See
        :func:`~lorakit.files.tensors.read_expert`.
    kind : str
        The kind of adapter that the tensors are of.
    svd : callable or None
        From what ``form`` takes, and then ``k``, to the SVD of the update, where the form of the tensors gives it at
        less cost than A and B do.
    others : tuple of Elsewhere
        Tensors from outside of the file, which ``form`` takes after those of the file.
    """

    keys: tuple[str, ...]
    info: ModuleInfo
    scale: float
    form: Form
    arguments: tuple[Any, ...] = ()
    expert: tuple[int, int] | None = None
    kind: str = "LoRA"
    svd: Decomposition | None = None
    others: tuple[Elsewhere, ...] = ()


def plain(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B as PEFT and kohya store them; kernels of convolutions are flattened."""
    return a.flatten(1), b.flatten(1)


class FileModules:
    """Some modules of a file whose header and config have been checked.

    It pickles as what it knows of them: a worker that is sent one module parses neither header nor config again, and a
    file that has changed is reported when it is read, by module.

    Parameters
    ----------
    stamps : Stamps
        The files, the weights first.
    stored : mapping of str to Stored
        Where each module lies.
    dtype : torch.dtype
        Dtype in which the adapter is stored.
    """

    checked = True  # what is not finite is refused by read

    def __init__(
        self,
        stamps: Stamps,
        stored: Mapping[str, Stored],
        dtype: torch.dtype,
        told: set[str] | None = None,
    ) -> None:
        self.dtype = dtype
        self._told: set[str] = set() if told is None else told  # what has been warned of; all parts of a file share it
        self.infos: Mapping[str, ModuleInfo] = {module: place.info for module, place in stored.items()}
        self.stamps = stamps
        self.stored = stored

    @property
    def weights(self) -> Path:
        """The file that holds the factors."""
        return self.stamps[0][0]

    @property
    def config(self) -> Path | None:
        """The config that was read with the weights, if there is one."""
        return self.stamps[1][0] if len(self.stamps) > 1 else None

    def scale(self, module: str) -> float:
        """Return the factor on ``B @ A`` as it is stored: ``lora_alpha / r`` or ``lora_alpha / sqrt(r)``."""
        return self.stored[module].scale

    def read(self, module: str) -> LoraFactors:
        """Read one module, its scale folded as a square root into both factors, in float32 or float64."""
        return self.read_in(module, torch.float32)

    def read_in(self, module: str, least: torch.dtype) -> LoraFactors:
        """Read one module as :meth:`read` does, its scale folded in this dtype or a better one."""
        place, tensors = self._tensors(module)
        # Widened before scaling: half precision would round the product, and sqrt(s) is seldom exact in it.
        dtype = promoted_dtype((least, *(tensor.dtype for tensor in tensors)))
        if place.others and not all(map(all_finite, tensors)):  # no form decomposes what is not finite
            self._refuse(module, tensors)
        a, b = place.form(*(t.to(dtype) for t in tensors), *place.arguments)
        if any(
            t.dtype == dtype for t in tensors
        ):  # not widened: the tensors may be the file itself, mapped into memory
            factors = LoraFactors(a, b).scaled(place.scale)
        else:  # in place, as a copy costs more than the product
            root = abs(place.scale) ** 0.5
            factors = LoraFactors(a.mul_(root), b.mul_(root if place.scale >= 0 else -root))
        if not self._told and surely_sound(factors, self.dtype):
            return factors
        if not all(all_finite(factor) for factor in factors):
            self._refuse(module, tensors)
        if not self._told and units_cancel(factors, self.dtype):
            self._told.add(module)
            # names no module, so that the warnings of several processes that read one file are one
            where = "in at least one module (`lorakit inspect` names them)"
            warnings.warn(CancellingUnitsWarning.at(str(self.weights), where), stacklevel=2)
        return factors

    def svd(self, module: str, k: int | None = None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the SVD of a module's update, its scale in S; None where A and B are the way to it."""
        if self.stored[module].svd is None:
            return None
        place, tensors = self._tensors(module)
        if not all(map(all_finite, tensors)):
            self._refuse(module, tensors)
        assert place.svd is not None
        u, s, vh = place.svd(*(t.double() for t in tensors), *place.arguments, k=k)
        return u if place.scale >= 0 else -u, s * abs(place.scale), vh

    def _tensors(self, module: str) -> tuple[Stored, list[Tensor]]:
        """Read the tensors of a module, as they are stored."""
        for path, expected in self.stamps:
            require_unchanged(path, expected)
        place, opened = self.stored[module], self.stamps[0][1]
        if place.expert is None:
            own = read_whole(self.weights, place.keys, opened)
            return place, [*own, *(other.read() for other in place.others)]
        return place, read_expert(self.weights, place.keys, *place.expert, opened)

    def only(self, modules: Sequence[str]) -> FileModules:
        """Return a reader of these modules alone."""
        return FileModules(self.stamps, {m: self.stored[m] for m in modules}, self.dtype, self._told)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileModules, (self.stamps, self.stored, self.dtype)

    def _refuse(self, module: str, tensors: Sequence[Tensor]) -> NoReturn:
        """Say which of a module's tensors has values that are not finite, as it is stored or with its scale."""
        place = self.stored[module]
        named = [(self.weights, key) for key in place.keys]
        named += [(other.path or self.weights, other.name) for other in place.others]
        for (path, key), tensor in zip(named, tensors, strict=True):
            if bad := int((~torch.isfinite(tensor)).sum()):
                raise CorruptFileError(
                    f"{key!r} has {bad} NaN or infinite values of {tensor.numel()}",
                    path=path,
                    module=module,
                    expected="finite weights, training diverged or the file is damaged",
                    remedy="use an earlier checkpoint",
                )
        largest = max(tensor.abs().max().item() for tensor in tensors)
        raise CorruptFileError(
            f"module {module!r} has values up to {largest:.3g}, which its scale {place.scale:g} makes infinite",
            path=self.weights,
            module=module,
            expected="weights of a size that training gives",
            remedy="use an earlier checkpoint",
        )


def kinds_of(stored: Mapping[str, Stored]) -> tuple[str, ...]:
    """Return the kinds of adapter that modules are stored as, each once, sorted."""
    return tuple(sorted({place.kind for place in stored.values()}))


def stored_dtype(header: Mapping[str, TensorInfo], stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the smallest dtype that holds all factors as they are stored, and in which torch computes.

    That is bfloat16 if all of them are fp8; every other dtype holds the values of fp8.
    """
    names = {header[key].dtype for place in stored.values() for key in place.keys}
    return promoted_dtype(READ_DTYPES[name] for name in (sorted(names - set(FP8_DTYPES)) or names))
