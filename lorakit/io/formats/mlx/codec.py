"""mlx-lm's directory: ``adapters.safetensors`` and its own ``adapter_config.json``, read and written."""

from __future__ import annotations

from pathlib import Path

import torch

from ....adapters import Adapter, Provenance
from ....exceptions import OutputError, Setting
from ....files.json_text import read_json_object
from ....files.safetensors import write_tensors
from ...names.steps import mlx_and_peft
from .._factors import left_out
from .._modules import kinds_of
from .._padding import written_ranks
from ..codec import Codec, Location, Opened, ReadOptions, WriteOptions
from ..record import header_metadata, make_record
from .about import ABOUT, CONFIG, WEIGHTS
from .reading import KEY, read_mlx
from .servers import SERVERS
from .writing import config_text, layers, tensor_infos, tensors

__all__ = ["CODEC"]


def _recognises(location: Location, weights: Path) -> bool:
    if any(KEY.fullmatch(key) for key in location.header(weights).tensors):
        return True
    config = weights.parent / CONFIG  # of a fine-tuning without LoRA, which is refused by what it is
    return weights.name == WEIGHTS and config.exists() and "fine_tune_type" in read_json_object(config)


def _open(location: Location, weights: Path, options: ReadOptions) -> Opened:
    modules, config, dropped = read_mlx(location, weights, options)
    notes = (*config.notes, *left_out(weights, dropped))
    return Opened(
        modules, Provenance(format="mlx", base_model=config.base_model, stored_as=kinds_of(modules.stored)), notes
    )


def _write(adapter: Adapter, folder: Path, options: WriteOptions) -> None:
    if options.dtype == torch.float64:
        raise OutputError(
            "dtype is float64, which MLX has on CPUs only",
            adapters=[adapter.name],
            remedy=[Setting("dtype", torch.float32), " or a smaller one"],
        )
    named = layers(adapter)
    rank = max(written_ranks(adapter.infos, options.layout, options.pad_to).values())
    infos = tensor_infos(adapter, named, rank, options.dtype)
    metadata = {
        "format": "mlx",
        **header_metadata(make_record(adapter, layout=options.layout, dtype=options.dtype, rank=rank)),
    }
    write_tensors(folder / WEIGHTS, infos, tensors(adapter, named, rank, options.dtype), metadata)
    (folder / CONFIG).write_text(config_text(adapter, named, rank), encoding="utf-8", newline="\n")


CODEC = Codec(
    ABOUT,
    _recognises,
    _open,
    _write,
    ways={("mlx", "peft"): mlx_and_peft("peft"), ("peft", "mlx"): mlx_and_peft("mlx")},
    servers=SERVERS,
)
