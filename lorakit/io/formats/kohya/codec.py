"""Kohya's single file, as sd-scripts, musubi-tuner, OneTrainer and LyCORIS write it, read and written."""

from __future__ import annotations

from pathlib import Path

from ....adapters import Adapter, Provenance
from ....files.safetensors import write_tensors
from ...names.kohya import SPELLINGS, base_of, two_spellings, version_name
from ...names.steps import comfyui_to_kohya, diffusers_to_kohya, kohya_to_comfyui, kohya_to_diffusers
from .._differences import part_differences
from .._factors import left_out
from .._modules import FileModules, kinds_of, stored_dtype
from .._padding import written_ranks
from .._pairs import kept_metadata
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..diffusers.servers import DIFFUSERS
from ..dora import rescaled, split_magnitudes
from ..record import header_metadata, make_record
from .about import ABOUT
from .keys import FAMILY, read_modules, split_modules
from .writing import metadata_of, tensor_infos, tensors, write_hashes

__all__ = ["CODEC"]


def _recognises(location: Location, weights: Path) -> bool:
    return any(FAMILY.match(key) for key in location.header(weights).tensors)


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    header, opened = location.header(weights), location.stamp(weights)
    parted = part_differences(weights, opened, header.tensors, options, FAMILY.match)
    magnitudes, tensors = split_magnitudes(parted.rest, options)
    stored, dropped = read_modules(weights, opened, tensors, options)
    notes = [*left_out(weights, dropped), *parted.notes]
    if split := split_modules({m: place for m, place in stored.items() if place.kind == "LoRA"}, header.metadata):
        notes.append(
            f"{weights}: {len(split)} modules such as {split[0]!r} hold Q, K and V side by side, each with ranks of "
            "its own (split_qkv): three or four times the rank of the others. They are read with alpha / all of these "
            "ranks, as sd-scripts and ComfyUI do; what is merged of them cannot be trained on with split_qkv"
        )
    stored = rescaled(weights, header.tensors, stored, magnitudes, options, format="kohya", metadata=header.metadata)
    metadata = kept_metadata(header.metadata)
    provenance = Provenance(
        format="kohya",
        base_model=base_of(metadata),
        metadata=metadata,
        differences=parted.differences,
        stored_as=kinds_of(stored),
    )
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    return Opened(modules, provenance, tuple(notes))


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    infos = tensor_infos(adapter, ranks, options.dtype)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype, rank=max(ranks.values()))
    metadata = metadata_of(adapter, ranks) | header_metadata(record)
    write_tensors(file, infos, tensors(adapter, ranks, options.dtype, infos), metadata)
    write_hashes(file)


CODEC = Codec(
    ABOUT,
    _recognises,
    _open,
    _write,
    aliases=two_spellings,
    ways={
        ("kohya", "diffusers"): kohya_to_diffusers,
        ("diffusers", "kohya"): diffusers_to_kohya,
        ("kohya", "comfyui"): kohya_to_comfyui,
        ("comfyui", "kohya"): comfyui_to_kohya,
    },
    detours={("kohya", "peft"): "diffusers", ("peft", "kohya"): "diffusers"},
    base_model=version_name,
    spellings=SPELLINGS,
    servers=(DIFFUSERS,),
)
