"""How an adapter lies in a PEFT directory: tensor names and shapes, and the config that PEFT reads back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, ModuleInfo
from ._layout import padded_halves, plain_shapes
from ._peft_keys import PREFIX
from ._safetensors import FLOAT_NAMES, TensorInfo


def config_text(adapter: Adapter, ranks: dict[str, int]) -> str:
    """Return ``adapter_config.json``: a whitelist, so that nothing of the inputs' training setup leaks into it."""
    r = max(ranks.values())
    pattern = {_pattern_key(module, ranks): rank for module, rank in sorted(ranks.items()) if rank != r}
    known = adapter.provenance
    fields: dict[str, Any] = {
        "alpha_pattern": pattern,  # alpha = rank everywhere: the factors carry the scale
        "base_model_name_or_path": known.base_model,
        "bias": "none",
        "fan_in_fan_out": known.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": pattern,
        "target_modules": _targets(ranks),
        "task_type": known.task_type,
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def tensor_infos(adapter: Adapter, ranks: dict[str, int], dtype: torch.dtype) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor of the file, sorted by name, known without reading weights."""
    infos: dict[str, TensorInfo] = {}
    for module in _in_file_order(adapter):
        info = adapter.infos[module]
        shapes = (TensorInfo(FLOAT_NAMES[dtype], shape) for shape in plain_shapes(info, ranks[module]))
        infos.update(zip(_keys(module, info), shapes, strict=True))
    return infos


def tensors(adapter: Adapter, ranks: dict[str, int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Read, pad, cast and check the tensors, in the order of :func:`tensor_infos`, one module in memory at a time."""
    for module in _in_file_order(adapter):
        halves = padded_halves(adapter, module, ranks[module], dtype)
        for half, shape in zip(halves, plain_shapes(adapter.infos[module], ranks[module]), strict=True):
            yield half.reshape(shape)


def _in_file_order(adapter: Adapter) -> list[str]:
    return sorted(adapter, key=lambda module: _keys(module, adapter.infos[module])[0])


def _keys(module: str, info: ModuleInfo) -> tuple[str, str]:
    if info.layout.kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _pattern_key(module: str, ranks: dict[str, int]) -> str:
    # PEFT reads it as a regular expression and lets anything dotted stand before it.
    key = module if re.fullmatch(r"[\w.-]+", module) else re.escape(module)
    return f"^{key}" if any(other.endswith(f".{module}") for other in ranks) else key


def _targets(ranks: dict[str, int]) -> list[str] | str:
    """Return the modules as PEFT should match them: exactly these.

    A listed target also matches every longer path that ends in it. Full paths have no longer ones in practice, but a
    name without dots does, as 'dense' in 'pooler.dense': then the targets are one regular expression, which PEFT
    matches as a whole. A list is what most other readers expect, so it stays the rule.
    """
    modules = sorted(ranks)
    if all("." in module for module in modules):
        return modules
    return "|".join(map(re.escape, modules))
