"""The tensors of fused experts: one parameter for all, or, in files, a matrix for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import NamedTuple

from ..adapters import Adapter, ModuleInfo
from ..files.checkpoint import Checkpoint
from ..io.names.in_checkpoints import layer_of

Place = tuple[str, bool, int, tuple[int, int] | None]  # the fields of a Target

# transformers fuses on loading what files hold apart: the rows of the first, then those of the second
_PARTS = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
_IN_ORDER = ("gate_up_proj", "down_proj")  # of the parameters of a module, where shapes do not tell them apart
_TOLD = "gpt_oss"  # the one family whose modules tell PEFT that they store (in, out)


class Experts(NamedTuple):
    """Where experts are added, and why some cannot be."""

    targets: dict[str, list[Place]]
    differing: dict[str, str]


def find_experts(adapter: Adapter, named: Mapping[str, str], checkpoint: Checkpoint) -> Experts:
    """Find the tensors of an adapter's experts.

    An adapter's file does not say which parameter of a module a stack of experts is for; it gives their names, and the
    shapes tell. Which side of a tensor is the input follows from the widths of the factors.

    Parameters
    ----------
    adapter : Adapter
        With or without experts.
    named : mapping of str to str
        The checkpoint's names for its modules.
    checkpoint : Checkpoint
        The base.
    """
    stacks: dict[str, dict[str, dict[int, str]]] = {}
    for module, info in adapter.infos.items():
        if info.kind.name == "expert":
            stack, _, number = module.rpartition(".")
            layer = layer_of(named[module], "expert")
            stacks.setdefault(layer, {}).setdefault(stack, {})[int(number)] = module
    found = Experts({}, {})
    for layer, members in stacks.items():
        _place(layer, members, adapter, checkpoint, found)
    return found


def _place(
    layer: str, stacks: Mapping[str, Mapping[int, str]], adapter: Adapter, checkpoint: Checkpoint, found: Experts
) -> None:
    infos = {stack: adapter.infos[next(iter(members.values()))] for stack, members in stacks.items()}
    parameters = next(iter(infos.values())).kind.parameters
    shapes = {p: shape for p in parameters if (shape := _shape_of(layer, p, checkpoint)) is not None}
    if len(shapes) < len(parameters):
        return  # they are missing
    # The outermost wrapper, whose name is the shortest, is of the last parameter.
    ordered = sorted(stacks, key=len, reverse=True)
    fitting = [
        choice
        for choice in permutations(parameters, len(ordered))
        if all(_turned(infos[s], shapes[p]) is not None for s, p in zip(ordered, choice, strict=True))
    ]
    in_order = tuple(p for p in _IN_ORDER if p in parameters)
    choice = fitting[0] if len(fitting) == 1 else in_order if in_order in fitting else None
    if choice is None:
        why = (
            f"its experts ({' and '.join(parameters)}) have the shapes {', '.join(str(s) for s in shapes.values())} in "
            "the base, and the adapter is for others"
            if not fitting
            else f"the shapes do not tell which of {' and '.join(parameters)} it is for; merge it into the live model"
        )
        found.differing.update({m: why for members in stacks.values() for m in members.values()})
        return
    ways = {s: _turned(infos[s], shapes[p]) for s, p in zip(ordered, choice, strict=True)}
    told = {way for way in ways.values() if way is not Ellipsis}
    for stack, parameter in zip(ordered, choice, strict=True):
        way = ways[stack]
        if way is Ellipsis:
            way = True in told if told else _told(checkpoint)
        if way is None:
            why = (
                f"{parameter!r} is square, and nothing tells which side is the input; pass the folder with config.json"
            )
            found.differing.update(dict.fromkeys(stacks[stack].values(), why))
            continue
        for number, module in stacks[stack].items():
            found.targets[module] = list(_tensors(layer, parameter, number, shapes[parameter], bool(way), checkpoint))


def _told(checkpoint: Checkpoint) -> bool | None:
    kind = checkpoint.config.get("model_type")
    return None if kind is None else kind == _TOLD


def _turned(info: ModuleInfo, shape: tuple[int, ...]) -> object:
    """Return whether the parameter holds (in, out); Ellipsis if both would do, None if neither does."""
    if shape[0] != info.kind.experts:
        return None
    straight, turned = shape[1:] == (info.d_out, info.d_in), shape[1:] == (info.d_in, info.d_out)
    if straight and turned:
        return ... if shape[0] > 1 else False
    return False if straight else True if turned and shape[0] > 1 else None


def _shape_of(layer: str, parameter: str, checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """Return the shape (experts, rows, columns) of a parameter, be it stored as one tensor or as many."""
    whole = checkpoint.infos.get(f"{layer}.{parameter}")
    if whole is not None:
        return (1, *whole.shape) if len(whole.shape) == 2 else whole.shape
    parts = _apart(layer, parameter, 0, checkpoint)
    if parts is None:
        return None
    experts = 0
    while f"{layer}.{experts}.{parts[0].rpartition(f'{layer}.0.')[2]}" in checkpoint:
        experts += 1
    shapes = [checkpoint.infos[part].shape for part in parts]
    return (experts, sum(shape[0] for shape in shapes), shapes[0][1])


def _apart(layer: str, parameter: str, number: int, checkpoint: Checkpoint) -> list[str] | None:
    """Return the tensors that one expert's part of a parameter is stored in."""
    for names in _PARTS.get(parameter, ()):
        tensors = [f"{layer}.{number}.{name}.weight" for name in names]
        if all(tensor in checkpoint for tensor in tensors):
            return tensors
    return None


def _tensors(
    layer: str, parameter: str, number: int, shape: tuple[int, ...], turned: bool, checkpoint: Checkpoint
) -> Iterator[Place]:
    whole = f"{layer}.{parameter}"
    if whole in checkpoint:
        yield whole, turned, number * shape[1], None
        return
    first = 0
    for tensor in _apart(layer, parameter, number, checkpoint) or ():
        rows = checkpoint.infos[tensor].shape[0]
        yield tensor, turned, 0, (first, first + rows)
        first += rows
