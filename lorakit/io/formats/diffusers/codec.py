"""diffusers' single files, of all its versions: the factors of a pipeline's models, each under its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....adapters import Adapter, Provenance
from ....exceptions import CorruptFileError, Setting, UnsupportedAdapterError
from ....files.json_text import parse_json
from ...names.component import ModuleName, split_component
from ...names.spelling import Spelling
from ...names.steps import diffusers_to_diffusers, diffusers_to_peft, peft_to_diffusers
from .._factors import left_out
from .._modules import FileModules, Stored, kinds_of, plain, stored_dtype
from .._padding import written_ranks
from .._pairs import Pair, Place, kept_metadata, read_pairs, write_pairs
from .._unsupported import is_marked
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..dora import rescaled, split_magnitudes
from ..kinds.loha import LOHA
from ..kinds.lokr import LOKR
from ..kinds.single_file import read_kinds, refuse_two_kinds
from ..peft.config import PeftConfig, config_of
from ..peft.keys import PREFIX, is_of_peft, peft_keys
from ..peft.writing import config_fields, make_plan
from ..record import header_metadata, make_record
from .about import ABOUT
from .added import biases_of, joined, part_added, read_added, written_added
from .keys import read_key
from .servers import DIFFUSERS

__all__ = ["CODEC"]

_FLAT = re.compile(r"lora_[a-z0-9]+_[^.]+|lycoris_[^.]+")  # kohya's names; diffusers' have dots
_CONFIGS = "lora_adapter_metadata"  # key of the header: the config of every model, each field after the model's name


def _recognises(location: Location, weights: Path) -> bool:
    if is_of_peft(weights):
        return False
    header = location.header(weights)
    if any(key.startswith(PREFIX) for key in header.tensors):
        return False
    if _CONFIGS in header.metadata:
        return True
    return any(split_component(key).component and (read_key(key) or is_marked(key)) for key in header.tensors)


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    opened = location.stamp(weights)
    header = location.header(weights)
    magnitudes, tensors = split_magnitudes(header.tensors, options, _module_of)
    biases = {} if options.differences == "refuse" else biases_of(tensors)  # otherwise refused by name, as markers
    tensors = {key: info for key, info in tensors.items() if key not in biases} if biases else tensors
    differences, tensors, said = part_added(weights, opened, tensors, options)
    found, rest = read_kinds(weights, opened, tensors, options, _scale_of_kind, (LOHA, LOKR))
    others = {split_component(module).full: place for module, place in found.items()}
    pairs, dropped = read_pairs(weights, opened, rest, options, _place, others=bool(others))
    names = {module: _name(pair.key_a) for module, pair in pairs.items()}
    names |= {split_component(module).full: split_component(module) for module in found}
    _check_kinds(weights, header.metadata, pairs, others)
    _check_one_spelling(weights, names)
    configs = _configs(weights, header.metadata, {name.component for name in names.values()}, options)
    stored = {
        module: Stored(
            (pair.key_a, pair.key_b),
            pair.info,
            _scale(weights, names[module], pair, configs.get(names[module].component), options),
            plain,
        )
        for module, pair in pairs.items()
    }
    stored |= others
    added, more = read_added(weights, opened, header.tensors, options, biases, pairs, stored, configs)
    _require_magnitudes(weights, names, configs, magnitudes)
    stored = rescaled(
        weights, header.tensors, stored, magnitudes, options, format="diffusers", metadata=header.metadata
    )
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    bases = dict.fromkeys(config.base_model for config in configs.values() if config.base_model)
    provenance = Provenance(
        format="diffusers",
        base_model=next(iter(bases), None),
        metadata=kept_metadata(header.metadata, _CONFIGS),
        stored_as=kinds_of(stored),
        differences=joined(differences, added),
    )
    unknown = (note for config in configs.values() for note in config.notes)
    return Opened(modules, provenance, (*left_out(weights, dropped), *said, *more, *unknown))


def _check_kinds(
    weights: Path, metadata: Mapping[str, str], pairs: Mapping[str, Pair], others: Mapping[str, Stored]
) -> None:
    """Refuse modules of two kinds, and other kinds than plain LoRA beside a config, which is of PEFT's LoRA."""
    both = next((module for module in pairs if module in others), None)
    if both is not None:
        refuse_two_kinds(weights, both, pairs[both].key_a, others[both].keys[0])
    if others and _CONFIGS in metadata:
        module, place = next(iter(others.items()))
        raise UnsupportedAdapterError(
            f"has tensors of {place.kind}, whose scale is that of their alpha, and {_CONFIGS}, which gives scales of "
            "PEFT's layers",
            path=weights,
            module=module,
            expected="one of the two",
            remedy="save the file without the other",
        )


def _scale_of_kind(path: Path, module: str, alpha: float | None, rank: int, options: ReadOptions) -> float:
    alpha = options.assume_alpha if alpha is None else alpha
    return 1.0 if alpha is None else alpha / rank


def _check_one_spelling(weights: Path, names: Mapping[str, ModuleName]) -> None:
    """Refuse a file that also names modules as kohya does: one module could be in it twice, and be read as two."""
    flat = next((module for module in names if _FLAT.fullmatch(module)), None)
    if flat is not None:
        other = next((module for module in names if not _FLAT.fullmatch(module)), None)
        raise UnsupportedAdapterError(
            f"module {flat!r} is named as in kohya files and {other!r} as diffusers names it, so that one module could "
            "be read as two",
            path=weights,
            module=flat,
            expected="one spelling",
            remedy="split the file in two, or rename the tensors",
        )


def _place(key: str) -> Place | None:
    found = read_key(key)
    return None if found is None else found[1]._replace(module=found[0].full)


def _require_magnitudes(
    weights: Path, names: Mapping[str, ModuleName], configs: Mapping[str, PeftConfig], magnitudes: Mapping[str, str]
) -> None:
    for module, name in names.items():
        config = configs.get(name.component)
        if config is not None and config.use_dora and module not in magnitudes:
            raise CorruptFileError(
                f"lacks lora_magnitude_vector, and {_CONFIGS} says use_dora",
                path=weights,
                module=module,
                remedy="the file is incomplete, save it again",
            )


def _module_of(start: str) -> str:
    """Return the module of a key by what stands before its last part."""
    place = _place(f"{start}.lora_A.weight")
    assert place is not None
    return place.module


def _name(key: str) -> ModuleName:
    found = read_key(key)
    assert found is not None  # it was paired by it
    return found[0]


def _configs(
    weights: Path, metadata: Mapping[str, str], components: set[str], options: ReadOptions
) -> dict[str, PeftConfig]:
    """Return the config of each model that has one."""
    if _CONFIGS not in metadata:
        return {}
    try:
        flat = parse_json(metadata[_CONFIGS].encode())
    except ValueError as error:
        raise CorruptFileError(
            f"{_CONFIGS} is not JSON ({error})",
            path=weights,
            remedy="save the file again",
        ) from error
    if not isinstance(flat, dict):
        raise CorruptFileError(
            f"{_CONFIGS} is a JSON {type(flat).__name__}",
            path=weights,
            expected="an object of settings",
        )
    configs = {}
    given = [] if options.base is None else ["dora"]
    given += [] if options.differences == "refuse" else ["lora_bias"]
    for component in sorted(components):
        prefix = f"{component}."
        fields = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
        fields = fields or {key: value for key, value in flat.items() if "." not in key}
        if fields:
            where = Path(f"{weights} ({_CONFIGS}{f' of {component}' if component else ''})")
            config = config_of(where, {"peft_type": "LORA"} | fields, options.assume_alpha, given=given)
            if config.target_parameters:
                raise UnsupportedAdapterError(
                    "target_parameters is set: bare parameters are adapted, which only files of PEFT can hold",
                    path=where,
                    remedy="save it with save_pretrained",
                )
            if config.kept_extra_weights and options.modules_to_save != "drop":
                raise UnsupportedAdapterError(
                    f"was trained with extra weights beside the LoRA factors: {', '.join(config.kept_extra_weights)}",
                    path=where,
                    expected="factors only",
                    remedy=[Setting("modules_to_save", "drop"), " to leave them out"],
                )
            configs[component] = config
    return configs


def _scale(weights: Path, name: ModuleName, pair: Pair, config: PeftConfig | None, options: ReadOptions) -> float:
    """Return the factor on B @ A: of the config, else of alpha, else 1, as diffusers takes it."""
    rank = pair.info.rank
    by_tensor = None if pair.alpha is None else pair.alpha / rank
    if config is None:
        assumed = 1.0 if options.assume_alpha is None else options.assume_alpha / rank
        return assumed if by_tensor is None else by_tensor
    expected = config.rank(name.local)
    if expected is not None and expected != rank:
        raise CorruptFileError(
            f"module {name.full!r} has rank {rank}, {_CONFIGS} says {expected} (by its r and rank_pattern)",
            path=weights,
            module=name.full,
            remedy="diffusers cannot load this either, so save the file again",
        )
    scale = config.scale(name.local, rank)
    if by_tensor is not None and abs(by_tensor - scale) > 1e-6 * abs(scale):
        raise CorruptFileError(
            f"its alpha gives the scale {by_tensor:g}, {_CONFIGS} gives {scale:g}",
            path=weights,
            module=name.full,
            expected="one of the two",
            remedy="save the file without the other",
        )
    return scale


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype, rank=max(ranks.values()))
    configs = json.dumps(_config_fields(adapter, ranks), indent=2, sort_keys=True, ensure_ascii=False)
    metadata = {**kept_metadata(adapter.provenance.metadata), **header_metadata(record), _CONFIGS: configs}
    write_pairs(file, adapter, ranks, options.dtype, peft_keys, metadata, written_added)


def _config_fields(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return what PEFT's config says of each model, every field after the model's name."""
    split = {module: split_component(module) for module in adapter}

    fields = {}
    for component in sorted({name.component for name in split.values()}):
        local = {module: name.in_any_version for module, name in split.items() if name.component == component}
        part = adapter.select(local).rename_modules(local.__getitem__)
        config = config_fields(part, make_plan(part, {new: ranks[old] for old, new in local.items()}))
        fields.update({f"{component}.{key}" if component else key: value for key, value in config.items()})
    return fields


CODEC = Codec(
    ABOUT,
    _recognises,
    _open,
    _write,
    ways={
        ("diffusers", "diffusers"): diffusers_to_diffusers,
        ("diffusers", "peft"): diffusers_to_peft,
        ("peft", "diffusers"): peft_to_diffusers,
    },
    spellings=(
        Spelling("diffusers", "transformer."),
        Spelling("original", "transformer."),
        Spelling("diffusers"),
        Spelling("original"),
    ),
    servers=(DIFFUSERS,),
)
