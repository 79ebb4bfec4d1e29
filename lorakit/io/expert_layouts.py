"""Adapters of one mixture of experts, some fused and some not, brought to one layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .._experts import FUSED, PARTS, Widths, is_single, per_expert, possible_widths, stacks_of
from ..adapters import Adapter
from ..exceptions import IncompatibleAdaptersError, UnsupportedAdapterError
from ..experts import join_experts, split_experts

__all__ = ["experts_alike"]

_INTERLEAVED = re.compile(r"gpt[-_]?oss", re.IGNORECASE)  # the one model of transformers whose gate and up alternate
_OLD, _NEW = ".block_sparse_moe.", ".mlp."  # Mixtral's layer, before transformers 5 and since


class _Layout(NamedTuple):
    """How an adapter holds experts.

    Parameters
    ----------
    adapter : Adapter
        It.
    fused : bool
        Whether they are fused.
    experts : int
        How many a layer has, or the largest number that is known of plus one.
    parameters : frozenset of str
        The fused parameters.
    parts : tuple of str
        What the linear modules are called.
    held : frozenset of int
        Which of gate, up, down it adapts.
    old : bool
        Whether the layer has the name that it had before transformers 5.
    transposed : bool
        Whether the updates are.
    """

    adapter: Adapter
    fused: bool
    experts: int
    parameters: frozenset[str]
    parts: tuple[str, ...]
    held: frozenset[int]
    old: bool
    transposed: bool = False


def experts_alike(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[str]]:
    """Bring the experts of adapters to one layout, the first's: fused parameters, or linear modules.

    Parameters
    ----------
    adapters : sequence of Adapter
        Adapters of one format.

    Returns
    -------
    adapters : list of Adapter
        As they are if their experts are in one layout already, or if they are not of one model.
    said : list of str
        What was done, a phrase each.

    Raises
    ------
    UnsupportedAdapterError
        If several readings of the fused parameters are possible, which the message names.
    IncompatibleAdaptersError
        If the fused parameters hold fewer experts than another adapter has.
    """
    found = [_layout_of(adapter) for adapter in adapters]
    layouts = [layout for layout in found if layout is not None]
    shapes = {
        (layout.fused, layout.parameters, layout.parts, layout.old, *sorted(possible_widths(layout.adapter)))
        for layout in layouts
    }
    if not any(layout.fused for layout in layouts) or len(shapes) < 2:
        return list(adapters), []
    told = _transposed(layouts)
    if told is None:
        return list(adapters), []
    layouts = [layout._replace(transposed=turned) for layout, turned in zip(layouts, told, strict=True)]
    interleaved = _interleaved(layouts)
    target = _target(layouts)
    if target is None:
        return list(adapters), []
    said: list[str] = []
    changed = _made(layouts, target, interleaved, said)
    made = {id(layout.adapter): adapter for layout, adapter in zip(layouts, changed, strict=True)}
    linear = any(not layout.fused for layout in layouts)
    if said and linear and any("gate_up_proj" in layout.parameters for layout in (*layouts, target)):
        said.append(f"gate_up_proj holds {'outputs of gate and up in turns' if interleaved else 'gate above up'}")
    return [made.get(id(adapter), adapter) for adapter in adapters], said


def _layout_of(adapter: Adapter) -> _Layout | None:
    stacks = stacks_of(adapter)
    if stacks:
        kinds = {frozenset(next(iter(s.infos.values())).kind.parameters) for s in stacks.values()}
        if len(kinds) > 1:
            return None
        parameters = kinds.pop()
        held = frozenset(part for name in parameters for part in FUSED[name])
        old = any(_OLD in layer for layer in stacks)
        return _Layout(adapter, True, max(s.experts for s in stacks.values()), parameters, (), held, old)
    modules = list(per_expert(adapter))
    parts = {names for *_, names in modules}
    if len(parts) != 1:
        return None
    experts = 1 + max(int(number) for _, _, number, _, _ in modules)
    held = frozenset(part for *_, part, _ in modules)
    old = any(_OLD in layer for _, layer, *_ in modules)
    return _Layout(adapter, False, experts, frozenset(), tuple(parts.pop()), held, old)


def _canonical(layer: str) -> str:
    return layer.replace(_OLD, _NEW)


def _transposed(layouts: Sequence[_Layout]) -> list[bool] | None:
    """Return for each adapter whether its updates are transposed; None if the adapters are not of one model."""
    options = [_options(layout) for layout in layouts]
    certain: dict[str, set[Widths]] = {}
    for choices in options:
        for layer, pair in next(iter(choices.values())).items() if len(choices) == 1 else ():
            certain.setdefault(layer, set()).add(pair)
    anywhere = set().union(*certain.values()) if certain else set()
    told = []
    for layout, choices in zip(layouts, options, strict=True):
        fitting = [
            transposed
            for transposed, widths in choices.items()
            if all(pair in certain.get(layer, anywhere) for layer, pair in widths.items())
        ]
        if not fitting:
            return None
        if len(fitting) > 1:
            _refuse_square(layout)
        told.append(fitting[0])
    return told if all(len(pairs) == 1 for pairs in certain.values()) else None


def _options(layout: _Layout) -> dict[bool, dict[str, Widths]]:
    if layout.fused:
        return {
            turned: {_canonical(layer): pair for layer, pair in widths.items()}
            for turned, widths in possible_widths(layout.adapter).items()
        }
    found: dict[str, set[Widths]] = {}
    for module, layer, _, part, _ in per_expert(layout.adapter):
        info = layout.adapter.infos[module]
        pair = (info.d_out, info.d_in) if part == 2 else (info.d_in, info.d_out)
        found.setdefault(_canonical(layer), set()).add(pair)
    if any(len(pairs) > 1 for pairs in found.values()):
        return {}
    return {False: {layer: next(iter(pairs)) for layer, pairs in found.items()}}


def _refuse_square(layout: _Layout) -> None:
    layer, stacks = next(iter(stacks_of(layout.adapter).items()))
    parameter, info = next(iter(stacks.infos.items()))
    raise UnsupportedAdapterError(
        f"{parameter!r} of {layer!r} has {info.d_out} x {info.d_in} updates, and its widths do not tell which side is "
        "the input",
        adapters=[layout.adapter.name],
        module=layer,
        expected="(outputs, inputs), or (inputs, outputs), as PEFT writes it for models that store their experts so",
        remedy=(
            "say which in Python: lorakit.split_experts(adapter, transposed=False) or transposed=True, and merge what "
            "it returns"
        ),
    )


def _interleaved(layouts: Sequence[_Layout]) -> bool:
    """Whether gate and up alternate in the fused parameter: of gpt-oss alone."""
    bases = [layout.adapter.provenance.base_model for layout in layouts if layout.adapter.provenance.base_model]
    if any(_INTERLEAVED.search(base) for base in bases):
        return True
    named = any(not layout.fused and layout.parts != PARTS[0] for layout in layouts)
    gated = any("gate_up_proj" in layout.parameters for layout in layouts)
    linear = any(not layout.fused for layout in layouts)  # otherwise nothing depends on the order
    if linear and gated and not bases and not named:
        fused = next(layout.adapter for layout in layouts if "gate_up_proj" in layout.parameters)
        layer = next(iter(stacks_of(fused)))
        raise UnsupportedAdapterError(
            f"'gate_up_proj' of {layer!r} holds the outputs of gate and up in an order that the model gives, and no "
            "adapter names its base model",
            adapters=[fused.name],
            module=layer,
            expected="those of gate first, as in most models, or alternating, as in gpt-oss",
            remedy=(
                "write base_model_name_or_path into adapter_config.json, or split it in Python: "
                "lorakit.split_experts(adapter, interleaved=False)"
            ),
        )
    return False


def _target(layouts: Sequence[_Layout]) -> _Layout | None:
    """Return the layout that all adapters get: the first's, its fused parameters those that any of them needs.

    None if the adapters are fused in ways that no model has at once.
    """
    first = layouts[0]
    apart = next((layout for layout in layouts if not layout.fused), None)
    if not first.fused:
        return first
    parameters = frozenset[str]().union(*(layout.parameters for layout in layouts))
    held = frozenset[int]().union(*(layout.held for layout in layouts))
    if not {"gate_up_proj", "up_proj"} & parameters and 1 in held and 0 in held:
        parameters |= {"gate_up_proj"}
    if 2 in held:
        parameters |= {"down_proj"}
    able = frozenset(part for name in parameters for part in FUSED[name])
    fits = held <= able and not {"gate_up_proj", "up_proj"} <= parameters
    experts = max(layout.experts for layout in layouts if layout.fused)
    if not fits:
        return apart
    return first._replace(parameters=parameters, experts=experts)


def _made(layouts: Sequence[_Layout], target: _Layout, interleaved: bool, said: list[str]) -> Iterator[Adapter]:
    parameters = [name for name in FUSED if name in target.parameters]
    single = {_canonical(name) for layout in layouts for name in _single(layout.adapter)}
    for layout in layouts:
        adapter = layout.adapter
        same = (layout.parameters, layout.transposed) == (target.parameters, target.transposed)
        if layout.experts > target.experts and target.fused:
            raise IncompatibleAdaptersError(
                f"has an expert {layout.experts - 1}, and {target.adapter.name!r} is for {target.experts} experts",
                adapters=[adapter.name, target.adapter.name],
                expected=f"at most {target.experts - 1}",
                remedy="merge adapters of one base model",
            )
        changes = not same if layout.fused and target.fused else layout.fused != target.fused
        if changes and layout.fused:
            parts = PARTS[0] if target.fused else target.parts
            adapter = split_experts(adapter, parts=parts, interleaved=interleaved, transposed=layout.transposed)
        if changes and target.fused:
            adapter = join_experts(
                adapter,
                target.experts,
                parameters=parameters,
                interleaved=interleaved,
                transposed=target.transposed,
                weights=[module for module in adapter if _canonical(module) in single],
            )
        named = _named(adapter, target)
        if adapter is layout.adapter:
            if named is not adapter:
                said.append(f"{_count(adapter)} modules of {adapter.name!r} were renamed, to {_example(named)}")
            yield named
            continue
        what = "split into" if not target.fused else "joined into" if not layout.fused else "arranged as"
        holder = " and ".join(parameters) if target.fused else f"{', '.join(target.parts)} of each expert"
        said.append(
            f"{_count(layout.adapter)} modules of {adapter.name!r} were {what} {_count(named)}, of {holder}, such as "
            f"{_example(named)}"
        )
        yield named


def _example(adapter: Adapter) -> str:
    fused = (module for module, info in adapter.infos.items() if info.kind.name == "expert")
    return repr(next(fused, None) or next(per_expert(adapter))[0])


def _count(adapter: Adapter) -> int:
    """Return how many modules of an adapter are of experts."""
    fused = sum(info.kind.name == "expert" for info in adapter.infos.values())
    return fused or sum(1 for _ in per_expert(adapter))


def _single(adapter: Adapter) -> list[str]:
    """Return the layers whose weight PEFT adapts as a parameter of one expert."""
    return [module.removesuffix(".0") for module, info in adapter.infos.items() if is_single(info)]


def _named(adapter: Adapter, target: _Layout) -> Adapter:
    """Return an adapter whose modules are called as the target's are, Mixtral's layers having two names."""
    old, new = (_NEW, _OLD) if target.old else (_OLD, _NEW)
    modules = {module: (layer, number, part) for module, layer, number, part, _ in per_expert(adapter)}
    layers = {layer for layer, *_ in modules.values()} | set(stacks_of(adapter))
    around = tuple(layer.removesuffix("experts") for layer in layers if layer.endswith(f"{old}experts"))
    names = {}
    for module in adapter:
        name = module
        if module in modules:
            layer, number, part = modules[module]
            name = f"{layer}.{number}.{target.parts[part]}"
        if around and module.startswith(around):
            name = name.replace(old, new, 1)
        if name != module:
            names[module] = name
    if not names:
        return adapter
    renamed = adapter.rename_modules(lambda module: names.get(module, module))
    return renamed.with_provenance(conversions=(*adapter.provenance.conversions, {"names": names}))
