"""Single files whose keys begin with the name of a layer: ``blocks.0.self_attn.q.lora_A.default.weight``.

DiffSynth-Studio and others write them, and distilled adapters of Qwen-Image and Wan are published in this way.
"""

from __future__ import annotations

import re
from pathlib import Path

from ....adapters import Adapter, Provenance
from ...names.component import split_component
from ...names.spelling import Spelling
from ...names.translate import parts_by_name
from .._differences import part_differences
from .._factors import left_out
from .._modules import FileModules, Stored, kinds_of, plain, stored_dtype
from .._padding import written_ranks
from .._pairs import Place, kept_metadata, place_of_key, read_pairs, write_pairs
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..kinds.single_file import read_kinds, refuse_two_kinds
from ..peft.keys import PREFIX, has_config, peft_keys
from ..record import header_metadata, make_record
from .about import ABOUT

__all__ = ["CODEC"]

_SPELLINGS = (Spelling("original"), Spelling("diffusers"))
# The blocks of diffusion transformers; of a layer in other places, a table must know the name
_BLOCKS = re.compile(r"(?:(?:single_)?transformer_blocks|(?:double|single|joint)_blocks)\.\d+\.(?!processor\.)")
_OTHERS = ("diffusion_model.", "text_encoders.", PREFIX)
_CONFIGS = "lora_adapter_metadata"  # what diffusers writes into the header


def _recognises(location: Location, weights: Path) -> bool:
    header = location.header(weights)
    if _CONFIGS in header.metadata or any(key.startswith(_OTHERS) for key in header.tensors):
        return False
    modules = [module for key in header.tensors if (module := _module(key)) is not None]
    if has_config(weights, header.tensors) or any(split_component(module).component for module in modules):
        return False
    return any(_BLOCKS.match(module) or parts_by_name(_SPELLINGS, module) for module in modules)


def _module(key: str) -> str | None:
    place = place_of_key(key)
    if place is not None:
        return place.module
    module, _, part = key.rpartition(".")
    return module if part.startswith(("hada_w", "lokr_w")) or part == "diff" else None


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    opened = location.stamp(weights)
    header = location.header(weights)
    parted = part_differences(weights, opened, header.tensors, options)
    stored, rest = read_kinds(weights, opened, parted.rest, options, _scale)
    pairs, dropped = read_pairs(weights, opened, rest, options, _place, others=bool(stored))
    for module, pair in pairs.items():
        if module in stored:
            refuse_two_kinds(weights, module, pair.key_a, stored[module].keys[0])
        scale = _scale(weights, module, pair.alpha, pair.info.rank, options)
        stored[module] = Stored((pair.key_a, pair.key_b), pair.info, scale, plain)
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    provenance = Provenance(
        format="bare",
        metadata=kept_metadata(header.metadata),
        differences=parted.differences,
        stored_as=kinds_of(stored),
    )
    return Opened(modules, provenance, (*left_out(weights, dropped), *parted.notes))


def _place(key: str) -> Place | None:
    return place_of_key(key)


def _scale(path: Path, module: str, alpha: float | None, rank: int, options: ReadOptions) -> float:
    alpha = options.assume_alpha if alpha is None else alpha
    return 1.0 if alpha is None else alpha / rank


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype)
    metadata = {**kept_metadata(adapter.provenance.metadata), **header_metadata(record)}
    write_pairs(file, adapter, ranks, options.dtype, peft_keys, metadata)


CODEC = Codec(ABOUT, _recognises, _open, _write, spellings=_SPELLINGS)
