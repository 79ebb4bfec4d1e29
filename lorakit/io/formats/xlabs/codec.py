"""XLabs' files of FLUX.1, and USO's: ``double_blocks.0.processor.qkv_lora1.down.weight``."""

from __future__ import annotations

import re
from pathlib import Path

from ....adapters import Adapter, ModuleInfo, Provenance
from ....exceptions import OutputError
from ...names.spelling import Spelling
from .._factors import left_out
from .._modules import FileModules, Stored, plain, stored_dtype
from .._padding import written_ranks
from .._pairs import Place, Slot, kept_metadata, read_pairs, write_pairs
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..record import header_metadata, make_record
from .about import ABOUT

__all__ = ["CODEC"]

_MODULE = r"(?:double_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12]|single_blocks\.\d+\.processor\.(?:qkv|proj)_lora)"
_KEY = re.compile(rf"(?:diffusion_model\.)?({_MODULE})\.(down|up)\.weight")
_SLOTS: dict[str, Slot] = {"down": "A", "up": "B"}


def _recognises(location: Location, weights: Path) -> bool:
    return any(map(_KEY.fullmatch, location.header(weights).tensors))


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    opened = location.stamp(weights)
    header = location.header(weights)
    pairs, dropped = read_pairs(weights, opened, header.tensors, options, _place)
    stored = {
        module: Stored((pair.key_a, pair.key_b), pair.info, _scale(pair.info.rank, options), plain)
        for module, pair in pairs.items()
    }
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    provenance = Provenance(format="xlabs", metadata=kept_metadata(header.metadata))
    return Opened(modules, provenance, left_out(weights, dropped))


def _place(key: str) -> Place | None:
    found = _KEY.fullmatch(key)
    return None if found is None else Place(found[1], _SLOTS[found[2]])


def _scale(rank: int, options: ReadOptions) -> float:
    return 1.0 if options.assume_alpha is None else options.assume_alpha / rank


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype)
    metadata = {**kept_metadata(adapter.provenance.metadata), **header_metadata(record)}
    write_pairs(file, adapter, ranks, options.dtype, _keys, metadata)


def _keys(module: str, info: ModuleInfo) -> tuple[str, str]:
    if re.fullmatch(_MODULE, module) is None:
        raise OutputError(
            f"module {module!r} has no place in XLabs' files, which hold attention layers of FLUX.1 only",
            module=module,
            remedy="write the adapter as kohya, comfyui or diffusers",
        )
    return f"{module}.down.weight", f"{module}.up.weight"


CODEC = Codec(ABOUT, _recognises, _open, _write, spellings=(Spelling("xlabs"),))
