"""PEFT's tensor names: which A belongs to which B, of what module, of what kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ....adapters import ModuleInfo
from ....exceptions import CorruptFileError, UnsupportedAdapterError
from ....files.safetensors import TensorInfo
from .._factors import check_factors, info_of
from .._pairs import Pair
from .._unsupported import refuse_markers
from .about import CONFIG, WEIGHTS

PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<slot>[AB])(?:\.(?P<name>[^.]+))?\.weight"
    r"|embedding_(?P<embedding_slot>[AB])(?:\.(?P<embedding_name>[^.]+))?)"
)


@dataclass(frozen=True)
class Pairs:
    """Everything in a PEFT weights file: factors by module, and the keys of what is stored beside them."""

    modules: Mapping[str, Pair]
    extra_weights: tuple[str, ...]


_BIAS = re.compile(r"(?P<module>.+)\.lora_B(?:\.default)?\.bias")


class _Match(NamedTuple):
    module: str
    slot: str
    embedding: bool
    adapter: str | None  # old versions of PEFT left the adapter's name in the key


def peft_keys(module: str, info: ModuleInfo) -> tuple[str, str]:
    """Return the names that PEFT gives A and B of a module, but for the prefix."""
    if info.kind.name == "embedding":
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def is_of_peft(weights: Path) -> bool:
    """Whether a file is half of a PEFT directory, whose config says how its factors scale, whatever its keys."""
    return weights.name == WEIGHTS and (weights.parent / CONFIG).exists()


def has_config(weights: Path, keys: Iterable[str]) -> bool:
    """Whether keys without PEFT's prefix stand beside its config, as those of a model that was not wrapped do."""
    # mlx-lm calls its config the same
    return (weights.parent / CONFIG).exists() and any(".lora_A" in key or ".lora_embedding_A" in key for key in keys)


def match_keys(path: Path, header: Mapping[str, TensorInfo], *, others: bool = False) -> Pairs:
    """Join the keys of a file into pairs.

    Parameters
    ----------
    path : Path
        The file, for messages.
    header : mapping of str to TensorInfo
        Its tensors.
    others : bool, default=False
        Whether the file has modules of other kinds, so that it need not have pairs.

    Returns
    -------
    Pairs
        Modules in the order of the file.

    Raises
    ------
    CorruptFileError
        If a factor is alone, is empty, or does not fit its partner.
    UnsupportedAdapterError
        If there are no LoRA factors, or factors of a kind that is not plain LoRA.
    """
    matches = {key: found for key in header if (found := _match(key)) is not None}
    extra_weights = tuple(key for key in header if key not in matches)
    of_lora = [key for key in extra_weights if ".lora_" in key]
    if doubtful := of_lora if matches and not others else extra_weights:
        refuse_markers(path, doubtful)
    if of_lora:
        raise UnsupportedAdapterError(
            f"{of_lora[0]!r} belongs to a kind of LoRA not known here",
            path=path,
            expected="lora_A and lora_B only",
            remedy="train a plain LoRA instead",
        )
    if others and matches:
        raise CorruptFileError(
            f"{next(iter(matches))!r} is a factor of plain LoRA",
            path=path,
            expected="tensors of the kind that the config names",
            remedy="correct peft_type, or save the adapter again",
        )
    if not matches and not others:
        raise UnsupportedAdapterError(
            f"holds no LoRA factors: its first keys are {list(header)[:3]}",
            path=path,
            expected=f"names like '{PREFIX}<module>.lora_A.weight'",
            remedy="is it another kind of adapter, or a whole model?",
        )
    _check_one_adapter(path, matches)
    slots: dict[str, dict[str, str]] = {}
    for key, found in matches.items():
        slot = f"embedding_{found.slot}" if found.embedding else found.slot
        slots.setdefault(found.module, {})[slot] = key
    return Pairs({module: _pair(path, module, keys, header) for module, keys in slots.items()}, extra_weights)


def bias_of(key: str) -> str | None:
    """Return the module whose B has this bias; None for other keys.

    Examples
    --------
    >>> bias_of("base_model.model.q.lora_B.bias"), bias_of("q.lora_B.default.bias"), bias_of("q.bias")
    ('q', 'q', None)
    """
    found = _BIAS.fullmatch(key.removeprefix(PREFIX))
    return None if found is None else found["module"]


def _match(key: str) -> _Match | None:
    found = _KEY.fullmatch(key.removeprefix(PREFIX))
    if found is None:
        return None
    embedding = found["embedding_slot"] is not None
    prefix = "embedding_" if embedding else ""
    return _Match(found["module"], found[f"{prefix}slot"], embedding, found[f"{prefix}name"])


def _check_one_adapter(path: Path, matches: Mapping[str, _Match]) -> None:
    adapters = {found.adapter for found in matches.values()}
    if len(adapters) > 1:
        raise UnsupportedAdapterError(
            f"holds several adapters: the names {sorted(map(str, adapters))} stand in its keys",
            path=path,
            expected="one",
            remedy="save each into its own directory (PEFT: save_pretrained(selected_adapters=[...]))",
        )
    if len({key.startswith(PREFIX) for key in matches}) > 1:
        bare = next(key for key in matches if not key.startswith(PREFIX))
        raise UnsupportedAdapterError(
            f"{bare!r} lacks the prefix {PREFIX!r} that other keys have",
            path=path,
            expected="all or none",
            remedy="rename it",
        )
    inside = next((found.module for found in matches.values() if ".base_layer." in found.module), None)
    if inside is not None:
        raise UnsupportedAdapterError(
            f"module {inside!r} lies inside another adapted one, as in nn.MultiheadAttention, which is not supported",
            path=path,
            module=inside,
            remedy="train without it, or merge it into its base model with PEFT's merge_and_unload",
        )


def _pair(path: Path, module: str, keys: Mapping[str, str], header: Mapping[str, TensorInfo]) -> Pair:
    where = f"{path}: module {module!r}"
    embedding = any(slot.startswith("embedding_") for slot in keys)
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(keys) != set(names):
        have, lacks = sorted(keys), sorted(set(names) - set(keys)) or "one kind"
        raise CorruptFileError(
            f"has lora_{' and lora_'.join(have)} but expected the pair lora_{' and lora_'.join(names)} (lacks {lacks})",
            path=where,
            remedy="the file is incomplete, save or download it again",
        )
    key_a, key_b = (keys[name] for name in names)
    check_factors(where, (key_a, key_b), header)
    return Pair(key_a, key_b, info_of(where, header[key_a].shape, header[key_b].shape, embedding))
