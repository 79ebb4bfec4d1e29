"""What is known of the experts in an adapter, and their modules seen as modules of other kinds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .adapters import Adapter, ModuleInfo, ModuleKind, ModuleReader
from .factors import LoraFactors
from .readers import narrowed, read_in

__all__ = ["FUSED", "NESTED", "PARTS", "ExpertReader", "Stacks", "View", "Widths", "is_single", "owner", "per_expert",
           "possible_widths", "stacks_of", "viewed"]  # fmt: skip

# The parameters that transformers fuses experts into, in the order in which a model has them, and what each holds:
# the outputs of the first part, then those of the second. Experts without a gate have up_proj alone.
FUSED = {"gate_up_proj": (0, 1), "up_proj": (1,), "down_proj": (2,)}
# What the linear modules are called: gate, up, down
PARTS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("fc1", "fc3", "fc2"))
_PER_EXPERT = re.compile(r"(?P<layer>(?:.*\.)?experts)\.(?P<number>\d+)\.(?P<part>\w+)")
NESTED = ".base_layer"

Widths = tuple[int, int]  # of the model, and of one expert


class Stacks(NamedTuple):
    """The fused experts of one layer.

    Parameters
    ----------
    experts : int
        How many.
    names : dict of str to str
        The stack of each parameter, as modules are named: ``layer`` or ``layer.base_layer``.
    infos : dict of str to ModuleInfo
        What is known of one of its experts, by parameter.
    """

    experts: int
    names: dict[str, str]
    infos: dict[str, ModuleInfo]


def stacks_of(adapter: Adapter) -> dict[str, Stacks]:
    """Return the fused experts of an adapter by the name of their layer.

    PEFT wraps the parameters of a module one in the other, the last one in the model's order outermost.
    """
    found: dict[str, dict[str, ModuleInfo]] = {}
    for module, info in adapter.infos.items():
        parameters = info.kind.parameters
        if info.kind.name == "expert" and parameters and set(parameters) <= set(FUSED):
            stack = module.rpartition(".")[0]
            found.setdefault(owner(stack), {}).setdefault(stack, info)
    layers = {}
    for layer, infos in found.items():
        kind = next(iter(infos.values())).kind
        outwards = [name for name in FUSED if name in kind.parameters]
        names = {p: layer + NESTED * (len(outwards) - 1 - i) for i, p in enumerate(outwards)}
        kept = {p: name for p, name in names.items() if name in infos}
        layers[layer] = Stacks(kind.experts, kept, {p: infos[name] for p, name in kept.items()})
    return layers


def is_single(info: ModuleInfo) -> bool:
    """Whether PEFT adapts the weight of a layer as a parameter, as if it held one expert: Mixtral's router."""
    return info.kind.name == "expert" and info.kind.experts == 1 and info.kind.parameters == ("weight",)


def owner(stack: str) -> str:
    while stack.endswith(NESTED):
        stack = stack.removesuffix(NESTED)
    return stack


def possible_widths(adapter: Adapter) -> dict[bool, dict[str, Widths]]:
    """Return the widths of an adapter's fused experts by layer, if they are stored straight, and if transposed.

    PEFT takes the first width of a parameter for the outputs unless the model says otherwise, so that the factors for a
    model that stores (in, out) can be the other way round: A then has the width of the outputs. Only a choice that all
    parameters of a layer agree on is possible.
    """
    found: dict[bool, dict[str, Widths]] = {}
    for transposed in (False, True):
        widths = {layer: _widths(stacks, transposed=transposed) for layer, stacks in stacks_of(adapter).items()}
        known = {layer: pair for layer, pair in widths.items() if pair is not None}
        if len(known) == len(widths):
            found[transposed] = known
    return found


def _widths(stacks: Stacks, *, transposed: bool) -> Widths | None:
    found = set()
    for parameter, info in stacks.infos.items():
        d_in, d_out = (info.d_out, info.d_in) if transposed else (info.d_in, info.d_out)
        if parameter == "gate_up_proj":
            if d_out % 2:
                return None
            d_out //= 2
        found.add((d_out, d_in) if parameter == "down_proj" else (d_in, d_out))
    return found.pop() if len(found) == 1 else None


def per_expert(adapter: Adapter) -> Iterator[tuple[str, str, str, int, Sequence[str]]]:
    """Yield the linear modules of experts: name, layer, number, which part it is, and what the parts are called."""
    for module, info in adapter.infos.items():
        found = _PER_EXPERT.fullmatch(module) if info.kind.name == "linear" else None
        names = next((names for names in PARTS if found is not None and found["part"] in names), None)
        if found is not None and names is not None:
            yield module, found["layer"], found["number"], names.index(found["part"]), names


class View(NamedTuple):
    """A module of another reader as one of another kind.

    Parameters
    ----------
    module : str
        Its name there.
    kind : ModuleKind
        What it is here.
    transposed : bool
        Whether its update is the transpose.
    order : {'', 'apart', 'alternate'}
        What is done to its outputs: nothing, those that alternate are taken apart, the halves are made to alternate.
    """

    module: str
    kind: ModuleKind
    transposed: bool = False
    order: str = ""


def viewed(adapter: Adapter, views: Mapping[str, View]) -> Adapter:
    reader = ExpertReader(adapter.reader, dict(views))
    provenance = adapter.provenance_where(lambda layer: layer)
    return Adapter.from_reader(reader, name=adapter.name, provenance=provenance)


class ExpertReader:
    """Modules of another reader as modules of other kinds, their outputs reordered where that is needed.

    Parameters
    ----------
    reader : ModuleReader
        The other reader.
    views : dict of str to View
        What each module is there.
    """

    def __init__(self, reader: ModuleReader, views: dict[str, View]) -> None:
        self.reader, self.views = reader, views
        self.infos = {name: _info(reader.infos[view.module], view) for name, view in views.items()}
        self.dtype = reader.dtype
        self.checked = bool(getattr(reader, "checked", False))

    def read(self, module: str) -> LoraFactors:
        """Read one module."""
        view = self.views[module]
        return _seen(self.reader.read(view.module), view)

    def read_in(self, module: str, dtype: torch.dtype) -> LoraFactors:
        """Read one module in this dtype or a better one."""
        view = self.views[module]
        return _seen(read_in(self.reader, view.module, dtype), view)

    def scale(self, module: str) -> float | None:
        """Return the factor that the file gives ``B @ A``; None if there is none."""
        asked = getattr(self.reader, "scale", None)
        return None if asked is None else asked(self.views[module].module)

    def only(self, modules: Sequence[str]) -> ExpertReader:
        """Return a reader of these modules alone."""
        views = {module: self.views[module] for module in modules}
        return ExpertReader(narrowed(self.reader, [view.module for view in views.values()]), views)


def _info(info: ModuleInfo, view: View) -> ModuleInfo:
    d_in, d_out = (info.d_out, info.d_in) if view.transposed else (info.d_in, info.d_out)
    return ModuleInfo(info.rank, d_in, d_out, view.kind)


def _seen(factors: LoraFactors, view: View) -> LoraFactors:
    a, b = factors
    # "apart" begins with outputs as the file has them, "alternate" ends with them
    if view.transposed and view.order != "alternate":
        a, b = b.T, a.T
    if view.order:
        b = _reordered(b, apart=view.order == "apart")
    if view.transposed and view.order == "alternate":
        a, b = b.T, a.T
    return LoraFactors(a, b)


def _reordered(b: Tensor, *, apart: bool) -> Tensor:
    """Return rows that alternate as two halves, or two halves as rows that alternate."""
    half, rank = len(b) // 2, b.shape[1]
    shape = (half, 2, rank) if apart else (2, half, rank)
    return b.reshape(shape).transpose(0, 1).reshape(2 * half, rank)
