"""One step from a family of names to a neighbouring one; conversions are made of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, NoReturn

from ...exceptions import Setting, UnsupportedAdapterError
from .component import split_component
from .diffusion import UNET, sgm_to_diffusers
from .kohya import diffusers_names, flat, kohya_names, model_of
from .language import MLX_AND_PEFT
from .table import NameTable


class Request(NamedTuple):
    """What the steps of one conversion need to know."""

    name: str  # of the adapter, for messages
    format: str  # that its modules are named by
    metadata: Mapping[str, str]
    component: str | None
    transformer: bool = False  # whether there is a transformer besides, whose names need no step
    families: tuple[str, ...] = ()  # that the adapter can be of


Step = Callable[[Request, Sequence[str]], dict[str, str]]


def kohya_to_diffusers(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Translate kohya's names, of all models or of one component, to diffusers'."""
    found = diffusers_names(modules)
    if _is_flux(request):  # its T5 is the third encoder to sd-scripts, which counts as Stable Diffusion 3 does
        found = {module: _second(name) for module, name in found.items()}
    named = _complete(request, found, "diffusers")
    if request.component is None:
        return named
    return _one_component(request, named)


def _is_flux(request: Request) -> bool:
    trained = model_of(request.metadata)
    return trained.startswith("flux") if trained else request.families == ("flux",)


def _second(name: str | None) -> str | None:
    return name if name is None else name.replace("text_encoder_3.", "text_encoder_2.", 1)


def diffusers_to_diffusers(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Keep the modules of one component."""
    return _one_component(request, {module: module for module in modules})


def diffusers_to_kohya(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Translate diffusers' names to kohya's."""
    full = _one_component(request, {module: module for module in modules})
    found = kohya_names(list(full.values()), request.metadata, request.transformer, third=_is_flux(request))
    return _complete(request, {module: found[name] for module, name in full.items()}, "kohya")


def diffusers_to_peft(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Translate diffusers' names of one component to the names that this model itself has."""
    full = _one_component(request, {module: module for module in modules})
    components = {split_component(name).component for name in full.values()}
    if len(components) > 1:
        raise UnsupportedAdapterError(
            f"holds modules of {', '.join(sorted(components))}",
            adapters=[request.name],
            expected="those of one model, as a PEFT directory holds",
            remedy=[Setting("component", min(components)), ", or another of these"],
        )
    return {module: split_component(name).local for module, name in full.items()}


def peft_to_diffusers(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Prefix a model's own names with its component, which the request or the names show."""
    component = request.component
    if component is None:
        if not _knows_all(UNET, modules):
            raise UnsupportedAdapterError(
                f"modules such as {modules[0]!r} do not show which model of a pipeline they belong to",
                adapters=[request.name],
                expected="names of a UNet or a transformer of diffusers",
                remedy=["say which it is: ", Setting("component", "text_encoder"), ", for example"],
            )
        component = "unet"
    return {module: split_component(f"{component}.{module}").full for module in modules}


def kohya_to_comfyui(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Translate kohya's names to ComfyUI's."""
    table = _comfyui()
    return _complete(request, {module: table.right_of(module) for module in modules}, "comfyui")


def comfyui_to_kohya(request: Request, modules: Sequence[str]) -> dict[str, str]:
    """Translate ComfyUI's names to kohya's."""
    table = _comfyui()
    return _complete(request, {module: table.left_of(module) for module in modules}, "kohya")


def mlx_and_peft(other: str) -> Step:
    """Return the step from MLX's names or PEFT's to the other format. Modules known to both have one name in both."""

    def step(request: Request, modules: Sequence[str]) -> dict[str, str]:
        known = _identity(MLX_AND_PEFT)
        return _complete(request, {module: known.right_of(module) for module in modules}, other)

    return step


def _one_component(request: Request, named: dict[str, str]) -> dict[str, str]:
    """Return the modules of the requested component. Names without a component are prefixed with it."""
    if request.component is None:
        return named
    split = {module: split_component(name) for module, name in named.items()}
    if {name.component for name in split.values()} == {""}:
        return {module: split_component(f"{request.component}.{name.local}").full for module, name in split.items()}
    chosen = {module: named[module] for module, name in split.items() if name.component == request.component}
    if not chosen and not request.transformer:
        have = sorted({name.component for name in split.values()})
        raise UnsupportedAdapterError(
            f"has no modules of {request.component!r}, it has those of {', '.join(map(repr, have))}",
            adapters=[request.name],
            remedy="pass one of these as component",
        )
    return chosen


def _complete(request: Request, found: Mapping[str, str | None], other: str) -> dict[str, str]:
    """Return the names if there is one for every module, all different; else say which module has none."""
    named: dict[str, str] = {}
    taken: dict[str, str] = {}
    for module, name in found.items():
        if name is None:
            _refuse(request, module, [m for m, n in found.items() if n is None], other)
        if name in taken:
            raise UnsupportedAdapterError(
                f"modules {taken[name]!r} and {module!r} are both {name!r} in {other} files",
                adapters=[request.name],
                expected="one of the two spellings",
                remedy="leave the other out with adapter.select",
            )
        taken[name] = module
        named[module] = name
    return named


def _refuse(request: Request, module: str, unknown: Sequence[str], other: str) -> NoReturn:
    more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
    raise UnsupportedAdapterError(
        f"module {module!r}{more} has no name of its own in {other} files that lorakit knows",
        adapters=[request.name],
        expected=(
            f"{request.format} names that it can translate exactly. Keep the adapter as it is (merge "
            f"it with others of {request.format}), or rename its modules in Python: adapter.rename_modules(...) "
            f"and then adapter.with_provenance(format={other!r})"
        ),
    )


def _knows_all(names: Sequence[str], modules: Sequence[str]) -> bool:
    table = _identity(tuple(names))
    return all(table.right_of(module) is not None for module in modules)


@cache
def _identity(names: tuple[str, ...]) -> NameTable:
    return NameTable((name, name) for name in names)


@cache
def _comfyui() -> NameTable:
    """Return the names that sd-scripts flattens, left, and ComfyUI's files give as they are, right."""
    return NameTable((f"lora_unet_{flat(name)}", f"diffusion_model.{name}") for name in sgm_to_diffusers())
