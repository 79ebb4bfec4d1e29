"""Converting: the same updates under the module names of another family of files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from ..adapters import Adapter
from ..exceptions import UnsupportedAdapterError
from .formats.registry import about, codec, codecs
from .names.steps import COMPONENTS, Request, Step

__all__ = ["convert_adapter"]


def convert_adapter(adapter: Adapter, format: str, *, component: str | None = None) -> Adapter:
    """Return the same updates with modules named as another family of files names them.

    No weights are read: modules are read under their new names when they are asked for. Only names with an exact
    counterpart are translated; nothing is split, joined, reordered or guessed.

    Parameters
    ----------
    adapter : Adapter
        The adapter. Its ``provenance.format`` says what its names are.
    format : {'peft', 'kohya', 'diffusers', 'comfyui', 'mlx'}
        The family whose names the result has. Conversions exist between kohya and diffusers, diffusers and PEFT, kohya
        and PEFT, kohya and ComfyUI, MLX and PEFT.
    component : {'unet', 'transformer', 'text_encoder', 'text_encoder_2', 'text_encoder_3'}, optional
        A model of a diffusion pipeline. If the adapter has modules of several models, the result has only those of this
        one. If the names do not say which model they belong to, they belong to this one. Defaults to all models, and
        for PEFT to the one that the names show.

    Returns
    -------
    Adapter
        Lazy if the adapter is, and under the same name. ``provenance.format`` is the new one.

    Raises
    ------
    UnsupportedAdapterError
        If there is no conversion between the two families, a module has no name of its own in the target, or a PEFT
        adapter would hold several models at once.
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
    target = about(format).name
    if component is not None and component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(map(repr, COMPONENTS))}, got {component!r}")
    source = adapter.provenance.format
    if source == target and component is None:
        return adapter
    steps = _steps()
    way = _way(adapter.name, source, target, steps)
    if component is not None and "diffusers" not in way:
        raise ValueError(
            f"component is for the models of diffusion pipelines; from {source} to {target} it has no meaning"
        )
    request = Request(adapter.name, source, adapter.provenance.metadata, component)
    names = {module: module for module in adapter}
    for here, there in pairwise(way):
        step = steps[here, there](request, list(names.values()))
        names = {module: step[name] for module, name in names.items() if name in step}
    renamed = adapter.select(names).rename_modules(names.__getitem__)
    done = {"to": target} | ({} if component is None else {"component": component})
    return renamed.with_provenance(
        format=target,
        base_model=codec(target).base_model(adapter.provenance),
        conversions=(*adapter.provenance.conversions, done),
    )


def _steps() -> dict[tuple[str, str], Step]:
    """Return every step that a format knows, by the formats that it leads from and to."""
    return {ends: step for known in codecs() for ends, step in known.ways.items()}


def _way(name: str, source: str, target: str, steps: Mapping[tuple[str, str], Step]) -> tuple[str, ...]:
    """Return the families to go through: directly, or with one between."""
    if (source, target) in steps:
        return source, target
    detours = {ends: between for known in codecs() for ends, between in known.detours.items()}
    if (source, target) in detours:
        return source, detours[source, target], target
    near = sorted({there for here, there in steps if here == source != there})
    raise UnsupportedAdapterError(
        f"its modules are named as {source} files name them, and there is no exact way from those names to {target}'s",
        adapters=[name],
        expected=f"one of {', '.join(near) or 'none'}",
        remedy=(
            "if you know the names, give them with adapter.rename_modules and say so with "
            f"adapter.with_provenance(format={target!r})"
        ),
    )
