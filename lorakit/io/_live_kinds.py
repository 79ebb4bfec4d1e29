"""Adapters of other kinds than plain LoRA in live models of PEFT: read as PEFT would save them, and held in memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..adapters import Adapter, Source
from ..exceptions import LorakitError, UnsupportedAdapterError
from ..files.safetensors import close_files
from ..readers import MemoryReader
from ._live_layers import base_of, peft_modules
from .formats.kinds.vera import SHARED
from .formats.peft.about import CONFIG, WEIGHTS
from .formats.peft.extra_weights import MemoryExtraWeights
from .load import load_adapter

# Those whose files do not say how wide the inputs are, which the layers do, and what a layer holds of its own
_HELD_BY = {"VERA": "vera_lambda_d", "MISS": "miss_block", "BONE": "bone_block"}
KINDS = ("LOHA", "LOKR", "ADALORA", *_HELD_BY)
_SHARED_KEYS = tuple(f"base_model.{part}" for part in SHARED)


def read_kind(
    model: nn.Module, adapter_name: str, *, name: str, where: str, modules_to_save: Literal["refuse", "drop", "first"]
) -> Adapter:
    """Read an adapter of another kind from a live model.

    Parameters
    ----------
    model : nn.Module
        The model.
    adapter_name : str
        Which of its adapters.
    name : str
        What the adapter is called here.
    where : str
        The adapter, for messages.
    modules_to_save : {'refuse', 'drop', 'first'}
        As in :func:`lorakit.load_adapter`.

    Raises
    ------
    UnsupportedAdapterError
        If lorakit would not read the directory that PEFT saves of it.
    """
    from safetensors.torch import save_file

    _, peft = peft_modules()
    config: Any = model.peft_config[adapter_name]  # type: ignore[index]
    fields = _plain(config.to_dict())
    base, shared = None, {}
    if fields["peft_type"] in _HELD_BY:
        layers = _layers_of(model, adapter_name, _HELD_BY[fields["peft_type"]])
        base = {f"{path}.weight": _weight(layer, fields, where, path) for path, layer in layers.items()}
        if fields["peft_type"] == "VERA" and layers:  # one pair for all layers, whether or not it would be saved
            first = next(iter(layers.values()))
            shared = {f"base_model.{part}": getattr(first, part)[adapter_name] for part in SHARED}
            fields["save_projection"] = True
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # the path says nothing to the user, so what it warns of is that of the live model
        warnings.simplefilter("ignore", UserWarning)
        state = peft.get_peft_model_state_dict(model, adapter_name=adapter_name)
        state = {key: tensor for key, tensor in state.items() if not key.startswith(_SHARED_KEYS)} | shared
        save_file({key: tensor.detach().cpu().clone() for key, tensor in state.items()}, Path(folder, WEIGHTS))
        Path(folder, CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        try:
            adapter = load_adapter(folder, name=name, modules_to_save=modules_to_save, base=base)
            modules = dict(adapter.items())
            extra = adapter.provenance.extra_weights
            if extra is not None:
                extra = MemoryExtraWeights({key: extra.read(key) for key in extra.names}, extra.settings)
        except LorakitError as error:
            seen = str(error).replace(f"{Path(folder, WEIGHTS)}: ", "").replace(f"{Path(folder, CONFIG)}: ", "")
            raise UnsupportedAdapterError(seen, path=where) from error
        finally:
            close_files()
    kinds = {module: info.kind for module, info in adapter.infos.items()}
    provenance = adapter.with_provenance(sources=(Source(name),), extra_weights=extra).provenance
    return Adapter.from_reader(MemoryReader(modules, kinds, adapter.dtype), name=name, provenance=provenance)


def _layers_of(model: nn.Module, adapter_name: str, held_by: str) -> dict[str, Any]:
    """Return the layers of a model that hold vectors or blocks of an adapter, by their names."""
    named = base_of(model).named_modules()
    return {path: layer for path, layer in named if adapter_name in (getattr(layer, held_by, None) or ())}


def _weight(layer: Any, fields: Mapping[str, Any], where: str, path: str) -> Tensor:
    """Return the weight of a layer, or, where only its widths matter, something of its shape."""
    weight: Tensor = layer.get_base_layer().weight
    if fields["peft_type"] != "VERA" and fields.get("init_weights") == "bat":
        if layer.merged:
            raise UnsupportedAdapterError(
                "is merged into the weights of the model, from which the update of init_weights='bat' is made",
                path=where,
                module=path,
                remedy="take it out of the weights first, by PEFT's unmerge_adapter",
            )
        return weight.detach().cpu()
    # a quantized weight has a shape of its own
    shape = weight.shape if weight.ndim == 2 and weight.is_floating_point() else (layer.out_features, layer.in_features)
    return torch.empty(tuple(shape), device="meta")


def _plain(value: Any) -> Any:
    """Return what PEFT's config holds as JSON can: sets as lists, members of enumerations as their values."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(inner) for inner in (sorted(value) if isinstance(value, set) else value)]
    return getattr(value, "value", value)
