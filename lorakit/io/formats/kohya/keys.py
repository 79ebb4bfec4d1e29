"""Kohya's tensor names: which belong to which module, and what LoCon's third factor makes of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ....exceptions import CorruptFileError, UnsupportedAdapterError
from ....files.checks import FileStamp
from ....files.safetensors import READ_DTYPES, TensorInfo
from .._modules import Stored, plain
from .._pairs import Place, read_pairs
from ..codec import ReadOptions
from ..kinds.single_file import read_kinds, refuse_two_kinds

# A prefix that says which model, then the module's path with underscores for dots: lora_unet_, lora_te1_ (sd-scripts,
# musubi-tuner), lora_transformer_, lora_prior_unet_ (OneTrainer), lycoris_ (LyCORIS)
FAMILY = re.compile(r"(?:lora_[a-z0-9]+_|lycoris_)[^.]+\.")
DOWN, UP, MID, ALPHA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"
_SLOTS = {DOWN: "A", UP: "B", ALPHA: "alpha"}
# A factor that LoCon folds may hold this many times the numbers that are stored of it, and this many in all. With equal
# ranks, as trainers write them, it is less than the size of the kernel.
_MOST_FOLDED, _MOST_NUMBERS = 64, 1 << 26
_SPLIT = re.compile(r"lora_unet_double_blocks_\d+_(?:img|txt)_attn_qkv|lora_unet_single_blocks_\d+_linear1")


class Read(NamedTuple):
    """What a kohya file holds."""

    stored: dict[str, Stored]
    dropped: tuple[str, ...]


def read_modules(path: Path, opened: FileStamp, header: Mapping[str, TensorInfo], options: ReadOptions) -> Read:
    """Find every module of a kohya file, and read its alpha.

    Parameters
    ----------
    path, opened
        The file, and its stamp when the header was read.
    header : mapping of str to TensorInfo
        Its tensors.
    options : ReadOptions
        What the user chose.

    Raises
    ------
    CorruptFileError
        If a factor is alone, is empty, or does not fit its partners.
    UnsupportedAdapterError
        If a key belongs to another kind of adapter, or to none, or an alpha is 0.
    """
    if not any(FAMILY.match(key) for key in header):
        raise UnsupportedAdapterError(
            f"is no kohya file: its first keys are {list(header)[:3]}",
            path=path,
            expected="names like 'lora_unet_<module>.lora_down.weight'",
            remedy="leave format out to have it recognised",
        )
    mids = {key.removesuffix(f".{MID}"): key for key in header if key.endswith(f".{MID}")}
    others, rest = read_kinds(path, opened, header, options, _scale)
    folded = {key: info for key, info in rest.items() if key not in mids.values()}
    for module, key in mids.items():
        folded[f"{module}.{DOWN}"] = _folded_down(path, module, header, key)

    def place_of(key: str) -> Place | None:
        module, _, part = key.partition(".")
        if part in _SLOTS:
            return Place(module, _SLOTS[part])  # type: ignore[arg-type]
        if FAMILY.match(key):
            raise UnsupportedAdapterError(
                f"{key!r} belongs to a kind of LoRA not known here",
                path=path,
                expected="lora_down, lora_up, lora_mid and alpha, or the tensors of LoHa or LoKr, only",
                remedy="train a plain LoRA instead",
            )
        return None

    pairs, dropped = read_pairs(path, opened, folded, options, place_of, others=bool(others))
    stored = {}
    for module, pair in pairs.items():
        if module in others:
            refuse_two_kinds(path, module, pair.key_a, others[module].keys[0])
        scale = _scale(path, module, pair.alpha, header[pair.key_a].shape[0], options)
        if module in mids:
            stored[module] = Stored((pair.key_a, mids[module], pair.key_b), pair.info, scale, fold)
        else:
            stored[module] = Stored((pair.key_a, pair.key_b), pair.info, scale, plain)
    return Read(stored | others, dropped)


def fold(down: Tensor, mid: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of a convolution that LoCon stores as three: 1 x 1, a small kernel between ranks, 1 x 1."""
    a = torch.einsum("ij...,jc->ic...", mid, down.flatten(1))  # (r, r', kernel...) and (r', in): (r, in, kernel...)
    return a.flatten(1), up.flatten(1)


def split_modules(stored: Mapping[str, Stored], metadata: Mapping[str, str]) -> list[str]:
    """Return FLUX modules that hold Q, K and V (and the MLP) side by side, as ``split_qkv`` and converters write them.

    They are known by what the trainer says, and by a rank that is three or four times that of their block's output.
    """
    said = network_args(metadata).get("split_qkv") == "True"
    found = []
    for module in stored:
        if _SPLIT.fullmatch(module):
            parts = 4 if module.endswith("linear1") else 3
            output = stored.get(re.sub("qkv$", "proj", re.sub("linear1$", "linear2", module)))
            if said or (output is not None and stored[module].info.rank == parts * output.info.rank):
                found.append(module)
    return found


def network_args(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the trainer's ``ss_network_args``; nothing if there are none, or they are no JSON object."""
    try:
        found = json.loads(metadata.get("ss_network_args", "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _folded_down(path: Path, module: str, header: Mapping[str, TensorInfo], key: str) -> TensorInfo:
    """Return what the down projection of a module is once its third factor is folded in."""
    where, mid = f"{path}: module {module!r}", header[key]
    down, up = header.get(f"{module}.{DOWN}"), header.get(f"{module}.{UP}")
    if down is None or up is None:
        raise CorruptFileError(
            "has lora_mid, but not both lora_down and lora_up beside it",
            path=where,
            remedy="the file is incomplete, save or download it again",
        )
    if mid.dtype not in READ_DTYPES:
        raise UnsupportedAdapterError(
            f"{key!r} is stored as {mid.dtype}",
            path=where,
            expected=f"one of {', '.join(READ_DTYPES)}",
            remedy="convert it to floating point (dequantize it) first",
        )
    inner = (up.shape[1:2], down.shape[:1])
    if not 3 <= len(mid.shape) <= 5 or (mid.shape[:1], mid.shape[1:2]) != inner or set(down.shape[2:]) - {1}:
        raise CorruptFileError(
            f"lora_down {down.shape}, lora_mid {mid.shape} and lora_up {up.shape}",
            path=where,
            expected="(q, in, 1...), (r, q, kernel...) and (out, r, 1...)",
            remedy="save or download the file again",
        )
    folded = (mid.shape[0], *down.shape[1:2], *mid.shape[2:])
    stored = math.prod(down.shape) + math.prod(mid.shape)
    if math.prod(folded) > min(_MOST_FOLDED * stored, _MOST_NUMBERS):
        raise UnsupportedAdapterError(
            f"lora_down {down.shape} and lora_mid {mid.shape} are folded into a factor {folded}, of "
            f"{math.prod(folded)} numbers",
            path=path,
            module=module,
            expected=f"at most {_MOST_FOLDED} times the {stored} that are stored, and {_MOST_NUMBERS}",
            remedy="train a plain LoRA instead, or LoCon with equal ranks",
        )
    return TensorInfo(down.dtype, folded)


def _scale(path: Path, module: str, alpha: float | None, rank: int, options: ReadOptions) -> float:
    if alpha == 0:
        raise UnsupportedAdapterError(
            "alpha is 0, which sd-scripts takes for the rank and ComfyUI for no update at all",
            path=path,
            module=module,
            remedy="set it to what it was trained with, or remove it if that is the rank",
        )
    if alpha is None:
        alpha = float(rank) if options.assume_alpha is None else options.assume_alpha
    return alpha / rank
