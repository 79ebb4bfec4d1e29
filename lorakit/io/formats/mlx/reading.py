"""Opening mlx-lm's adapters: one scale for all modules, factors the other way round, experts one behind the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ....adapters import ModuleInfo, ModuleKind
from ....exceptions import CorruptFileError, Setting, UnsupportedAdapterError
from ....files.json_text import is_number, read_json_object, shown
from ....files.safetensors import TensorInfo
from .._factors import MOST_MODULES, check_factors, refuse_extra_weights
from .._modules import FileModules, Stamps, Stored, plain, stored_dtype
from .._unsupported import refuse_markers
from ..codec import Location, ReadOptions
from ..dora import rescaled
from .about import CONFIG

KEY = re.compile(r"(.+)\.lora_(a|b)")
# What models call their embeddings. An embedding's file looks like a linear module's, and only its name tells.
_EMBEDDING = re.compile(r"(?:.+\.)?(?:embed_tokens|tok_embeddings|word_embeddings|embed_in|wte|wpe)")
_WITH_BASE = (Setting("base"), ", the model that it was trained on; or ")
_TRAIN_PLAIN = "train with fine_tune_type='lora', or fuse it into its base model with mlx_lm.fuse"


class Config(NamedTuple):
    """What ``adapter_config.json`` says that matters here."""

    rank: int | None
    scale: float | None
    base_model: str | None
    notes: tuple[str, ...] = ()
    dora: bool = False


def read_mlx(location: Location, weights: Path, options: ReadOptions) -> tuple[FileModules, Config, tuple[str, ...]]:
    """Open the adapter whose weights these are; return its modules, its config, and the keys that are left out.

    Raises
    ------
    LorakitError
        If the files are corrupt, unsafe, or hold something that cannot be merged exactly.
    """
    config_path = weights.parent / CONFIG
    stamps: Stamps = ((weights, location.stamp(weights)),)
    config = Config(None, None, None)
    if config_path.exists():
        stamps += ((config_path, location.stamp(config_path)),)
        config = _read_config(config_path, read_json_object(config_path), dora=options.base is not None)
    header = location.header(weights).tensors
    refuse_markers(weights, header)
    slots, magnitudes, extra_weights = _slots(weights, header, options)
    stored: dict[str, Stored] = {}
    for module, keys in slots.items():
        for name, place in _stored(weights, module, keys, header).items():
            if name in stored:
                raise UnsupportedAdapterError(
                    f"{name!r} is both an expert of a module and a module of its own",
                    path=weights,
                    module=name,
                    expected="experts to be stacked or apart, not both",
                    remedy="rename one of the two",
                )
            if len(stored) >= MOST_MODULES:
                raise CorruptFileError(
                    f"holds more than {MOST_MODULES} experts and other modules",
                    path=weights,
                    remedy="save or download it again",
                )
            stored[name] = place._replace(scale=_scale(weights, config_path, config, name, place.info.rank, options))
    lacking = next((module for module in stored if config.dora and module not in magnitudes), None)
    if lacking is not None:
        raise CorruptFileError(
            "lacks m, its lengths, and fine_tune_type is 'dora'",
            path=weights,
            module=lacking,
            remedy="the file is incomplete, save or download it again",
        )
    stored = rescaled(weights, header, stored, magnitudes, options, format="mlx", metadata={})
    return FileModules(stamps, stored, stored_dtype(header, stored)), config, extra_weights


def transposed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B from lora_a (d_in, r) and lora_b (r, d_out)."""
    return a.T, b.T


def _read_config(path: Path, fields: Mapping[str, Any], *, dora: bool) -> Config:
    kind = fields.get("fine_tune_type", "lora")
    if kind != "lora" and not (kind == "dora" and dora):
        meaning = {"dora": "DoRA also rescales the base weights", "full": "whole weights were trained"}
        means = meaning.get(str(kind), "it is not known here")
        raise UnsupportedAdapterError(
            f"fine_tune_type is {shown(kind)}",
            path=path,
            expected=f"'lora': {means}, so B @ A is not the update",
            remedy=[*(_WITH_BASE if kind == "dora" else ()), _TRAIN_PLAIN],
        )
    found = fields.get("lora_parameters")
    if not isinstance(found, dict):
        raise UnsupportedAdapterError(
            "has no lora_parameters, and the scale of the update with them",
            path=path,
            expected="the config that mlx-lm writes",
            remedy="copy it from where the adapter came from",
        )
    rank, scale, alpha = (_number(path, name, found.get(name)) for name in ("rank", "scale", "alpha"))
    notes = []
    if scale is not None and alpha is not None and rank and alpha != rank:
        notes.append(
            f"{path}: lora_parameters has scale={scale:g} and also alpha={alpha:g}, which mlx-lm ignores, as is done "
            f"here; if it was trained with a version of early 2024, whose scale was scale * alpha / rank, set scale to "
            f"{scale * alpha / rank:g} and remove alpha"
        )
    model = fields.get("model")
    known = model if isinstance(model, str) and model else None
    if rank is not None and (rank < 1 or rank != int(rank)):
        raise CorruptFileError(
            f"lora_parameters: rank is {shown(found.get('rank'))}",
            path=path,
            expected="a whole number of 1 or more",
            remedy="correct the file",
        )
    return Config(None if rank is None else int(rank), scale, known, tuple(notes), kind == "dora")


def _number(path: Path, name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not is_number(value):
        raise CorruptFileError(
            f"lora_parameters: {name} is {shown(value)}",
            path=path,
            expected="a number",
            remedy="correct the file",
        )
    return float(value)


def _scale(weights: Path, config_path: Path, config: Config, module: str, rank: int, options: ReadOptions) -> float:
    if config.rank is not None and config.rank != rank:
        raise CorruptFileError(
            f"module {module!r} has rank {rank}, {config_path.name} says {config.rank}",
            path=weights,
            module=module,
            remedy="mlx-lm cannot load this either, so correct the rank, or copy the matching file",
        )
    if config.scale is not None:
        return config.scale
    if options.assume_alpha is not None:
        return options.assume_alpha / rank
    seen = "has no scale in lora_parameters" if config_path.exists() else "is missing, and the scale with it"
    raise UnsupportedAdapterError(
        seen,
        path=config_path,
        expected="the config that mlx-lm writes",
        remedy=[
            "copy it from where the adapter came from, or ",
            Setting("assume_alpha"),
            " (scale times rank) if you know it",
        ],
    )


def _slots(
    weights: Path, header: Mapping[str, TensorInfo], options: ReadOptions
) -> tuple[dict[str, dict[str, str]], dict[str, str], tuple[str, ...]]:
    slots: dict[str, dict[str, str]] = {}
    extra_weights: list[str] = []
    for key in header:
        found = KEY.fullmatch(key)
        if found is None:
            extra_weights.append(key)
        else:
            slots.setdefault(found[1], {})[found[2]] = key
    if not slots:
        raise UnsupportedAdapterError(
            f"holds no LoRA factors: its first keys are {list(header)[:3]}",
            path=weights,
            expected="names like '<module>.lora_a'",
            remedy="is it another kind of adapter, or a whole model?",
        )
    magnitudes = {module: f"{module}.m" for module in slots if f"{module}.m" in header}
    if magnitudes and options.base is None:
        raise UnsupportedAdapterError(
            f"{next(iter(magnitudes.values()))!r} belongs to DoRA, which also rescales the base weights",
            path=weights,
            expected="lora_a and lora_b only",
            remedy=[*_WITH_BASE, _TRAIN_PLAIN],
        )
    extra_weights = [key for key in extra_weights if key not in magnitudes.values()]
    if options.modules_to_save != "drop":
        refuse_extra_weights(weights, extra_weights)
    return slots, magnitudes, tuple(extra_weights)


def _stored(weights: Path, module: str, keys: Mapping[str, str], header: Mapping[str, TensorInfo]) -> dict[str, Stored]:
    """Return where the module lies; of a layer of experts, where each of them does."""
    where = f"{weights}: module {module!r}"
    if set(keys) != {"a", "b"}:
        raise CorruptFileError(
            f"has lora_{' and lora_'.join(keys)} but expected the pair lora_a and lora_b",
            path=where,
            remedy="the file is incomplete, save or download it again",
        )
    pair = (keys["a"], keys["b"])
    check_factors(where, pair, header)
    a, b = (header[key].shape for key in pair)
    if len(a) == len(b) == 2 and a[1] == b[0]:
        kind = ModuleKind("embedding" if _EMBEDDING.fullmatch(module) else "linear")
        return {module: Stored(pair, ModuleInfo(a[1], a[0], b[1], kind), 1.0, transposed)}
    if len(a) == len(b) == 3 and a[0] == b[0] and a[1] == b[2]:
        info = ModuleInfo(a[1], a[2], b[1], ModuleKind("expert", experts=a[0], parameters=("weight",)))
        return {f"{module}.{i}": Stored(pair, info, 1.0, plain, expert=(i, a[0])) for i in range(a[0])}
    raise CorruptFileError(
        f"lora_a {a} and lora_b {b}",
        path=where,
        expected="(in, r) and (r, out), or for experts (experts, r, in) and (experts, out, r)",
        remedy="save or download the file again",
    )
