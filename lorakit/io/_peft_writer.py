"""How an adapter lies in a PEFT directory: tensor names, shapes, padding, and the config that PEFT reads back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..adapters import Adapter, ModuleInfo
from ..exceptions import OutputError
from ..factors import all_finite
from ._peft_keys import PREFIX

# The values of max_lora_rank that vLLM takes: a server started with one of them has room for exactly this rank.
SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def written_ranks(adapter: Adapter, layout: str, pad_to: int | str | None) -> dict[str, int]:
    """Return the rank that each module is written with: one for all if portable, its own if compact, never 0."""
    own = {module: max(info.rank, 1) for module, info in adapter.infos.items()}
    if layout == "compact":
        if pad_to is not None:
            raise ValueError("pad_to goes with layout='portable'; 'compact' writes each module with its own rank")
        return own
    return dict.fromkeys(own, padded_rank(max(own.values(), default=1), pad_to))


def padded_rank(widest: int, pad_to: int | str | None) -> int:
    """Return the one rank of the portable layout, for modules of at most rank ``widest``."""
    if pad_to is None:
        return widest
    allowed = SERVER_RANKS if pad_to == "server" else (int(pad_to),)
    padded = next((rank for rank in allowed if rank >= widest), None)
    if padded is None:
        raise OutputError(f"there are modules of rank {widest}, to be padded to {allowed[-1]}; choose a lower k")
    return padded


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


def tensor_shapes(adapter: Adapter, ranks: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the file, sorted by name, known without reading weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in _in_file_order(adapter):
        info = adapter.infos[module]
        shapes.update(zip(_keys(module, info), _shapes(info, ranks[module]), strict=True))
    return shapes


def tensors(adapter: Adapter, ranks: dict[str, int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Read, pad, cast and check the tensors, in the order of :func:`tensor_shapes`, one module in memory at a time."""
    for module in _in_file_order(adapter):
        info = adapter.infos[module]
        extra = ranks[module] - info.rank
        factors = adapter[module].to(device="cpu")
        padded = pad(factors.A, (0, 0, 0, extra)), pad(factors.B, (0, extra))
        for half, shape in zip(padded, _shapes(info, ranks[module]), strict=True):
            yield _checked(adapter.name, module, half, dtype).reshape(shape)


def _in_file_order(adapter: Adapter) -> list[str]:
    return sorted(adapter, key=lambda module: _keys(module, adapter.infos[module])[0])


def _keys(module: str, info: ModuleInfo) -> tuple[str, str]:
    if info.layout.kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _shapes(info: ModuleInfo, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    kernel = info.layout.kernel
    return (rank, info.d_in // math.prod(kernel), *kernel), (info.d_out, rank, *(1 for _ in kernel))


def _checked(name: str, module: str, half: Tensor, dtype: torch.dtype) -> Tensor:
    cast = half.to(dtype)
    if not all_finite(cast):
        if not all_finite(half):
            raise OutputError(f"{name}: module {module!r} holds NaN or infinite values; find out which step made them")
        shown = str(dtype).removeprefix("torch.")
        raise OutputError(
            f"{name}: module {module!r} has values up to {half.abs().max().item():.3g}, {shown} holds at most "
            f"{torch.finfo(dtype).max:.3g}; pass dtype=torch.bfloat16 or torch.float32"
        )
    return cast


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
