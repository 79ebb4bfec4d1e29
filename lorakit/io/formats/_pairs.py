"""What formats of one file share: A, B and alpha of each module, found by the names of the tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ...adapters import Adapter, ModuleInfo
from ...exceptions import CorruptFileError, UnsupportedAdapterError
from ...files.checks import FileStamp
from ...files.safetensors import FLOAT_NAMES, TensorInfo, write_tensors
from ...files.tensors import read_whole
from ._differences import WrittenDifferences, written_differences
from ._factors import check_factors, info_of, refuse_extra_weights
from ._padding import plain_factors, plain_infos
from ._unsupported import refuse_markers
from .codec import ReadOptions
from .record import KEY

Slot = Literal["A", "B", "alpha"]
# Metadata that describes the bytes of the file that was read, and does not hold for the file that is written.
_NOT_KEPT = ("format", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", KEY)


# All spellings of A and B by diffusers, ComfyUI and trainers over the years; PEFT's adapter name may be part of a key.
_FACTOR = re.compile(
    r"(?P<module>.+?)(?:(?P<spelling>\.lora_|\.lora\.|\.lora_linear_layer\.|_lora\.)(?P<slot>A|B|down|up)(?:\.default)?"
    r"(?:\.weight)?|\.lora_embedding_(?P<embedding>A|B)(?:\.default)?|\.(?P<alpha>alpha))"
)
_SLOTS: dict[str, Slot] = {"A": "A", "down": "A", "B": "B", "up": "B"}


class Place(NamedTuple):
    """What a tensor is to its module."""

    module: str
    slot: Slot
    embedding: bool = False
    spelling: str = ""  # what stands between the module and A or B


def place_of_key(key: str) -> Place | None:
    """Read the end of a key; None if it is that of no factor.

    Examples
    --------
    >>> place_of_key("unet.mid.to_q.lora.down.weight")
    Place(module='unet.mid.to_q', slot='A', embedding=False, spelling='.lora.')
    >>> place_of_key("unet.mid.to_q.alpha").slot
    'alpha'
    """
    found = _FACTOR.fullmatch(key)
    if found is None:
        return None
    if found["alpha"]:
        return Place(found["module"], "alpha")
    if found["embedding"]:
        return Place(found["module"], _SLOTS[found["embedding"]], embedding=True)
    return Place(found["module"], _SLOTS[found["slot"]], spelling=found["spelling"])


class Pair(NamedTuple):
    """The tensors of one module, and what they add up to."""

    key_a: str
    key_b: str
    info: ModuleInfo
    alpha: float | None = None  # None if the file has no tensor for it


def read_pairs(
    path: Path,
    opened: FileStamp,
    header: Mapping[str, TensorInfo],
    options: ReadOptions,
    place_of: Callable[[str], Place | None],
    *,
    others: bool = False,
) -> tuple[dict[str, Pair], tuple[str, ...]]:
    """Join the keys of a file into pairs, and read the alphas.

    Parameters
    ----------
    path, opened
        The file, and its stamp when the header was read.
    header : mapping of str to TensorInfo
        Its tensors.
    options : ReadOptions
        What the user chose about tensors that are no part of a LoRA.
    place_of : callable
        From a key to what it is; None for a key that is no part of a LoRA.
    others : bool, default=False
        Whether the file has modules of other kinds, so that it need not have pairs.

    Returns
    -------
    pairs : dict of str to Pair
        By module, in the order of the file.
    dropped : tuple of str
        Keys that are left out because the options say so.

    Raises
    ------
    CorruptFileError
        If a factor is alone, is empty, or does not fit its partner.
    UnsupportedAdapterError
        If a key belongs to another kind of adapter, or to none.
    """
    refuse_markers(path, header)
    slots: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    extra_weights = []
    for key in header:
        place = place_of(key)
        if place is None:
            if ".lora" in key:  # never left out: its module would be wrong without it
                raise UnsupportedAdapterError(
                    f"{key!r} belongs to a kind of LoRA not known here",
                    path=path,
                    expected="A, B and alpha only",
                    remedy="train a plain LoRA instead",
                )
            extra_weights.append(key)
            continue
        other = slots.setdefault(place.module, {}).setdefault(place.slot, key)
        if other != key:
            raise CorruptFileError(
                f"{other!r} and {key!r} are both its {place.slot}",
                path=path,
                module=place.module,
                expected="one",
                remedy="remove the other",
            )
        if place.embedding:
            embeddings.add(place.module)
    if not slots and not others:
        raise UnsupportedAdapterError(
            f"holds no LoRA factors: its first keys are {list(header)[:3]}",
            path=path,
            remedy="is it another kind of adapter, or a whole model?",
        )
    if options.modules_to_save != "drop":
        refuse_extra_weights(path, extra_weights)
    keys_of_alpha = {module: found["alpha"] for module, found in slots.items() if "alpha" in found}
    alphas = read_alphas(path, opened, header, keys_of_alpha)
    pairs = {
        module: _pair(f"{path}: module {module!r}", keys, header, alphas.get(module), module in embeddings)
        for module, keys in slots.items()
    }
    return pairs, tuple(extra_weights)


def kept_metadata(metadata: Mapping[str, str], *others: str) -> dict[str, str]:
    """Return what of a header is written again: all but hashes of its bytes, and these other keys."""
    return {key: text for key, text in metadata.items() if key not in (*_NOT_KEPT, *others)}


def write_pairs(
    file: Path,
    adapter: Adapter,
    ranks: Mapping[str, int],
    dtype: torch.dtype,
    keys_of: Callable[[str, ModuleInfo], tuple[str, str]],
    metadata: Mapping[str, str],
    differences: Callable[[Adapter, torch.dtype], WrittenDifferences] = written_differences,
) -> None:
    """Write A and B of every module, sorted by name, one module in memory at a time; no alpha, which then is the rank.

    Parameters
    ----------
    file : Path
        The file to make.
    adapter : Adapter
        What to write.
    ranks : mapping of str to int
        The rank of each module in the file.
    dtype : torch.dtype
        Of the file.
    keys_of : callable
        From a module's name and info to the keys of A and B.
    metadata : mapping of str to str
        Of the header.
    differences : callable
        What is written of what the adapter adds to whole parameters; by default as LyCORIS names it.
    """
    keys = {module: keys_of(module, info) for module, info in adapter.infos.items()}
    order = sorted(adapter, key=keys.__getitem__)
    infos: dict[str, TensorInfo] = {}
    for module in order:
        infos.update(zip(keys[module], plain_infos(adapter.infos[module], ranks[module], dtype), strict=True))
    tensors = (half for module in order for half in plain_factors(adapter, module, ranks[module], dtype))
    whole = differences(adapter, dtype)
    infos.update({key: TensorInfo(FLOAT_NAMES[dtype], shape) for key, (shape, _) in whole.items()})
    write_tensors(file, infos, chain(tensors, (read() for _, read in whole.values())), metadata)


def read_alphas(
    path: Path, opened: FileStamp, header: Mapping[str, TensorInfo], keys: Mapping[str, str]
) -> dict[str, float]:
    """Read the alphas of modules, given the key of each.

    Raises
    ------
    CorruptFileError
        If one is not a single finite number.
    """
    for module, key in keys.items():
        if math.prod(header[key].shape) != 1:
            raise CorruptFileError(
                f"{key!r} has shape {header[key].shape}",
                path=path,
                module=module,
                expected="one number",
                remedy="save or download the file again",
            )
    if not keys:
        return {}
    alphas = {m: float(t.float()) for m, t in zip(keys, read_whole(path, list(keys.values()), opened), strict=True)}
    for module, alpha in alphas.items():
        if not math.isfinite(alpha):
            raise CorruptFileError(
                f"{keys[module]!r} is {alpha}",
                path=path,
                module=module,
                expected="a finite number",
                remedy="use an earlier checkpoint",
            )
    return alphas


def _pair(
    where: str, keys: Mapping[str, str], header: Mapping[str, TensorInfo], alpha: float | None, embedding: bool
) -> Pair:
    for slot in ("A", "B"):
        if slot not in keys:
            raise CorruptFileError(
                f"has {', '.join(map(repr, keys.values()))} but lacks its {slot}",
                path=where,
                remedy="the file is incomplete, save or download it again",
            )
    key_a, key_b = keys["A"], keys["B"]
    check_factors(where, (key_a, key_b), header)
    info = info_of(where, header[key_a].shape, header[key_b].shape, embedding, flat_b=True)
    return Pair(key_a, key_b, info, alpha)
