"""Adapters of other kinds than plain LoRA in live models of PEFT: read as PEFT would save them, and held in memory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from ..adapters import Adapter, Source
from ..exceptions import LorakitError, UnsupportedAdapterError
from ..files.safetensors import close_files
from ..readers import MemoryReader
from ._live_layers import peft_modules
from .formats.peft.about import CONFIG, WEIGHTS
from .formats.peft.extra_weights import MemoryExtraWeights
from .load import load_adapter

KINDS = ("LOHA", "LOKR", "ADALORA")  # whose files say all of their update


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
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # the path says nothing to the user, so what it warns of is that of the live model
        warnings.simplefilter("ignore", UserWarning)
        state = peft.get_peft_model_state_dict(model, adapter_name=adapter_name)
        save_file({key: tensor.detach().cpu().clone() for key, tensor in state.items()}, Path(folder, WEIGHTS))
        Path(folder, CONFIG).write_text(json.dumps(_plain(config.to_dict())), encoding="utf-8")
        try:
            adapter = load_adapter(folder, name=name, modules_to_save=modules_to_save)
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


def _plain(value: Any) -> Any:
    """Return what PEFT's config holds as JSON can: sets as lists, members of enumerations as their values."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(inner) for inner in (sorted(value) if isinstance(value, set) else value)]
    return getattr(value, "value", value)
