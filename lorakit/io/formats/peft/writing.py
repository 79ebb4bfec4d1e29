"""How an adapter lies in a PEFT directory: tensor names and shapes, and the config that PEFT reads back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....adapters import Adapter, ExtraWeights
from ....files.safetensors import FLOAT_NAMES, TensorInfo
from .._padding import padded_factors, plain_factors, plain_infos
from .experts import WrittenStack, gather_stacks, written_targets
from .keys import PREFIX, peft_keys


class Plan(NamedTuple):
    """What a file will hold, known before any weight is read.

    Parameters
    ----------
    ranks : dict of str to int
        Rank of each module that is written by itself.
    stacks : dict of str to WrittenStack
        Experts, which are written together.
    rank : int
        Of every stack, and of the modules that no pattern names.
    """

    ranks: dict[str, int]
    stacks: dict[str, WrittenStack]
    rank: int


def make_plan(adapter: Adapter, ranks: dict[str, int]) -> Plan:
    """Return what the file will hold, from the rank that each module should have.

    All stacks get one rank, the largest of an expert: PEFT has one rank for all experts of a parameter, and a pattern
    for parameters would need their names, which are not known where several are adapted.

    Raises
    ------
    OutputError
        If the experts cannot be stacked.
    """
    experts = any(info.kind.name == "expert" for info in adapter.infos.values())
    stacks = gather_stacks(adapter.name, adapter.infos) if experts else {}
    inside = {module for stack in stacks.values() for module in stack.modules}
    single = {module: rank for module, rank in ranks.items() if module not in inside}
    rank = max((ranks[module] for module in (inside - {None} or ranks)), default=1)  # type: ignore[index]
    return Plan(single, stacks, rank)


def config_text(adapter: Adapter, plan: Plan) -> str:
    """Return ``adapter_config.json``: a whitelist, so that nothing of the inputs' training setup leaks into it."""
    return json.dumps(config_fields(adapter, plan), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def config_fields(adapter: Adapter, plan: Plan) -> dict[str, Any]:
    """Return the fields of the config."""
    r, ranks = plan.rank, plan.ranks
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
        "rank_pattern": dict(pattern),
        "target_modules": _targets(ranks),
        "task_type": known.task_type,
        "use_dora": False,
        "use_rslora": False,
    }
    if known.differences is not None:
        fields["lora_bias"] = True
    if plan.stacks:
        fields["target_parameters"] = written_targets(known.target_parameters, plan.stacks)
    return fields | dict(known.extra_weights.settings if known.extra_weights is not None else {})


def tensor_infos(adapter: Adapter, plan: Plan, dtype: torch.dtype) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of every tensor of the file, in its order, known without reading weights."""
    infos: dict[str, TensorInfo] = {}
    for name in _in_file_order(adapter, plan):
        if name in plan.stacks:
            info, rank = plan.stacks[name].info, plan.rank * plan.stacks[name].info.kind.experts
        else:
            info, rank = adapter.infos[name], plan.ranks[name]
        infos.update(zip(peft_keys(PREFIX + name, info), plain_infos(info, rank, dtype), strict=True))
    if adapter.differences is not None:
        from .bias import written_biases  # few adapters have some

        infos.update(written_biases(adapter, plan.ranks, dtype).values())
    for extra_weights, name in _extra_weights(adapter):
        stored, shape = extra_weights.info(name)
        infos[PREFIX + name] = TensorInfo(FLOAT_NAMES[stored], shape)
    return infos


def tensors(adapter: Adapter, plan: Plan, dtype: torch.dtype) -> Iterator[Tensor]:
    """Read, pad, cast and check the tensors, in the order of :func:`tensor_infos`.

    One module is in memory at a time; of experts all those of one parameter. Weights beside the factors stay as they
    are stored.
    """
    for name in _in_file_order(adapter, plan):
        if name in plan.stacks:
            yield from stacked_factors(adapter, plan.stacks[name], plan.rank, dtype)
        else:
            yield from plain_factors(adapter, name, plan.ranks[name], dtype)
    if adapter.differences is not None:
        from .._differences import cast_difference

        for name in sorted(adapter.differences.infos):
            yield cast_difference(adapter, name, dtype)
    for extra_weights, name in _extra_weights(adapter):
        yield extra_weights.read(name)


def stacked_factors(adapter: Adapter, stack: WrittenStack, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A (experts * rank, d_in) and B (d_out, rank * experts) of all experts of a parameter."""
    experts, info = len(stack.modules), stack.info
    a, b = torch.zeros(experts, rank, info.d_in, dtype=dtype), torch.zeros(info.d_out, rank, experts, dtype=dtype)
    for index, module in enumerate(stack.modules):
        if module is not None:
            a[index], b[:, :, index] = padded_factors(adapter, module, rank, dtype)
    return a.flatten(0, 1), b.flatten(1)


def _in_file_order(adapter: Adapter, plan: Plan) -> list[str]:
    infos = {**{name: adapter.infos[name] for name in plan.ranks}, **{n: s.info for n, s in plan.stacks.items()}}
    return sorted(infos, key=lambda name: peft_keys(name, infos[name])[0])


def _extra_weights(adapter: Adapter) -> Iterator[tuple[ExtraWeights, str]]:
    """Yield the name of each weight beside the factors, sorted, with what reads it; nothing if there are none."""
    extra_weights = adapter.provenance.extra_weights
    if extra_weights is not None:
        for name in sorted(extra_weights.names):
            yield extra_weights, name


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
