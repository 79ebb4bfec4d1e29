"""Converting: the same updates under the module names of another family of files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NoReturn

from ..adapters import Adapter
from ..exceptions import Setting, UnsupportedAdapterError
from ..pieces import Piece, layers_of_differences, put_together
from .formats.registry import about, codec, codecs
from .names.component import COMPONENTS
from .names.families import FAMILIES
from .names.families.family import Family
from .names.kohya import ONE_TRAINER, model_of
from .names.steps import Request, Step
from .names.translate import NAMELESS, Known, Plan, candidates, family_plan, in_diffusers, refuse_unknown

__all__ = ["convert_adapter", "refuse_second"]

_SECOND = "transformer_2"


def convert_adapter(
    adapter: Adapter, format: str, *, component: str | None = None, family: str | None = None
) -> Adapter:
    """Return the same updates with modules named as another family of files names them.

    Only names with an exact counterpart are translated, and nothing is guessed. Layers that are one in the first code
    of a model and several in diffusers, such as Q, K and V of FLUX.1, are split and joined exactly, as
    :func:`~lorakit.split_modules` and :func:`~lorakit.join_modules` do; they are read once, to know their ranks. Other
    modules are read under their new names when they are asked for.

    Parameters
    ----------
    adapter : Adapter
        The adapter. Its ``provenance.format`` says what its names are.
    format : {'peft', 'kohya', 'diffusers', 'comfyui', 'mlx', 'bare', 'xlabs', 'control_lora'}
        The format whose names the result has. Transformers of the families below are converted between all formats of
        diffusion models. For other models there are conversions between kohya and diffusers, diffusers and PEFT, kohya
        and PEFT, kohya and ComfyUI, MLX and PEFT.
    component : {'unet', 'transformer', 'transformer_2', 'text_encoder', 'text_encoder_2', 'text_encoder_3'}, optional
        A model of a diffusion pipeline; 'transformer_2' is the second transformer of Wan 2.2, for low noise. If the
        adapter has modules of several models, the result has only those of this one. If the names do not say which
        model they belong to, they belong to this one. Defaults to all models, and for PEFT to the one that the names
        show.
    family : {'flux', 'flux2', 'sd3', 'hunyuan-video', 'wan', 'qwen-image', 'z-image', 'ltx', 'lumina2', 'mochi'}, \
optional
        The family of diffusion transformers that the adapter is for. Defaults to what its files or the names of its
        modules show.

    Returns
    -------
    Adapter
        Lazy if the adapter is, and under the same name. ``provenance.format`` is the new one.

    Raises
    ------
    UnsupportedAdapterError
        If there is no conversion between the two formats, a module has no name of its own in the target, its names can
        be of several families that the target names differently, its widths are not those of its family, or a PEFT
        adapter would hold several models at once.
    ValueError
        If ``format``, ``component`` or ``family`` is not one of those above, or ``component`` has no meaning for these
        formats.

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
    return convert_among(adapter, format, component=component, family=family)


def convert_among(
    adapter: Adapter,
    format: str,
    *,
    component: str | None = None,
    family: str | None = None,
    among: Iterable[Family] = FAMILIES,
) -> Adapter:
    """Convert as :func:`convert_adapter` does, to be of one of these families if it is of any."""
    target = about(format).name
    if component is not None and component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(map(repr, COMPONENTS))}, got {component!r}")
    names = [known.name for known in FAMILIES]
    if family is not None and family not in names:
        raise ValueError(f"family must be one of {', '.join(map(repr, names))}, got {family!r}")
    source = adapter.provenance.format
    if source == target and component is None:
        return adapter
    if component == _SECOND:
        return _second_transformer(adapter, target, family, among)
    if component is None:
        refuse_second(adapter)
    of_second = set(_of_second(adapter))
    if of_second and component == "transformer":  # a part of another name to all that follows
        adapter = adapter.select(module for module in adapter if module not in of_second)
    plan: Plan = {}
    others = set(layers_of_differences(adapter))  # they have no factors, and are renamed with the modules
    dropped: set[str] = set()
    rest = list(adapter)
    families: tuple[str, ...] = ()
    spellings = codec(source).spellings
    told = bool(spellings and spellings[0].prefix)  # the names say which model they are of
    if component in (None, "transformer") or told:
        plan, rest, families = _by_family(adapter, target, family, among)
        found = {piece.module for pieces in plan.values() for piece in pieces if piece.module is not None}
        if component not in (None, "transformer"):
            dropped = found & others
            plan = {}
        others -= found
    if rest or not plan:
        if plan and target == "peft" and component is None:
            _refuse_several(adapter, rest[0])
        of = (family,) if family is not None else families
        by_steps, left = _by_steps(adapter, target, rest, others, component, of, transformer=bool(plan))
        plan |= by_steps
        dropped |= left
    order = {module: i for i, module in enumerate((*adapter, *layers_of_differences(adapter)))}
    ordered = sorted(plan, key=lambda name: min(order[p.module] for p in plan[name] if p.module is not None))
    made = put_together(adapter, {name: plan[name] for name in ordered}, dropped=dropped)
    nameless = next((name for name in made if name.startswith(NAMELESS)), None)
    if nameless is not None:
        refuse_unknown(adapter.name, plan[nameless][0].module, nameless.removeprefix(NAMELESS))
    done = {"to": target, "component": component, "family": family}
    return made.with_provenance(
        format=target,
        base_model=codec(target).base_model(adapter.provenance),
        conversions=(*adapter.provenance.conversions, {key: text for key, text in done.items() if text is not None}),
    )


def _second_transformer(adapter: Adapter, target: str, family: str | None, among: Iterable[Family]) -> Adapter:
    """Convert the second transformer of a pipeline, whose layers have the same names as those of the first."""
    given = adapter
    if adapter.provenance.format == "diffusers":
        chosen = [module for module in adapter if module.startswith(f"{_SECOND}.")]
        if not chosen:
            raise UnsupportedAdapterError(
                f"has no modules of {_SECOND!r}, it has {next(iter(adapter))!r}",
                adapters=[adapter.name],
                remedy=[Setting("component", "transformer"), ", if these are what is meant"],
            )
        adapter = adapter.select(chosen).rename_modules(lambda module: module.replace(_SECOND, "transformer", 1))
    made = convert_among(adapter, target, component="transformer", family=family, among=among)
    if target == "diffusers":
        made = made.rename_modules(lambda module: module.replace("transformer", _SECOND, 1))
    done = {"to": target, "component": _SECOND, "family": family}
    conversions = (*given.provenance.conversions, {key: text for key, text in done.items() if text is not None})
    return made.with_provenance(conversions=conversions)


def refuse_second(adapter: Adapter) -> None:
    """Refuse an adapter of diffusers' names that is for a pipeline's second transformer, where nobody says so.

    Raises
    ------
    UnsupportedAdapterError
        Naming the component to say.
    """
    module = next(iter(_of_second(adapter)), None)
    if module is None:
        return
    raise UnsupportedAdapterError(
        f"holds modules of a pipeline's second transformer, such as {module!r}, which other formats name as those of "
        "the first one",
        adapters=[adapter.name],
        expected="those of one of the two",
        remedy=[Setting("component", _SECOND), ", or ", Setting("component", "transformer"), " for the first"],
    )


def _of_second(adapter: Adapter) -> list[str]:
    """Return the modules of a pipeline's second transformer, which diffusers' names alone tell from the first."""
    return [m for m in adapter if adapter.provenance.format == "diffusers" and m.startswith(f"{_SECOND}.")]


def what_is_known(adapter: Adapter) -> Known:
    """Return what an adapter says of the model that it is for."""
    origin = adapter.provenance
    return Known(
        adapter.name,
        adapter.infos,
        codec(origin.format).spellings,
        tuple(name for name in (origin.base_model, origin.metadata.get("ss_sd_model_name")) if name),
        model_of(origin.metadata),
        origin.metadata,
        layers_of_differences(adapter),
    )


def _by_family(
    adapter: Adapter, target: str, family: str | None, among: Iterable[Family]
) -> tuple[Plan, list[str], tuple[str, ...]]:
    """Return what makes each module of a transformer of a known family, the other modules, and the families."""
    spellings = codec(target).spellings
    known = what_is_known(adapter)
    found = candidates(known, family, among) if spellings and known.spellings else None
    if found is None or not found.modules:
        return {}, list(adapter), ()
    families = tuple(one.name for one in found.families)
    of_family = set(found.modules)
    rest = [module for module in adapter if module not in of_family]
    alike = in_diffusers(known, found)
    if alike and {adapter.provenance.format, target} <= {"diffusers", "peft"}:
        if target == "peft" or adapter.provenance.format == "diffusers":  # the names stay, or lose their beginning
            return {}, list(adapter), families
        return {f"transformer.{module}": _whole(adapter, module) for module in found.modules}, rest, families
    unsure = ONE_TRAINER if alike and ONE_TRAINER in spellings else None
    plan, _ = family_plan(known, found, spellings, unsure=unsure)
    return plan, rest, families


def _by_steps(
    adapter: Adapter,
    target: str,
    modules: list[str],
    others: Collection[str],
    component: str | None,
    families: tuple[str, ...],
    *,
    transformer: bool,
) -> tuple[Plan, set[str]]:
    """Return what makes each module, and the layers without factors that are of another component."""
    source, steps = adapter.provenance.format, _steps()
    way = _way(adapter.name, source, target, steps)
    if component is not None and "diffusers" not in way:
        raise ValueError(
            f"component is for the models of diffusion pipelines; from {source} to {target} it has no meaning"
        )
    request = Request(adapter.name, source, adapter.provenance.metadata, component, transformer, families)

    def named(layers: Sequence[str]) -> dict[str, str]:
        names = {layer: layer for layer in layers}
        for here, there in pairwise(way):
            step = steps[here, there](request, list(names.values()))
            names = {layer: step[name] for layer, name in names.items() if name in step}
        return names

    known = sorted(others)
    try:
        names = named([*modules, *known])
    except UnsupportedAdapterError:
        if not known:
            raise
        names, known = named(modules), []  # the other layers have no names there
    widths = layers_of_differences(adapter)
    plan = {
        name: _whole(adapter, layer) if layer in adapter else (Piece(layer, 0, widths[layer]),)
        for layer, name in names.items()
    }
    return plan, set(known) - set(names)


def _whole(adapter: Adapter, module: str) -> tuple[Piece, ...]:
    return (Piece(module, 0, adapter.infos[module].d_out),)


def _refuse_several(adapter: Adapter, module: str) -> NoReturn:
    raise UnsupportedAdapterError(
        f"holds modules of a transformer, and others such as {module!r}",
        adapters=[adapter.name],
        expected="those of one model, as a PEFT directory holds",
        remedy=[Setting("component", "transformer"), ", or another of the pipeline's models"],
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
            "if you know the names, rename the modules in Python: adapter.rename_modules(...) and then "
            f"adapter.with_provenance(format={target!r})"
        ),
    )
