"""Biases that PEFT trains beside B (``lora_bias``): added to the bias of the layer, times the scale of its factors."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import NoReturn

import torch

from ....adapters import Adapter
from ....exceptions import CorruptFileError, OutputError, Setting, UnsupportedAdapterError
from ....files.checks import FileStamp
from ....files.safetensors import FLOAT_NAMES, TensorInfo
from .._differences import FileDifferences, opened_differences
from .._pairs import Pair
from ..codec import ReadOptions
from .keys import PREFIX


def read_biases(
    path: Path,
    opened: FileStamp,
    header: Mapping[str, TensorInfo],
    options: ReadOptions,
    scale_of: Callable[[str, int], float],
    biases: Mapping[str, str],
    modules: Mapping[str, Pair],
    stacks: Container[str] = (),
) -> tuple[FileDifferences | None, tuple[str, ...]]:
    """Check the biases of an adapter's file.

    Parameters
    ----------
    path, opened, header, options
        As in :func:`~lorakit.io.formats._differences.part_differences`.
    scale_of : callable
        From a module and its rank to the factor on ``B @ A``, which is that on the bias too.
    biases : mapping of str to str
        From keys to modules.
    modules : mapping of str to Pair
        The factors of each module.
    stacks : container of str
        The modules that are stacks of experts.

    Returns
    -------
    differences : FileDifferences or None
        None if they are dropped.
    notes : tuple of str
        What the user should know.

    Raises
    ------
    CorruptFileError
        If a bias has no factors beside it, or another length than B has rows.
    UnsupportedAdapterError
        If it is of a stack of experts.
    """
    places = {}
    for key, module in biases.items():
        if module not in modules:
            raise CorruptFileError(
                f"has {key!r} and no factors", path=path, module=module, remedy="save or download the file again"
            )
        if module in stacks:
            raise UnsupportedAdapterError(
                f"has {key!r}, a bias of experts that are stacked", path=path, module=module, remedy="train without it"
            )
        info = modules[module].info
        if header[key].shape != (info.d_out,):
            raise CorruptFileError(
                f"{key!r} has the shape {header[key].shape}",
                path=path,
                module=module,
                expected=f"a number for each of {info.d_out} outputs",
                remedy="save or download the file again",
            )
        places[f"{module}.bias"] = key, scale_of(module, info.rank)
    return opened_differences(path, opened, header, options, places)


def written_biases(
    adapter: Adapter,
    modules: Container[str],
    dtype: torch.dtype,
    *,
    prefix: str = PREFIX,
    holder: str = "PEFT directory",
) -> dict[str, tuple[str, TensorInfo]]:
    """Return key, dtype and shape of what is written of an adapter's differences, by their names.

    Parameters
    ----------
    adapter : Adapter
        The adapter.
    modules : container of str
        Its modules that are written with factors of their own.
    dtype : torch.dtype
        Of the file.
    prefix : str
        What stands before the names of modules.
    holder : str
        What is written, for messages.

    Raises
    ------
    OutputError
        If one is of another parameter than the bias of a layer with factors.
    """
    if adapter.differences is None:
        return {}
    found = {}
    for name, (_, shape) in sorted(adapter.differences.infos.items()):
        module, _, parameter = name.rpartition(".")
        if parameter != "bias" or module not in modules or adapter.infos[module].kind.name not in ("linear", "conv"):
            _refuse(adapter, name, holder)
        found[name] = f"{prefix}{module}.lora_B.bias", TensorInfo(FLOAT_NAMES[dtype], shape)
    return found


def _refuse(adapter: Adapter, name: str, holder: str) -> NoReturn:
    raise OutputError(
        f"the adapter also adds to {name!r}, and a {holder} holds biases of adapted layers only",
        adapters=[adapter.name],
        remedy=["write it as kohya or comfyui, or ", Setting("differences", "drop"), " when the inputs are read"],
    )
