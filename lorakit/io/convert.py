"""Converting: the same updates under the module names of another family of files."""

from __future__ import annotations

import re
from itertools import pairwise

from ..adapters import Adapter
from ..exceptions import UnsupportedAdapterError
from .formats.codec import by_name
from .formats.registry import CODECS
from .names.kohya import base_of
from .names.steps import COMPONENTS, STEPS, Request

__all__ = ["convert_adapter"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)")


def convert_adapter(adapter: Adapter, format: str, *, component: str | None = None) -> Adapter:
    """Return the same updates with modules named as another family of files names them.

    No weights are read: modules are read under their new names when they are asked for. Only names with an exact
    counterpart are translated; nothing is split, joined, reordered or guessed.

    Parameters
    ----------
    adapter : Adapter
        The adapter. Its ``provenance.format`` says what its names are.
    format : {'peft', 'kohya', 'diffusers', 'comfyui', 'mlx'}
        What the names are to be. There are ways between kohya and diffusers, diffusers and PEFT, kohya and PEFT, kohya
        and ComfyUI, MLX and PEFT.
    component : {'unet', 'transformer', 'text_encoder', 'text_encoder_2', 'text_encoder_3'}, optional
        A model of a diffusion pipeline: the one to take, where an adapter has modules of several and the result is to
        have those of one; the one that the modules belong to, where their names do not say. Defaults to all, and for
        PEFT to what the names show.

    Returns
    -------
    Adapter
        Lazy if the adapter is, and under the same name. ``provenance.format`` is the new one.

    Raises
    ------
    UnsupportedAdapterError
        If there is no way between the two families, a module has no name of its own in the other, or PEFT is to hold
        several models at once.
    ValueError
        If ``format`` or ``component`` is not one of those above, or ``component`` has no meaning for these families.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, convert_adapter
    >>> from lorakit.adapters import Provenance
    >>> factors = LoraFactors(np.ones((2, 3)), np.ones((4, 2)))
    >>> name = "lora_unet_mid_block_attentions_0_proj_in"
    >>> adapter = Adapter({name: factors}, provenance=Provenance(format="kohya"))
    >>> list(convert_adapter(adapter, "diffusers"))
    ['unet.mid_block.attentions.0.proj_in']
    >>> list(convert_adapter(adapter, "peft"))
    ['mid_block.attentions.0.proj_in']
    """
    target = by_name(CODECS, format).name
    if component is not None and component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(map(repr, COMPONENTS))}, got {component!r}")
    source = adapter.provenance.format
    if source == target and component is None:
        return adapter
    way = _way(adapter.name, source, target)
    if component is not None and "diffusers" not in way:
        raise ValueError(
            f"component is for the models of diffusion pipelines; from {source} to {target} it has no meaning"
        )
    request = Request(adapter.name, source, adapter.provenance.metadata, component)
    names = {module: module for module in adapter}
    for here, there in pairwise(way):
        step = STEPS[here, there](request, list(names.values()))
        names = {module: step[name] for module, name in names.items() if name in step}
    renamed = adapter.select(names).rename_modules(names.__getitem__)
    return renamed.with_provenance(format=target, base_model=_base_model(adapter, target))


def _way(name: str, source: str, target: str) -> tuple[str, ...]:
    """Return the families to go through: directly, or with one between."""
    if (source, target) in STEPS:
        return source, target
    if {source, target} == {"kohya", "peft"}:
        return source, "diffusers", target
    near = sorted({there for here, there in STEPS if here == source != there})
    raise UnsupportedAdapterError(
        f"{name}: its modules are named as {source} files name them, and there is no exact way from those names to "
        f"{target}'s; expected one of {', '.join(near) or 'none'}; if you know the names, give them with "
        f"adapter.rename_modules and say so with adapter.with_provenance(format={target!r})"
    )


def _base_model(adapter: Adapter, target: str) -> str | None:
    """Return the base model's name as the other family gives it: kohya's is a version, the others' an id of the hub."""
    known = adapter.provenance
    if target == "kohya":
        return base_of(known.metadata) or known.base_model
    if known.format != "kohya" or target == "comfyui":
        return known.base_model
    name = known.metadata.get("ss_sd_model_name") or known.base_model or ""
    return name if _HUB_ID.fullmatch(name) else None
