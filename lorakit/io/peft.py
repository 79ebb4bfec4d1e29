"""The PEFT directory: ``adapter_config.json`` and ``adapter_model.safetensors``, read and written."""

from __future__ import annotations

from pathlib import Path

from ..adapters import Adapter, Provenance
from ._card import model_card
from ._codec import Codec, Location, Opened, ReadOptions, WriteOptions, Writer
from ._layout import written_ranks
from ._peft_keys import PREFIX
from ._peft_reader import read_peft
from ._peft_writer import config_text, tensor_infos, tensors
from ._safetensors import write_tensors

__all__ = ["CODEC"]

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


def _recognises(location: Location) -> bool:
    weights = location.weights(WEIGHTS)
    if weights is None:
        return False
    if weights.name == WEIGHTS or (weights.parent / CONFIG).exists():
        return True
    return any(key.startswith(PREFIX) for key in location.header(weights).tensors)


def _open(location: Location, options: ReadOptions) -> Opened:
    weights = location.weights(WEIGHTS) or location.path
    reader, config, dropped = read_peft(location, weights, options)
    notes = []
    if dropped:
        notes.append(f"{weights}: left out, because of modules_to_save='drop': {', '.join(dropped)}")
    if config.unknown:
        notes.append(
            f"{config.path}: sets {', '.join(config.unknown)}, which this version of lorakit does not know; if that "
            "changes how B @ A acts, what is made of it is wrong"
        )
    provenance = Provenance(
        format="peft",
        base_model=config.base_model,
        task_type=config.task_type,
        fan_in_fan_out=config.fan_in_fan_out,
    )
    return Opened(reader, provenance, tuple(notes))


def _write(adapter: Adapter, folder: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    infos = tensor_infos(adapter, ranks, options.dtype)
    write_tensors(folder / WEIGHTS, infos, tensors(adapter, ranks, options.dtype))
    (folder / CONFIG).write_text(config_text(adapter, ranks), encoding="utf-8", newline="\n")
    card = model_card(adapter, layout=options.layout, rank=max(ranks.values()), dtype=options.dtype)
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")


CODEC = Codec("peft", _recognises, _open, Writer(_write, ("portable", "compact"), (WEIGHTS, CONFIG, CARD)))
