"""Adapters of experts in two layouts: one fused parameter for all experts of a layer, or a linear module for each.

transformers 5 holds the experts of a layer in two parameters, ``mlp.experts.gate_up_proj`` and ``down_proj``, and PEFT
adapts these as a whole (``target_parameters``). Before, and in other programs, every expert was three linear modules:
``mlp.experts.3.gate_proj``, ``up_proj`` and ``down_proj``, or ``w1``, ``w3`` and ``w2``. The update of ``gate_up_proj``
is those of ``gate_proj`` and ``up_proj`` one above the other, so that both ways are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ._experts import (
    FUSED,
    NESTED,
    PARTS,
    Stacks,
    View,
    is_single,
    owner,
    per_expert,
    possible_widths,
    stacks_of,
    viewed,
)
from .adapters import Adapter, ModuleKind
from .exceptions import IncompatibleAdaptersError, LorakitError, UnsupportedAdapterError
from .pieces import Piece, join_modules, layers_of_differences, put_together

__all__ = ["join_experts", "split_experts"]


def split_experts(
    adapter: Adapter,
    *,
    parts: Sequence[str] = PARTS[0],
    interleaved: bool = False,
    transposed: bool | None = None,
) -> Adapter:
    """Return an adapter in which fused experts are linear modules, exactly and lazily.

    Each expert of ``gate_up_proj`` becomes two modules that share A, and that of ``down_proj`` one. What
    :func:`join_experts` joined comes back with the ranks that it had.

    Parameters
    ----------
    adapter : Adapter
        The adapter. The fused modules are read once, to know the ranks of their parts, and not kept.
    parts : sequence of three str, default=('gate_proj', 'up_proj', 'down_proj')
        What the linear modules of an expert are called: its gate, its projection up, its projection down. Mixtral's
        are ('w1', 'w3', 'w2').
    interleaved : bool, default=False
        Whether the outputs of gate and up alternate in ``gate_up_proj``, as GPT-OSS has them. Every other model of
        transformers has those of the gate first.
    transposed : bool, optional
        Whether A has the width of the outputs, as PEFT writes it for a model that stores (in, out) and does not say so.
        Defaults to what the widths of the two parameters show.

    Returns
    -------
    Adapter
        The other modules are as they were.

    Raises
    ------
    UnsupportedAdapterError
        If the widths do not show what is not given.
    IncompatibleAdaptersError
        If they contradict it, or two modules would have one name.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, join_experts, split_experts
    >>> from lorakit.adapters import ModuleKind
    >>> kind = ModuleKind("expert", experts=2, parameters=("gate_up_proj",))
    >>> expert = LoraFactors(np.ones((2, 6)), np.ones((8, 2)))
    >>> names = ["mlp.experts.0", "mlp.experts.1"]
    >>> fused = Adapter(dict.fromkeys(names, expert), kinds=dict.fromkeys(names, kind))
    >>> split = split_experts(fused, transposed=False)
    >>> list(split)
    ['mlp.experts.0.gate_proj', 'mlp.experts.0.up_proj', 'mlp.experts.1.gate_proj', 'mlp.experts.1.up_proj']
    >>> join_experts(split, 2, parameters=["gate_up_proj"])
    Adapter('adapter', modules=2, rank=2, dtype=float64)
    """
    names = _checked_parts(parts)
    layers = stacks_of(adapter)
    if not layers:
        return adapter
    turned = _told(adapter, transposed, layers)
    order = "apart" if interleaved else ""
    straight: dict[str, View] = {}
    plan: list[tuple[str, tuple[Piece, ...]]] = []
    for module, info in adapter.infos.items():
        stack, _, number = module.rpartition(".")
        layer = layers.get(owner(stack)) if info.kind.name == "expert" else None
        parameter = None if layer is None else next((p for p, name in layer.names.items() if name == stack), None)
        if parameter is None:
            single = is_single(info)
            straight[module] = View(module, ModuleKind() if single else info.kind)
            plan.append((stack if single else module, (Piece(module, 0, info.d_out),)))
            continue
        held = FUSED[parameter]
        straight[module] = View(module, ModuleKind(), turned, order if len(held) > 1 else "")
        rows = (info.d_in if turned else info.d_out) // len(held)
        for i, part in enumerate(held):
            name = f"{owner(stack)}.{number}.{names[part]}"
            plan.append((name, (Piece(module, i * rows, (i + 1) * rows),)))
    plan += [(layer, (Piece(layer, 0, d_out),)) for layer, d_out in layers_of_differences(adapter).items()]
    done = {"parts": list(names), "interleaved": interleaved, "transposed": turned}
    made = put_together(viewed(adapter, straight), _distinct(adapter, plan))
    return _said(made, adapter, {"split_experts": done})


def join_experts(
    adapter: Adapter,
    experts: int,
    *,
    parameters: Sequence[str] = ("gate_up_proj", "down_proj"),
    interleaved: bool = False,
    transposed: bool = False,
    weights: Sequence[str] = (),
) -> Adapter:
    """Return an adapter in which the linear modules of experts are fused, exactly and lazily: the reverse of splitting.

    Parameters
    ----------
    adapter : Adapter
        The adapter. Modules that are joined are read once, to know the rank of what they make, and not kept.
    experts : int
        How many experts a layer has. Those that the adapter lacks count as zero updates.
    parameters : sequence of str, default=('gate_up_proj', 'down_proj')
        The parameters that are adapted together: these, or one of them, or 'up_proj' in place of the first for experts
        without a gate.
    interleaved, transposed : bool, default=False
        As in :func:`split_experts`.
    weights : sequence of str, default=()
        Linear modules that the model holds as a bare ``weight``, so that PEFT adapts this too by ``target_parameters``:
        Mixtral's router ``mlp.gate``.

    Returns
    -------
    Adapter
        The other modules are as they were.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapter has experts beyond that number, modules that none of the parameters holds, or linear modules of
        one expert that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, join_experts
    >>> up, down = LoraFactors(np.ones((2, 6)), np.ones((4, 2))), LoraFactors(np.ones((2, 4)), np.ones((6, 2)))
    >>> adapter = Adapter({"mlp.experts.1.up_proj": up, "mlp.experts.1.down_proj": down})
    >>> {name: factors.d_out for name, factors in join_experts(adapter, 2).items()}
    {'mlp.experts.base_layer.1': 8, 'mlp.experts.1': 6}
    """
    outwards = [name for name in FUSED if name in parameters]
    if len(outwards) != len(set(parameters)) or not outwards or {"gate_up_proj", "up_proj"} <= set(outwards):
        raise ValueError(
            f"parameters must be of 'gate_up_proj' (or 'up_proj') and 'down_proj', got {list(parameters)!r}"
        )
    kind = ModuleKind("expert", experts=experts, parameters=tuple(sorted(outwards)))
    sizes: dict[str, dict[str, int]] = {}
    for module, layer, number, part, spelled in per_expert(adapter):
        parameter = next((p for p in outwards if part in FUSED[p]), None)
        if parameter is None or int(number) >= experts:
            raise IncompatibleAdaptersError(
                f"module {module!r} is in none of {' and '.join(outwards)} of {experts} experts",
                adapters=[adapter.name],
                module=module,
                remedy="give the parameters and the number of experts of the base model",
            )
        name = f"{layer}{NESTED * (len(outwards) - 1 - outwards.index(parameter))}.{number}"
        held = sizes.setdefault(name, {f"{layer}.{number}.{spelled[p]}": 0 for p in FUSED[parameter]})
        rows = adapter.infos[module].d_out
        for sibling in held:  # a part that is not adapted has as many outputs as the other
            held[sibling] = rows if sibling == module or not held[sibling] else held[sibling]
    if not sizes:
        return adapter
    _check_alike(adapter, sizes)
    joined = join_modules(adapter, sizes)
    order = "alternate" if interleaved else ""
    bare = ModuleKind("expert", experts=1, parameters=("weight",))
    views = {}
    for module, info in joined.infos.items():
        if module in sizes:
            views[module] = View(module, kind, transposed, order if len(sizes[module]) > 1 else "")
        elif module in weights:
            views[f"{module}.0"] = View(module, bare)
        else:
            views[module] = View(module, info.kind)
    done: dict[str, object] = {"experts": experts, "parameters": list(outwards)}
    done |= {"interleaved": interleaved, "transposed": transposed}
    if weights:
        done["weights"] = list(weights)
    return _said(viewed(joined, views), adapter, {"join_experts": done})


def _check_alike(adapter: Adapter, sizes: Mapping[str, Mapping[str, int]]) -> None:
    for name, held in sizes.items():
        if len(set(held.values())) > 1:
            seen = ", ".join(f"{part!r}: {rows}" for part, rows in held.items())
            raise IncompatibleAdaptersError(
                f"the parts of {name!r} have different numbers of outputs ({seen})",
                adapters=[adapter.name],
                module=name,
                expected="one number",
                remedy="gate and up of an expert have the same width; check the names",
            )


def _checked_parts(parts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(parts, str) or len(parts) != 3 or len(set(parts)) != 3:
        raise ValueError(f"parts must be three names, of gate, up and down, got {parts!r}")
    return tuple(parts)


def _told(adapter: Adapter, transposed: bool | None, layers: Mapping[str, Stacks]) -> bool:
    possible = possible_widths(adapter)
    if transposed is None and len(possible) == 1:
        return next(iter(possible))
    if transposed is not None and transposed in possible:
        return transposed
    layer, stacks = next(iter(layers.items()))
    seen = ", ".join(f"{parameter} {info.d_out} x {info.d_in}" for parameter, info in stacks.infos.items())
    error: type[LorakitError] = UnsupportedAdapterError if possible else IncompatibleAdaptersError
    raise error(
        f"the experts of {layer!r} have updates of the shapes {seen}",
        adapters=[adapter.name],
        module=layer,
        expected="(outputs, inputs), or, if transposed, (inputs, outputs)" if possible else "shapes of one model's",
        remedy="say which of the two it is by the argument transposed"
        if possible
        else "is it an adapter of another model?",
    )


def _distinct(adapter: Adapter, plan: Sequence[tuple[str, tuple[Piece, ...]]]) -> dict[str, tuple[Piece, ...]]:
    made = dict(plan)
    if len(made) != len(plan):
        twice = next(name for name, count in Counter(name for name, _ in plan).items() if count > 1)
        raise IncompatibleAdaptersError(
            f"holds {twice!r} twice, fused and as a module of its own",
            adapters=[adapter.name],
            module=twice,
            remedy="leave one of them out with adapter.select",
        )
    return made


def _said(made: Adapter, given: Adapter, done: dict[str, object]) -> Adapter:
    # how PEFT's config of the old layout spelled its parameters says nothing of the new one
    return made.with_provenance(conversions=(*given.provenance.conversions, done), target_parameters={})
