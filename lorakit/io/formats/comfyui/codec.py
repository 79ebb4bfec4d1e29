"""ComfyUI's generic files, as ai-toolkit and other trainers write them: ``diffusion_model.<module>.lora_A.weight``."""

from __future__ import annotations

import re
from pathlib import Path

from ....adapters import Adapter, ModuleInfo, Provenance
from ....exceptions import OutputError
from ...names.spelling import Spelling
from .._differences import part_differences
from .._factors import left_out
from .._modules import FileModules, Stored, kinds_of, plain, stored_dtype
from .._padding import written_ranks
from .._pairs import Place, kept_metadata, place_of_key, read_pairs, write_pairs
from .._servers import ServerCheck, WrittenFile
from .._unsupported import is_marked
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..diffusers.servers import DIFFUSERS
from ..dora import rescaled, split_magnitudes
from ..kinds.single_file import read_kinds, refuse_two_kinds
from ..peft.keys import is_of_peft, peft_keys
from ..record import header_metadata, make_record
from .about import ABOUT

__all__ = ["CODEC"]

_PREFIX = re.compile(r"(?:diffusion_model|text_encoders)\.")


def _recognises(location: Location, weights: Path) -> bool:
    if is_of_peft(weights):
        return False
    keys = [key for key in location.header(weights).tensors if ".processor." not in key]  # those are XLabs'
    return any(_PREFIX.match(key) and (place_of_key(key) or is_marked(key)) for key in keys)


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    opened = location.stamp(weights)
    header = location.header(weights)
    parted = part_differences(weights, opened, header.tensors, options, _PREFIX.match)
    magnitudes, tensors = split_magnitudes(parted.rest, options)
    named = {key: info for key, info in tensors.items() if _PREFIX.match(key)}
    stored, rest = read_kinds(weights, opened, named, options, _scale)
    rest |= {key: info for key, info in tensors.items() if key not in named}
    pairs, dropped = read_pairs(weights, opened, rest, options, _place, others=bool(stored))
    for module, pair in pairs.items():
        if module in stored:
            refuse_two_kinds(weights, module, pair.key_a, stored[module].keys[0])
        scale = _scale(weights, module, pair.alpha, pair.info.rank, options)
        stored[module] = Stored((pair.key_a, pair.key_b), pair.info, scale, plain)
    stored = rescaled(weights, header.tensors, stored, magnitudes, options, format="comfyui", metadata=header.metadata)
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    provenance = Provenance(
        format="comfyui",
        base_model=header.metadata.get("ss_base_model_version"),
        metadata=kept_metadata(header.metadata),
        differences=parted.differences,
        stored_as=kinds_of(stored),
    )
    return Opened(modules, provenance, (*left_out(weights, dropped), *parted.notes))


def _scale(path: Path, module: str, alpha: float | None, rank: int, options: ReadOptions) -> float:
    alpha = options.assume_alpha if alpha is None else alpha
    return 1.0 if alpha is None else alpha / rank


def _place(key: str) -> Place | None:
    place = place_of_key(key)
    return place if place is not None and _PREFIX.match(key) else None


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype, rank=max(ranks.values()))
    metadata = {**kept_metadata(adapter.provenance.metadata), **header_metadata(record)}
    write_pairs(file, adapter, ranks, options.dtype, _keys, metadata)


def _loaded(file: WrittenFile, check: ServerCheck) -> None:
    if "LoKr" in file.adapter.provenance.stored_as:  # its converters refuse all other tensors beside those of LoKr
        if len(file.adapter.provenance.stored_as) > 1:
            check.refuse("does not take LoKr beside plain LoRA: lorakit convert writes plain LoRA")
        check.notes.append("LoKr of FLUX.2 and Z-Image only: lorakit convert writes plain LoRA")
    check.notes.append("only for models that it has a conversion of names for; else lorakit convert --to diffusers")


def _keys(module: str, info: ModuleInfo) -> tuple[str, str]:
    if info.kind.name == "embedding":
        raise OutputError(
            f"module {module!r} is an embedding, which ComfyUI's files cannot hold",
            module=module,
            remedy="write it as peft",
        )
    return peft_keys(module, info)


def _base_model(known: Provenance) -> str | None:
    return known.base_model


CODEC = Codec(
    ABOUT,
    _recognises,
    _open,
    _write,
    base_model=_base_model,
    spellings=(Spelling("original", "diffusion_model."), Spelling("diffusers", "diffusion_model.")),
    servers=(DIFFUSERS._replace(rules=_loaded, kinds=("LoRA", "LoKr")),),
)
