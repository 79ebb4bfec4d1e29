"""Differences of biases, norms and other vectors in the files of adapters: recognised, checked, read when asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..._few import few
from ...adapters import Adapter
from ...exceptions import CorruptFileError, OutputError, Setting, UnsupportedAdapterError
from ...factors import all_finite, dtype_name, promoted_dtype
from ...files.checks import FileStamp
from ...files.safetensors import READ_DTYPES, TensorInfo
from ._factors import check_factors, read_checked
from .codec import ReadOptions

__all__ = ["FileDifferences", "Parted", "WrittenDifferences", "cast_difference", "opened_differences",
           "part_differences", "written_differences", "written_key"]  # fmt: skip

# As LyCORIS and ComfyUI name them. A difference of a matrix or a kernel is an update like any other: see kinds.full.
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>diff|diff_b|w_norm|b_norm)")
_PARAMETERS = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}


@dataclass(frozen=True)
class FileDifferences:
    """Differences in the file of an adapter. It pickles as where they lie.

    Parameters
    ----------
    file : str
        The weights.
    size, mtime_ns : int
        Size and time of the file when it was opened.
    places : tuple of (str, str, TensorInfo, float)
        For each parameter: its name, the key in the file, dtype and shape, and the factor on it.
    """

    file: str
    size: int
    mtime_ns: int
    places: tuple[tuple[str, str, TensorInfo, float], ...]

    @cached_property
    def infos(self) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of what is added to each parameter, by its name."""
        return {name: (READ_DTYPES[info.dtype], info.shape) for name, _, info, _ in self.places}

    @cached_property
    def _found(self) -> dict[str, tuple[str, float]]:
        return {name: (key, factor) for name, key, _, factor in self.places}

    def read(self, name: str) -> Tensor:
        """Read what is added to one parameter, in float32 or better."""
        key, factor = self._found[name]
        opened = self.size, self.mtime_ns
        tensor = read_checked(Path(self.file), key, opened, "", Setting("differences", "drop"))
        return tensor.to(promoted_dtype((torch.float32, tensor.dtype))) * factor


class Parted(NamedTuple):
    """The tensors of a file, those that are differences apart from the others."""

    differences: FileDifferences | None
    rest: dict[str, TensorInfo]
    notes: tuple[str, ...] = ()


def part_differences(
    path: Path,
    opened: FileStamp,
    header: Mapping[str, TensorInfo],
    options: ReadOptions,
    is_ours: Callable[[str], object] = bool,
) -> Parted:
    """Part the differences of vectors from the other tensors of a single file.

    Parameters
    ----------
    path, opened
        The file, and its stamp when the header was read.
    header : mapping of str to TensorInfo
        Its tensors.
    options : ReadOptions
        What the user chose: whether they are refused, kept or dropped.
    is_ours : callable
        Whether a key is one of the format's.

    Raises
    ------
    UnsupportedAdapterError
        If the options refuse them, or a tensor is no floating-point numbers.
    CorruptFileError
        If one is no vector or is empty, or two are of one parameter.
    """
    found: dict[str, str] = {}
    for key, info in header.items():
        match = _KEY.fullmatch(key)
        if match is None or not is_ours(key) or (match["part"] == "diff" and len(info.shape) > 1):
            continue
        name = f"{match['module']}.{_PARAMETERS[match['part']]}"
        if found.setdefault(name, key) != key:
            raise CorruptFileError(
                f"{found[name]!r} and {key!r} are both added to {name!r}",
                path=path,
                expected="one",
                remedy="remove the other",
            )
    kept, notes = opened_differences(path, opened, header, options, {name: (key, 1.0) for name, key in found.items()})
    return Parted(kept, {key: info for key, info in header.items() if key not in found.values()}, notes)


def opened_differences(
    path: Path,
    opened: FileStamp,
    header: Mapping[str, TensorInfo],
    options: ReadOptions,
    keys: Mapping[str, tuple[str, float]],
) -> tuple[FileDifferences | None, tuple[str, ...]]:
    """Check the differences of a file, and return them with what the user should know; None if they are dropped.

    Parameters
    ----------
    path, opened, header, options
        As in :func:`part_differences`.
    keys : mapping of str to (str, float)
        From parameters to keys and the factors on them.
    """
    if not keys:
        return None, ()
    named = [repr(key) for key, _ in keys.values()]
    if options.differences == "refuse":
        others = f" (so do {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise UnsupportedAdapterError(
            f"{named[0]} belongs to whole differences of biases or normalisation weights, without factors{others}",
            path=path,
            expected="LoRA factors A and B only",
            remedy=[
                Setting("differences", "keep"),
                ", for methods that add updates up, or ",
                Setting("differences", "drop"),
                " to leave them out",
            ],
        )
    if options.differences == "drop":
        return None, (f"{path}: left out, because of differences='drop': {few(named)}",)
    for key, _ in keys.values():
        check_factors(str(path), (key,), header)
        if len(header[key].shape) != 1:
            raise CorruptFileError(
                f"{key!r} has the shape {header[key].shape}",
                path=path,
                expected="a vector, which is added to a bias or to the weight of a norm",
                remedy="save or download the file again",
            )
    places = tuple((name, key, header[key], factor) for name, (key, factor) in keys.items())
    return FileDifferences(str(path), *opened, places), ()


WrittenDifferences = dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]]  # shapes and readers, by keys


def written_differences(adapter: Adapter, dtype: torch.dtype) -> WrittenDifferences:
    """Return what is written of the differences of an adapter in a single file: shapes and readers by keys, sorted.

    Parameters
    ----------
    adapter : Adapter
        The adapter.
    dtype : torch.dtype
        Of the file.
    """
    if adapter.differences is None:
        return {}
    infos = adapter.differences.infos
    keys = {written_key(name, infos): name for name in infos}
    return {key: (infos[name][1], partial(cast_difference, adapter, name, dtype)) for key, name in sorted(keys.items())}


def cast_difference(adapter: Adapter, name: str, dtype: torch.dtype) -> Tensor:
    """Read what is added to one parameter, for a file of this dtype.

    Raises
    ------
    OutputError
        If a value does not fit the dtype.
    """
    assert adapter.differences is not None
    exact = adapter.differences.read(name)
    cast = exact.to(dtype)
    if not all_finite(cast):
        raise OutputError(
            f"the difference of {name!r} has values up to {exact.abs().max().item():.3g}, {dtype_name(dtype)} holds at "
            f"most {torch.finfo(dtype).max:.3g}",
            adapters=[adapter.name],
            remedy=[Setting("dtype", torch.bfloat16, torch.float32)],
        )
    return cast


def written_key(name: str, names: Mapping[str, object]) -> str:
    """Return the key of a parameter in a single file, as LyCORIS and ComfyUI read it.

    Examples
    --------
    >>> names = {"norm.weight": None, "norm.bias": None, "q.bias": None}
    >>> [written_key(name, names) for name in names]
    ['norm.w_norm', 'norm.b_norm', 'q.diff_b']
    """
    module, _, part = name.rpartition(".")
    if part == "weight":
        return f"{module}.w_norm"
    return f"{module}.b_norm" if f"{module}.weight" in names else f"{module}.diff_b"
