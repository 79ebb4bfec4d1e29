"""Adapters of live models: read from the LoRA layers that PEFT put into a model, and put into one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._few import few
from ..adapters import Adapter, ModuleKind, Provenance, Source
from ..differences import MemoryDifferences
from ..exceptions import IncompatibleAdaptersError, LorakitError, OutputError, Setting, UnsupportedAdapterError
from ..factors import LoraFactors, promoted_dtype
from ..files.tensors import widened
from ..readers import MemoryReader
from ._live_kinds import KINDS, read_kind
from ._live_layers import (
    add_adapter,
    base_of,
    bias_of,
    factors_of,
    has_adapter,
    lora_layers,
    others_untouched,
    peft_modules,
    remove_adapter,
)
from .formats._differences import cast_difference
from .formats._factors import info_of
from .formats._modules import plain
from .formats._padding import plain_factors, plain_shapes, written_ranks
from .formats.peft.bias import written_biases
from .formats.peft.config import config_of
from .formats.peft.experts import count_matches, owner
from .formats.peft.extra_weights import MemoryExtraWeights
from .formats.peft.keys import PREFIX
from .formats.peft.writing import Plan, config_fields, make_plan, stacked_factors

if TYPE_CHECKING:
    from torch import nn

__all__ = ["from_peft", "to_peft"]


def from_peft(
    model: nn.Module,
    adapter_name: str = "default",
    *,
    name: str | None = None,
    modules_to_save: Literal["refuse", "drop", "first"] = "refuse",
    differences: Literal["refuse", "keep", "drop"] = "refuse",
) -> Adapter:
    """Read an adapter from a live model.

    The scaling of each layer is folded in, exactly as :func:`lorakit.load_adapter` does for a file, and the modules
    have the same names. The adapter is a copy: further training of the model does not change it.

    Parameters
    ----------
    model : nn.Module
        A ``peft.PeftModel``, or a model of transformers or diffusers with PEFT layers in it.
    adapter_name : str, default='default'
        Which of the model's adapters.
    name : str, optional
        What the adapter is called here. Defaults to ``adapter_name``.
    modules_to_save : {'refuse', 'drop', 'first'}, default='refuse'
        As in :func:`lorakit.load_adapter`.
    differences : {'refuse', 'keep', 'drop'}, default='refuse'
        As in :func:`lorakit.load_adapter`: what to do with biases that are trained beside B (``lora_bias``).

    Returns
    -------
    Adapter
        In memory, on the CPU.

    Raises
    ------
    ImportError
        If PEFT is not installed.
    ValueError
        If the model has no such adapter.
    UnsupportedAdapterError
        If the adapter is neither plain LoRA nor LoHa, LoKr, AdaLoRA, VeRA or MiSS.

    Examples
    --------
    >>> import peft, torch
    >>> from lorakit import from_peft
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    >>> model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    >>> from_peft(model)
    Adapter('default', modules=1, rank=2, dtype=float32)
    """
    if modules_to_save not in ("refuse", "drop", "first"):
        raise ValueError(f"modules_to_save must be 'refuse', 'drop' or 'first', got {modules_to_save!r}")
    if differences not in ("refuse", "keep", "drop"):
        raise ValueError(f"differences must be 'refuse', 'keep' or 'drop', got {differences!r}")
    lora, _ = peft_modules()
    fields = _config(model, adapter_name)
    where = f"adapter {adapter_name!r} of the model"
    called = adapter_name if name is None else name
    if fields.get("peft_type") in KINDS:
        return read_kind(model, adapter_name, name=called, where=where, modules_to_save=modules_to_save)
    config = config_of(Path(where), fields, None, given=() if differences == "refuse" else ("lora_bias",))
    extra_weights = (
        _extra_weights(model, adapter_name, where, fields, modules_to_save) if config.extra_weights else None
    )
    modules: dict[str, LoraFactors] = {}
    kinds: dict[str, ModuleKind] = {}
    dtypes: list[torch.dtype] = []
    biases: dict[str, Tensor] = {}
    layers: dict[str, Any] = {p: layer for p, layer in lora_layers(model, lora) if has_adapter(layer, adapter_name)}
    wrapper = getattr(lora, "ParamWrapper", ())  # PEFT has it since 0.17
    for path, layer in layers.items():
        a, b, embedding = factors_of(layer, adapter_name, f"{where}: module {path!r}", lora)
        a, b = (widened(factor.detach()) for factor in (a, b))
        dtypes += (a.dtype, b.dtype)
        exact = promoted_dtype((torch.float32, a.dtype, b.dtype))
        a, b = (factor.to("cpu", exact) for factor in (a, b))
        scale = float(layer.scaling[adapter_name])
        bias = bias_of(layer, adapter_name)
        if bias is not None:
            biases[f"{path}.bias"] = widened(bias.detach()).to("cpu", exact, copy=True) * scale
        if wrapper and isinstance(layer, wrapper):
            experts: int = layer.num_experts
            around = [other for other in layers if owner(other) == owner(path)]
            parameters = tuple(sorted(layers[other].parameter_name for other in around))
            for index, expert_a in enumerate(a.chunk(experts)):
                modules[f"{path}.{index}"] = LoraFactors(expert_a, b[:, index::experts]).scaled(scale)
                kinds[f"{path}.{index}"] = ModuleKind("expert", experts=experts, parameters=parameters)
        else:
            info = info_of(f"{where}: module {path!r}", a.shape, b.shape, embedding)
            modules[path] = LoraFactors(*plain(a, b)).scaled(scale)
            kinds[path] = info.kind
    if not modules:
        raise UnsupportedAdapterError(
            "has no LoRA layers",
            path=where,
            expected="at least one",
        )
    parameters_of = {f"{owner(m.rpartition('.')[0])}.{p}" for m, kind in kinds.items() for p in kind.parameters}
    provenance = Provenance(
        base_model=config.base_model,
        task_type=config.task_type,
        fan_in_fan_out=config.fan_in_fan_out,
        sources=(Source(called),),
        extra_weights=extra_weights,
        target_parameters=count_matches(config.target_parameters, parameters_of),
        differences=_kept(biases, differences, where),
    )
    reader = MemoryReader(modules, kinds, promoted_dtype(dtypes))
    return Adapter.from_reader(reader, name=called, provenance=provenance)


def to_peft(model: nn.Module, adapter: Adapter, adapter_name: str = "merged") -> None:
    """Add an adapter to a live model, beside those that it has.

    The update of each module is kept exactly, as far as the dtype that PEFT gives the layers holds it. The active
    adapter and the trainable parameters stay as they were, and the new adapter is frozen: activate it with
    ``model.set_adapter(adapter_name)``. Only in a model without adapters is the new one active at once.

    Parameters
    ----------
    model : nn.Module
        A ``peft.PeftModel``, or a model of transformers or diffusers that PEFT layers can be put into.
    adapter : Adapter
        Its modules must be modules of the model.
    adapter_name : str, default='merged'
        A name that the model does not have yet.

    Raises
    ------
    ImportError
        If PEFT is not installed.
    ValueError
        If the model has an adapter of that name, or cannot take adapters.
    IncompatibleAdaptersError
        If a module of the adapter is not in the model, has another shape there, or does not go with the adapters that
        the model has. The model then has the adapters that it had.
    OutputError
        If a value does not fit the dtype of the model's layers, or the adapter adds to other parameters than biases of
        adapted layers.
    UnsupportedAdapterError
        If the adapter carries weights that would replace the base model's own.

    Examples
    --------
    >>> import peft, torch
    >>> from lorakit import SVDMerger, from_peft, to_peft
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    >>> config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    >>> model = peft.get_peft_model(model, config, adapter_name="law")
    >>> model.add_adapter("medicine", config)
    >>> merged = SVDMerger(k=2).fit([from_peft(model, "law"), from_peft(model, "medicine")]).merged_
    >>> to_peft(model, merged)
    >>> model.set_adapter("merged")
    >>> [*model.peft_config]
    ['law', 'medicine', 'merged']
    """
    lora, peft = peft_modules()
    known = getattr(model, "peft_config", None) or {}
    if not isinstance(model, peft.PeftModel) and not known and not hasattr(model, "add_adapter"):
        raise ValueError(
            f"a {type(model).__name__} takes no adapters; pass a peft.PeftModel (peft.get_peft_model makes one), or a "
            "model of transformers or diffusers"
        )
    if adapter_name in known:
        raise ValueError(f"the model has an adapter {adapter_name!r} already; its adapters are {', '.join(known)}")
    plan = make_plan(adapter, written_ranks(adapter.infos, "compact", None))
    written_biases(adapter, plan.ranks, adapter.dtype, holder="model with PEFT's layers")  # or they have no place
    _check_names(model, adapter, plan)
    fields = config_fields(adapter, plan)
    fields["fan_in_fan_out"] = any(_is_conv1d(base_of(model).get_submodule(module)) for module in plan.ranks)
    _agree_on_parameters(fields, known)
    _check_extra_weights(model, adapter, peft)
    with others_untouched(model, lora, adapter_name):
        try:
            add_adapter(model, peft, peft.LoraConfig(**fields), adapter_name)
            _fill(model, lora, adapter, plan, adapter_name)
            if adapter.provenance.extra_weights is not None:
                extra_weights = adapter.provenance.extra_weights
                weights = {PREFIX + key: extra_weights.read(key) for key in extra_weights.names}
                peft.set_peft_model_state_dict(model, weights, adapter_name=adapter_name)
        except BaseException as error:
            remove_adapter(model, lora, adapter_name)
            if isinstance(error, (ValueError, RuntimeError)) and not isinstance(error, LorakitError):
                raise IncompatibleAdaptersError(
                    f"adapter {adapter.name!r} cannot be put into the model: {error}",
                    remedy="is this the base model that it was trained on?",
                ) from error
            raise


def _kept(biases: Mapping[str, Tensor], policy: str, where: str) -> MemoryDifferences | None:
    if not biases:
        return None
    if policy == "keep":
        return MemoryDifferences(biases)
    warnings.warn(
        f"{where}: left out, because of differences='drop': {few(biases, write=repr)}", UserWarning, stacklevel=3
    )
    return None


def _config(model: nn.Module, adapter_name: str) -> Mapping[str, Any]:
    configs = getattr(model, "peft_config", None)
    if not configs:
        raise ValueError(f"a {type(model).__name__} has no adapters; expected a peft.PeftModel, or PEFT layers in it")
    if adapter_name not in configs:
        raise ValueError(f"the model has no adapter {adapter_name!r}; its adapters are {', '.join(configs)}")
    fields: dict[str, Any] = configs[adapter_name].to_dict()
    plain_text = {key: getattr(fields.get(key), "value", fields.get(key)) for key in ("peft_type", "task_type")}
    return fields | plain_text


def _extra_weights(
    model: nn.Module, adapter_name: str, where: str, fields: Mapping[str, Any], policy: str
) -> MemoryExtraWeights | None:
    _, peft = peft_modules()
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    weights = {key.removeprefix(PREFIX): value for key, value in state.items() if ".lora_" not in key}
    if policy == "refuse":
        raise UnsupportedAdapterError(
            f"was trained with extra weights beside the LoRA factors: {', '.join(list(weights)[:3])}",
            path=where,
            expected="factors only",
            remedy=[
                Setting("modules_to_save", "drop"),
                " to leave them out, or ",
                Setting("modules_to_save", "first"),
                " to carry those of the first adapter along",
            ],
        )
    carried = policy == "first"
    warnings.warn(
        f"{where}: {'carried along' if carried else 'left out'}, because of modules_to_save={policy!r}: "
        f"{', '.join(weights)}",
        UserWarning,
        stacklevel=3,
    )
    if not carried:
        return None
    settings = {key: fields[key] for key in ("modules_to_save", "trainable_token_indices") if fields.get(key)}
    kept = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    return MemoryExtraWeights({key: value.detach().to("cpu", copy=True) for key, value in weights.items()}, kept)


def _is_conv1d(module: Any) -> bool:
    layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    return type(layer).__name__ == "Conv1D"  # GPT-2's, which stores its weight as (in, out)


def _check_names(model: nn.Module, adapter: Adapter, plan: Plan) -> None:
    present = dict(base_of(model).named_modules())
    wanted = [*plan.ranks, *(owner(stack) for stack in plan.stacks)]
    missing = [module for module in wanted if module not in present]
    if missing:
        near = get_close_matches(missing[0], present, n=3)
        raise IncompatibleAdaptersError(
            f"adapter {adapter.name!r} has {len(missing)} modules that the model lacks, such as {missing[0]!r}"
            + (f"; the model has {', '.join(map(repr, near))}" if near else ""),
            adapters=[adapter.name],
            expected="modules of the base model that it was trained on",
            remedy="rename them with Adapter.rename_modules",
        )


def _agree_on_parameters(fields: dict[str, Any], known: Mapping[str, Any]) -> None:
    """Spell ``target_parameters`` as the model's other adapters do, which PEFT insists on, where they mean the same."""
    wanted = fields.get("target_parameters")
    for config in known.values() if wanted else ():
        theirs = sorted(config.target_parameters or ()) if hasattr(config, "target_parameters") else []
        if theirs and all(any(w == t or w.endswith(f".{t}") for t in theirs) for w in wanted or ()):
            fields["target_parameters"] = theirs
            return


def _check_extra_weights(model: nn.Module, adapter: Adapter, peft: Any) -> None:
    extra_weights = adapter.provenance.extra_weights
    if extra_weights is None:
        return
    saved = extra_weights.settings.get("modules_to_save") or ()
    own = [
        name
        for name in extra_weights.names
        if ".token_adapter." not in name and not any(f".{module}." in f".{name}" for module in saved)
    ]
    if own or not isinstance(model, peft.PeftModel):
        raise UnsupportedAdapterError(
            f"adapter {adapter.name!r} carries {', '.join(own or extra_weights.names)}, which "
            + ("would replace weights of the base model" if own else "only a peft.PeftModel can hold beside its own"),
            adapters=[adapter.name],
            remedy=[Setting("modules_to_save", "drop"), " when it is read"],
        )


def _fill(model: nn.Module, lora: Any, adapter: Adapter, plan: Plan, adapter_name: str) -> None:
    layers = {path: layer for path, layer in lora_layers(model, lora) if has_adapter(layer, adapter_name)}
    expected = {*plan.ranks, *plan.stacks}
    if set(layers) != expected:
        raise IncompatibleAdaptersError(
            f"adapter {adapter.name!r} is for other layers than PEFT can adapt in the model: "
            f"{', '.join(sorted(set(layers) ^ expected)[:3])}",
            remedy="is this the base model that it was trained on?",
        )
    for path, layer in layers.items():
        where = f"adapter {adapter.name!r}: module {path!r}"
        a, b, embedding = factors_of(layer, adapter_name, where, lora)
        stack = plan.stacks.get(path)
        kind = "expert" if stack is not None else adapter.infos[path].kind.name
        info = stack.info if stack is not None else adapter.infos[path]
        rank = plan.rank * info.kind.experts if stack is not None else plan.ranks[path]
        shapes = plain_shapes(info, rank)
        if (tuple(a.shape), tuple(b.shape)) != shapes or embedding != (kind == "embedding"):
            raise IncompatibleAdaptersError(
                f"is {info.kind} of d_in {info.d_in}, d_out {info.d_out}; the model's layer takes A "
                f"{tuple(a.shape)} and B {tuple(b.shape)} for it",
                path=where,
                expected=f"{shapes[0]} and {shapes[1]}",
                remedy="is this the base model that it was trained on?",
            )
        if layer.scaling[adapter_name] != 1:
            raise OutputError(
                f"PEFT scales it by {layer.scaling[adapter_name]}",
                path=where,
                expected="1",
                remedy="report this",
            )
        if stack is not None:
            factors = stacked_factors(adapter, stack, plan.rank, a.dtype)
        else:
            factors = plain_factors(adapter, path, rank, a.dtype)
        with torch.no_grad():
            a.copy_(factors[0])
            b.copy_(factors[1])
            bias = bias_of(layer, adapter_name)
            if bias is not None:
                added = adapter.differences is not None and f"{path}.bias" in adapter.differences.infos
                bias.copy_(cast_difference(adapter, f"{path}.bias", bias.dtype) if added else torch.zeros_like(bias))
