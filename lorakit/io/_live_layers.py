"""The layers that PEFT puts into a model: finding them, reading them, adding and removing an adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..exceptions import UnsupportedAdapterError

if TYPE_CHECKING:
    from torch import Tensor, nn


def peft_modules() -> tuple[Any, Any]:
    """Return PEFT's file of LoRA layers, and PEFT."""
    try:
        import peft
        from peft.tuners.lora import layer
    except ImportError as error:
        raise ImportError("adapters of live models need the package peft: pip install peft") from error
    return layer, peft


def base_of(model: nn.Module) -> nn.Module:
    """Return the model that module names are relative to."""
    _, peft = peft_modules()
    base: nn.Module = model.base_model.model if isinstance(model, peft.PeftModel) else model
    return base


def lora_layers(model: nn.Module, lora: Any) -> Iterator[tuple[str, Any]]:
    """Yield the LoRA layers of a model with their names."""
    return ((path, layer) for path, layer in base_of(model).named_modules() if isinstance(layer, lora.LoraLayer))


def has_adapter(layer: Any, adapter_name: str) -> bool:
    """Whether a LoRA layer has factors of this adapter."""
    return adapter_name in layer.lora_A or adapter_name in layer.lora_embedding_A


def bias_of(layer: Any, adapter_name: str) -> Tensor | None:
    """Return the bias that is trained beside B (``lora_bias``); None if there is none."""
    found: Tensor | None = (
        layer.lora_B[adapter_name].bias if getattr(layer, "lora_bias", {}).get(adapter_name) else None
    )
    return found


def factors_of(layer: Any, adapter_name: str, where: str, lora: Any) -> tuple[Tensor, Tensor, bool]:
    """Return A and B as PEFT stores them, and whether they are of an embedding; refuse other variants than biases."""
    variant = getattr(layer, "lora_variant", {}).get(adapter_name)  # PEFT has it since 0.16
    if variant is not None or layer.use_dora.get(adapter_name):
        raise UnsupportedAdapterError(
            f"is a variant of LoRA ({type(variant).__name__}), so B @ A is not its update",
            path=where,
            remedy="train without it, or merge it into its base model with PEFT's merge_and_unload",
        )
    if isinstance(layer, getattr(lora, "MultiheadAttention", ())):
        raise UnsupportedAdapterError(
            "is nn.MultiheadAttention, which is not supported",
            path=where,
            remedy="train without it",
        )
    embedding = adapter_name in layer.lora_embedding_A
    if embedding:
        a, b = layer.lora_embedding_A[adapter_name], layer.lora_embedding_B[adapter_name]
    else:
        a, b = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    if a.is_meta or b.is_meta:
        raise UnsupportedAdapterError(
            "its factors are not in memory",
            path=where,
            remedy="load the model without offloading",
        )
    return a, b, embedding


@contextmanager
def others_untouched(model: nn.Module, lora: Any, adapter_name: str) -> Iterator[None]:
    """Put back which adapters are active, and what is trainable, when an adapter has been added."""
    trainable = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    before = {path: list(layer.active_adapters) for path, layer in lora_layers(model, lora)}
    active = next(iter(before.values()), None)
    try:
        with warnings.catch_warnings():
            # PEFT warns of layers other than Linear if fan_in_fan_out is set, and then does the right thing
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            # several adapters in one model are intended
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            yield
    finally:
        for path, layer in lora_layers(model, lora) if active is not None else ():
            layer.set_adapter(before.get(path, active))
        for parameter in model.parameters():
            if id(parameter) in trainable:
                parameter.requires_grad_(trainable[id(parameter)])


def add_adapter(model: Any, peft: Any, config: Any, adapter_name: str) -> None:
    """Add an adapter by the method that this kind of model has."""
    if isinstance(model, peft.PeftModel):
        model.add_adapter(adapter_name, config)
    elif hasattr(model, "add_adapter"):
        model.add_adapter(config, adapter_name=adapter_name)
    else:
        peft.inject_adapter_in_model(config, model, adapter_name)


def remove_adapter(model: Any, lora: Any, adapter_name: str) -> None:
    """Remove an adapter, also one that was added in part only."""
    for _, layer in lora_layers(model, lora):
        if has_adapter(layer, adapter_name):
            layer.delete_adapter(adapter_name)
    getattr(model, "peft_config", {}).pop(adapter_name, None)
