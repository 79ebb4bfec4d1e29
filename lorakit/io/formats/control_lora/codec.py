"""ControlLoRA: the LoRA that makes a ControlNet of a UNet, ``input_blocks.1.0.emb_layers.1.down``, and whole weights.

The whole weights (the layers that a UNet lacks, biases and norms) are extra weights: without them it does not work.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ....adapters import Adapter, Provenance
from ....exceptions import Setting, UnsupportedAdapterError
from ....files.safetensors import FLOAT_NAMES, TensorInfo, write_tensors
from .._factors import asked_for, left_out
from .._modules import FileModules, Stored, plain, stored_dtype
from .._padding import plain_factors, plain_infos, written_ranks
from .._pairs import Place, Slot, kept_metadata, read_pairs
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..peft.extra_weights import carried
from ..record import header_metadata, make_record
from .about import ABOUT

__all__ = ["CODEC"]

_MARKER = "lora_controlnet"  # an empty tensor
_SLOTS: dict[str, Slot] = {"down": "A", "up": "B"}


def _recognises(location: Location, weights: Path) -> bool:
    return _MARKER in location.header(weights).tensors


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    opened = location.stamp(weights)
    header = location.header(weights)
    tensors = {key: info for key, info in header.tensors.items() if key != _MARKER}
    whole = {key: info for key, info in tensors.items() if _place(key) is None}
    if whole and options.modules_to_save == "refuse":
        raise UnsupportedAdapterError(
            f"is a ControlLoRA, with {len(whole)} whole weights beside its factors, such as {next(iter(whole))!r}",
            path=weights,
            expected="factors only, as whole weights cannot be merged with them",
            remedy=[Setting("modules_to_save", "first"), " to carry those of the first adapter along, or ",
                    Setting("modules_to_save", "drop"), " to leave them out"],
        )  # fmt: skip
    factors = {key: info for key, info in tensors.items() if key not in whole}
    pairs, _ = read_pairs(weights, opened, factors, options, _place)
    scales = {m: 1.0 if options.assume_alpha is None else options.assume_alpha / p.info.rank for m, p in pairs.items()}
    stored = {m: Stored((pair.key_a, pair.key_b), pair.info, scales[m], plain) for m, pair in pairs.items()}
    modules = FileModules(((weights, opened),), stored, stored_dtype(header.tensors, stored))
    first = bool(whole) and options.modules_to_save == "first"
    provenance = Provenance(
        format="control_lora",
        metadata=kept_metadata(header.metadata),
        extra_weights=carried(weights, opened, whole, {}) if first else None,
    )
    notes = left_out(weights, () if first else tuple(whole))
    if first:
        carried_along = f"{weights}: {len(whole)} whole weights are carried along, because of "
        takes = "; a merge takes those of the first of its adapters and does not merge them"
        notes = ((carried_along, asked_for("first"), takes),)
    return Opened(modules, provenance, notes)


def _place(key: str) -> Place | None:
    module, _, part = key.rpartition(".")
    return Place(module, _SLOTS[part]) if module and part in _SLOTS else None


def _write(adapter: Adapter, file: Path, options: WriteOptions) -> None:
    ranks = written_ranks(adapter.infos, options.layout, options.pad_to)
    record = make_record(adapter, layout=options.layout, dtype=options.dtype)
    infos: dict[str, TensorInfo] = {}
    for module in sorted(adapter):
        pair = plain_infos(adapter.infos[module], ranks[module], options.dtype)
        infos |= dict(zip((f"{module}.down", f"{module}.up"), pair, strict=True))
    extra = adapter.provenance.extra_weights
    for name in sorted(extra.names) if extra is not None else ():
        dtype, shape = extra.info(name)  # type: ignore[union-attr]
        infos[name] = TensorInfo(FLOAT_NAMES[dtype], shape)
    infos[_MARKER] = TensorInfo(FLOAT_NAMES[torch.float32], (0,))
    metadata = {**kept_metadata(adapter.provenance.metadata), **header_metadata(record)}
    write_tensors(file, infos, _tensors(adapter, ranks, options.dtype), metadata)


def _tensors(adapter: Adapter, ranks: dict[str, int], dtype: torch.dtype) -> Iterator[Tensor]:
    for module in sorted(adapter):
        yield from plain_factors(adapter, module, ranks[module], dtype)
    extra = adapter.provenance.extra_weights
    for name in sorted(extra.names) if extra is not None else ():
        yield extra.read(name)  # type: ignore[union-attr]
    yield torch.zeros(0)


CODEC = Codec(ABOUT, _recognises, _open, _write)
