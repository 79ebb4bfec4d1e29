"""What adapters in diffusers' files add to biases and norms: ``lora_bias`` of PEFT's layers, LyCORIS' differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ....adapters import Adapter
from ....exceptions import CorruptFileError, UnsupportedAdapterError
from ....files.checks import FileStamp
from ....files.safetensors import TensorInfo
from ...names.component import split_component
from .._differences import FileDifferences, WrittenDifferences, cast_difference, part_differences
from .._modules import Stored
from .._pairs import Pair
from ..codec import ReadOptions
from ..peft.bias import read_biases, written_biases
from ..peft.config import PeftConfig
from .keys import read_key


def biases_of(header: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the keys of the biases beside B, and the module that each is of."""
    found = {}
    for key in header:
        if key.endswith(".bias") and ".lora" in key:
            read = read_key(f"{key.removesuffix('.bias')}.weight")
            if read is not None and read[1].slot == "B":
                found[key] = read[0].full
    return found


def part_added(
    path: Path, opened: FileStamp, header: Mapping[str, TensorInfo], options: ReadOptions
) -> tuple[FileDifferences | None, dict[str, TensorInfo], tuple[str, ...]]:
    """Part LyCORIS' differences from the other tensors; their names are those of modules, as read today."""
    found, rest, notes = part_differences(path, opened, header, options)
    if found is not None:
        named = []
        for name, key, info, factor in found.places:
            layer, _, parameter = name.rpartition(".")
            named.append((f"{split_component(layer).full}.{parameter}", key, info, factor))
        found = replace(found, places=tuple(named))
    return found, rest, notes


def read_added(
    path: Path,
    opened: FileStamp,
    header: Mapping[str, TensorInfo],
    options: ReadOptions,
    biases: Mapping[str, str],
    pairs: Mapping[str, Pair],
    stored: Mapping[str, Stored],
    configs: Mapping[str, PeftConfig],
) -> tuple[FileDifferences | None, tuple[str, ...]]:
    """Check the biases beside B.

    Raises
    ------
    UnsupportedAdapterError
        If the config of their model does not say ``lora_bias``: diffusers would leave them out without a word.
    CorruptFileError
        If one has no factors beside it, or another length than B has rows, or the config speaks of biases and there
        are none.
    """
    for key, module in biases.items():
        config = configs.get(split_component(module).component)
        if config is not None and not config.lora_bias:
            raise UnsupportedAdapterError(
                f"has {key!r}, and its config does not say lora_bias, so that diffusers would leave it out",
                path=path,
                module=module,
                remedy="save it again with diffusers, or remove the tensor",
            )
    silent = next((name for name, config in configs.items() if config.lora_bias), None)
    if silent is not None and not any(split_component(module).component == silent for module in biases.values()):
        raise CorruptFileError(
            f"its config of {silent or 'the model'!r} says lora_bias, and it holds no bias",
            path=path,
            expected="names like '<module>.lora_B.bias'",
            remedy="the file is incomplete, save or download it again",
        )
    return read_biases(path, opened, header, options, lambda module, _: stored[module].scale, biases, pairs)


def joined(one: FileDifferences | None, other: FileDifferences | None) -> FileDifferences | None:
    """Return the differences of both kinds of one file."""
    if one is None or other is None:
        return one or other
    return replace(one, places=(*one.places, *other.places))


def written_added(adapter: Adapter, dtype: torch.dtype) -> WrittenDifferences:
    """Return what is written of an adapter's differences: biases of layers with factors."""
    found = written_biases(adapter, adapter, dtype, prefix="", holder="diffusers file")
    return {key: (info.shape, partial(cast_difference, adapter, name, dtype)) for name, (key, info) in found.items()}
