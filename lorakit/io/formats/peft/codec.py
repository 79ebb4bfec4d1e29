"""The PEFT directory: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written."""

from __future__ import annotations

from pathlib import Path

from ....adapters import Adapter, Provenance
from ....files.safetensors import write_tensors
from ...names.spelling import Spelling
from .._factors import asked_for, left_out
from .._modules import kinds_of
from .._padding import written_ranks
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..record import header_metadata, make_record
from .about import ABOUT, CARD, CONFIG, WEIGHTS
from .card import model_card
from .keys import PREFIX, has_config
from .reading import read_peft
from .servers import SERVERS
from .writing import config_text, make_plan, tensor_infos, tensors

__all__ = ["CODEC"]


def _recognises(location: Location, weights: Path) -> bool:
    if weights.name in (*ABOUT.weights, *ABOUT.pickles):
        return True
    keys = location.header(weights).tensors
    return any(key.startswith(PREFIX) for key in keys) or has_config(weights, keys)


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    opened = read_peft(location, weights, options)
    modules, config, extra_weights = opened.modules, opened.config, opened.extra_weights
    notes = [*left_out(weights, opened.dropped), *opened.notes]
    if extra_weights is not None:
        names = ", ".join(extra_weights.names)
        takes = "a merge takes them from the first of its adapters that has some and does not merge them"
        notes.append((f"{weights}: carried along, because of ", asked_for("first"), f": {names}; {takes}"))
    provenance = Provenance(
        format="peft",
        base_model=config.base_model,
        task_type=config.task_type,
        fan_in_fan_out=config.fan_in_fan_out,
        extra_weights=extra_weights,
        differences=opened.differences,
        target_parameters=opened.target_parameters,
        stored_as=kinds_of(modules.stored),
    )
    return Opened(modules, provenance, (*notes, *config.notes))


def _write(adapter: Adapter, folder: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    plan = make_plan(adapter, ranks)
    infos = tensor_infos(adapter, plan, options.dtype)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype, rank=max(ranks.values()))
    write_tensors(folder / WEIGHTS, infos, tensors(adapter, plan, options.dtype), header_metadata(record))
    (folder / CONFIG).write_text(config_text(adapter, plan), encoding="utf-8", newline="\n")
    card = model_card(adapter, record, rank=max(ranks.values()))
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")


CODEC = Codec(
    ABOUT,
    _recognises,
    _open,
    _write,
    spellings=(Spelling("diffusers"), Spelling("original")),
    servers=SERVERS,
)
