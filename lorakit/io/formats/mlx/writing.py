"""How an adapter lies in mlx-lm's files: one rank, the scale 1, every module named in the config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ....adapters import Adapter, ModuleInfo
from ....exceptions import OutputError
from ....files.safetensors import FLOAT_NAMES, TensorInfo
from .._padding import padded_factors

Layers = dict[str, dict[int, str]]  # by the name in the file, the modules in it by number; -1 for one that is not split


def layers(adapter: Adapter) -> Layers:
    """Return the layers of the file, sorted, and the modules that make each.

    Raises
    ------
    OutputError
        If there is a convolution, which mlx-lm has no LoRA for.
    """
    found: Layers = {}
    for module, info in adapter.infos.items():
        if info.kind.name == "conv":
            raise OutputError(
                f"module {module!r} is a convolution, for which mlx-lm has no LoRA",
                adapters=[adapter.name],
                module=module,
                remedy="write it as peft",
            )
        name, expert = module, "-1"
        if info.kind.name == "expert":
            name, _, expert = module.rpartition(".")
        found.setdefault(name, {})[int(expert)] = module
    return dict(sorted(found.items()))


def tensor_infos(adapter: Adapter, named: Layers, rank: int, dtype: torch.dtype) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor of the file."""
    infos = {}
    for name, modules in named.items():
        info = _first(adapter, modules)
        shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((info.d_in, rank), (rank, info.d_out))
        if info.kind.name == "expert":
            experts = info.kind.experts
            shapes = ((experts, rank, info.d_in), (experts, info.d_out, rank))
        for slot, shape in zip("ab", shapes, strict=True):
            infos[f"{name}.lora_{slot}"] = TensorInfo(FLOAT_NAMES[dtype], shape)
    return infos


def tensors(adapter: Adapter, named: Layers, rank: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Read, pad, cast and check the tensors, in the order of :func:`tensor_infos`, one layer in memory at a time."""
    for modules in named.values():
        info = _first(adapter, modules)
        if info.kind.name != "expert":
            a, b = padded_factors(adapter, modules[-1], rank, dtype)
            yield a.T
            yield b.T
            continue
        experts = info.kind.experts
        stack_a, stack_b = (
            torch.zeros(experts, *shape, dtype=dtype) for shape in ((rank, info.d_in), (info.d_out, rank))
        )
        for number, module in modules.items():  # an expert that is not there has no update
            stack_a[number], stack_b[number] = padded_factors(adapter, module, rank, dtype)
        yield stack_a
        yield stack_b


def config_text(adapter: Adapter, named: Layers, rank: int) -> str:
    """Return ``adapter_config.json``.

    The keys are full paths: mlx-lm then adapts exactly these modules. Names within a layer would do so in the last
    ``num_layers`` layers, and how many the model has is not known here.
    """
    fields = {
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": 0.0, "keys": list(named), "rank": rank, "scale": 1.0},
        "num_layers": -1,
    }
    base = adapter.provenance.base_model
    return json.dumps({**fields, **({"model": base} if base else {})}, indent=2, sort_keys=True) + "\n"


def _first(adapter: Adapter, modules: Mapping[int, str]) -> ModuleInfo:
    return adapter.infos[next(iter(modules.values()))]
