"""ComfyUI's generic files, as ai-toolkit and other trainers write them: ``diffusion_model.<module>.lora_A.weight``."""

from __future__ import annotations

import re
from pathlib import Path

from ..adapters import Adapter, ModuleInfo, Provenance
from ..exceptions import OutputError
from ._checks import stamp
from ._codec import Codec, Location, Opened, ReadOptions, WriteOptions, Writer
from ._factors import left_out
from ._layout import written_ranks
from ._modules import FileReader, Stored, plain, stored_dtype
from ._pairs import Place, is_of_peft, kept_metadata, place_of_key, read_pairs, write_pairs
from ._peft_keys import peft_keys
from ._provenance import header_metadata, make_record
from ._refused import is_marked

__all__ = ["CODEC"]

_PREFIX = re.compile(r"(?:diffusion_model|text_encoders)\.")


def _recognises(location: Location) -> bool:
    weights = location.weights()
    if weights is None or is_of_peft(weights):
        return False
    return any(_PREFIX.match(key) and (place_of_key(key) or is_marked(key)) for key in location.header(weights).tensors)


def _open(location: Location, options: ReadOptions) -> Opened:
    weights = location.weights() or location.path
    opened = stamp(weights)
    header = location.header(weights)
    pairs, dropped = read_pairs(weights, opened, header.tensors, options, _place)
    stored = {}
    for module, pair in pairs.items():
        alpha = options.assume_alpha if pair.alpha is None else pair.alpha
        scale = 1.0 if alpha is None else alpha / pair.info.rank
        stored[module] = Stored((pair.key_a, pair.key_b), pair.info, scale, plain)
    reader = FileReader(location.path, options, ((weights, opened),), stored, stored_dtype(header.tensors, stored))
    provenance = Provenance(
        format="comfyui",
        base_model=header.metadata.get("ss_base_model_version"),
        metadata=kept_metadata(header.metadata),
    )
    return Opened(reader, provenance, left_out(weights, dropped))


def _place(key: str) -> Place | None:
    place = place_of_key(key)
    return place if place is not None and _PREFIX.match(key) else None


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype)
    metadata = {**kept_metadata(adapter.provenance.metadata), **header_metadata(record)}
    write_pairs(file, adapter, ranks, options.dtype, _keys, metadata)


def _keys(module: str, info: ModuleInfo) -> tuple[str, str]:
    if info.layout.kind == "embedding":
        raise OutputError(f"module {module!r} is an embedding, which ComfyUI's files cannot hold; write it as peft")
    return peft_keys(module, info)


CODEC = Codec("comfyui", _recognises, _open, Writer(_write, ("portable", "compact")))
