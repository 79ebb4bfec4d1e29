"""Adapted parameters that hold the weights of many experts: PEFT's ``target_parameters``.

PEFT keeps one A and one B for all E experts of a parameter: A (E * r, in), whose rows e * r to (e + 1) * r are expert
e's, and B (out, r * E), whose columns e, e + E, e + 2 E, ... are. Here each expert is a module of its own, named by the
module that holds the parameter and its number: ``mlp.experts.3``. Where several parameters of one module are adapted,
PEFT wraps one in the other: the last one in the model's order has the module's own name, the one before it that name
and ``.base_layer``, and so on. The file does not say which parameter is which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ...._few import few
from ....adapters import ModuleInfo, ModuleKind
from ....exceptions import CorruptFileError, OutputError, UnsupportedAdapterError
from .._factors import MOST_MODULES
from .._pairs import Pair
from .config import PeftConfig

_NESTED = ".base_layer"
_MOST_EXPERTS = 10_000  # of a parameter; real models have hundreds


class Stack(NamedTuple):
    """One adapted parameter that holds all of its module's experts.

    Parameters
    ----------
    experts : int
        How many.
    rank : int
        Of each of them.
    scale : float
        The factor on their ``B @ A``.
    parameters : tuple of str
        Names of all parameters that are adapted in its module, sorted.
    """

    experts: int
    rank: int
    scale: float
    parameters: tuple[str, ...]

    def info(self, stacked: ModuleInfo) -> ModuleInfo:
        """Return what is known of one expert, from what is known of the stack."""
        kind = ModuleKind("expert", experts=self.experts, parameters=self.parameters)
        return ModuleInfo(self.rank, stacked.d_in, stacked.d_out, kind)


def owner(module: str) -> str:
    """Return the module of the model that holds a parameter, from the name under which PEFT stores its factors."""
    while module.endswith(_NESTED):
        module = module.removesuffix(_NESTED)
    return module


def find_stacks(path: Path, config: PeftConfig, modules: Mapping[str, Pair]) -> dict[str, Stack]:
    """Find the modules of a file that hold stacked experts.

    Parameters
    ----------
    path : Path
        The weights, for messages.
    config : PeftConfig
        Its ``target_parameters`` and patterns, which PEFT matches against the parameter's full name.
    modules : mapping of str to Pair
        All pairs of factors in the file.

    Returns
    -------
    dict of str to Stack
        By the name in the file.

    Raises
    ------
    CorruptFileError
        If the shapes contradict the config.
    UnsupportedAdapterError
        If it cannot be told how the parameters are stacked or scaled.
    """
    by_owner: dict[str, list[str]] = {}
    for module in modules:
        by_owner.setdefault(owner(module), []).append(module)
    targets = _Targets(config.target_parameters)
    found: dict[str, Stack] = {}
    for name, stacked in by_owner.items():
        nested = len(stacked) > 1 or stacked[0] != name
        # A target without a dot could be of any module, so targets that name the end of the module go first.
        certain = targets.certain(name)
        if not nested and not certain and targets.bare and modules[name].info.rank == config.rank(name):
            continue  # an ordinary module
        if not certain and not targets.bare:
            if nested or (not config.path.exists() and name.rpartition(".")[2] == "experts"):
                raise _needs_config(path, config, name)
            continue
        meant = certain if len(certain) >= len(stacked) else certain | targets.bare
        if len(meant) != len(stacked):
            named = sorted(meant)
            raise CorruptFileError(
                f"module {name!r} has factors for {len(stacked)} parameters, {config.path.name} names "
                f"{few(named, 5)} there (target_parameters)",
                path=path,
                module=name,
                remedy="save the adapter again, or copy the matching file",
            )
        infos = {module: modules[module].info for module in stacked}
        found.update(_stacks(path, config, name, infos, tuple(sorted(meant))))
    if sum(stack.experts for stack in found.values()) > MOST_MODULES:
        raise CorruptFileError(
            f"has more than {MOST_MODULES} experts by the ranks that {config.path.name} gives",
            path=path,
            remedy="correct r, or copy the matching file",
        )
    return found


def count_targets(config: PeftConfig, stacks: Mapping[str, Stack]) -> dict[str, int]:
    """Return in how many modules each of the config's ``target_parameters`` was found."""
    names = {f"{owner(module)}.{parameter}" for module, stack in stacks.items() for parameter in stack.parameters}
    return count_matches(config.target_parameters, names)


def count_matches(targets: tuple[str, ...], names: set[str]) -> dict[str, int]:
    """Return how many of these full names of parameters each target means."""
    counts = dict.fromkeys(targets, 0)
    for name in names:
        for end in _ends(name):
            if end in counts:
                counts[end] += 1
    return counts


def _ends(name: str) -> Iterator[str]:
    """Yield what a target may be to mean a name, by PEFT's rule: the name, and what follows each of its dots."""
    yield name
    for place, character in enumerate(name):
        if character == ".":
            yield name[place + 1 :]


class _Targets:
    """The config's ``target_parameters``, found by the end of a module's path.

    Parameters
    ----------
    targets : tuple of str
        As the config gives them.
    """

    def __init__(self, targets: tuple[str, ...]) -> None:
        self.bare = frozenset(target for target in targets if "." not in target)
        self._by_module: dict[str, set[str]] = {}
        for target in targets:
            module, dot, parameter = target.rpartition(".")
            if dot:
                self._by_module.setdefault(module, set()).add(parameter)

    def certain(self, module: str) -> set[str]:
        """Return the parameters of a module that targets mean which also name the end of the module's path."""
        found = [self._by_module[end] for end in _ends(module) if end in self._by_module]
        return found[0] if len(found) == 1 else set().union(*found)


def _stacks(
    path: Path, config: PeftConfig, module: str, infos: Mapping[str, ModuleInfo], parameters: tuple[str, ...]
) -> dict[str, Stack]:
    kinds = []  # (rank, scale) of each parameter
    for parameter in parameters:
        rank = config.rank(f"{module}.{parameter}")
        if rank is None:
            raise UnsupportedAdapterError(
                f"module {module!r} holds stacked experts, and without r in {config.path.name} their "
                "number is not known",
                path=path,
                module=module,
                remedy="add the r that was used in training",
            )
        kinds.append((rank, config.scale(f"{module}.{parameter}", rank)))
    where = f"{path}: module {module!r}: experts of {' and '.join(parameters)}"
    rows = {name: info.rank for name, info in infos.items()}
    if any(info.kind.name != "linear" for info in infos.values()):
        raise CorruptFileError(
            f"{where} are stored as no matrices",
            expected="A (E * r, in) and B (out, r * E)",
        )
    if len(set(kinds)) > 1:
        # Which parameter is which is not stored. All have the same number of experts: the shapes give the ranks.
        kinds.sort()
        names = sorted(rows, key=lambda name: rows[name])
        counts = {rows[name] / rank for name, (rank, _) in zip(names, kinds, strict=True)}
        scales: dict[int, set[float]] = {}
        for rank, scale in kinds:
            scales.setdefault(rank, set()).add(scale)
        if len(counts) > 1 or any(len(found) > 1 for found in scales.values()):
            raise UnsupportedAdapterError(
                "rank_pattern or alpha_pattern tells them apart, and the file does not say which is which",
                path=where,
                remedy="load the model with PEFT and take the adapter from there with lorakit.from_peft",
            )
        rows = {name: rows[name] for name in names}
    found = {}
    for (name, n_rows), (rank, scale) in zip(rows.items(), kinds, strict=True):
        if n_rows % rank:
            raise CorruptFileError(
                f"{where} have {n_rows} rows in A, which is no multiple of the rank {rank} that "
                f"{config.path.name} gives (by its r and rank_pattern)",
                remedy="correct r, or copy the matching file",
            )
        if n_rows // rank > _MOST_EXPERTS:
            raise CorruptFileError(
                f"{where} are {n_rows // rank} by their {n_rows} rows in A and the rank {rank}",
                expected=f"at most {_MOST_EXPERTS}",
                remedy=f"correct r in {config.path.name}, or copy the matching file",
            )
        found[name] = Stack(n_rows // rank, rank, scale, parameters)
    return found


def _needs_config(path: Path, config: PeftConfig, module: str) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"module {module!r} adapts bare parameters (experts), and {config.path} does not name "
        "them in target_parameters",
        path=path,
        module=module,
        remedy="copy the file that belongs to the adapter",
    )


class WrittenStack(NamedTuple):
    """Experts that are to be written as one A and one B.

    Parameters
    ----------
    name : str
        The name under which PEFT stores them.
    info : ModuleInfo
        What all of them share; the largest of their ranks.
    modules : tuple of str or None
        The adapter's module for each expert; None where it has none, which is a zero update.
    """

    name: str
    info: ModuleInfo
    modules: tuple[str | None, ...]


def gather_stacks(name: str, infos: Mapping[str, ModuleInfo]) -> dict[str, WrittenStack]:
    """Collect the experts of an adapter into the stacks that PEFT stores.

    Parameters
    ----------
    name : str
        The adapter's, for messages.
    infos : mapping of str to ModuleInfo
        Its modules.

    Returns
    -------
    dict of str to WrittenStack
        By their names in the file.

    Raises
    ------
    OutputError
        If experts are named or shaped so that they cannot stand in one stack, or a parameter of a module is missing.
    """
    members: dict[str, dict[int, str]] = {}
    for module, info in infos.items():
        if info.kind.name != "expert":
            continue
        stack, _, number = module.rpartition(".")
        if not stack or not number.isdecimal() or int(number) >= info.kind.experts:
            raise OutputError(
                f"module {module!r} is one of {info.kind.experts} experts",
                adapters=[name],
                module=module,
                expected="its name to end in a number below that",
                remedy="rename it",
            )
        members.setdefault(stack, {})[int(number)] = module
    stacks = {stack: _written(name, stack, modules, infos) for stack, modules in members.items()}
    depths = Counter(owner(stack) for stack in stacks)
    for stack, written in stacks.items():
        parameters = written.info.kind.parameters
        if depths[owner(stack)] != len(parameters) or stack.count(_NESTED) >= len(parameters):
            raise OutputError(
                f"its parameters {' and '.join(parameters)} are adapted together, and only some of them are left",
                adapters=[name],
                module=owner(stack),
                remedy="PEFT tells them by their order, so keep all of them or none",
            )
    return stacks


def _written(name: str, stack: str, modules: Mapping[int, str], infos: Mapping[str, ModuleInfo]) -> WrittenStack:
    first = next(iter(modules.values()))
    shape = infos[first]._replace(rank=0)
    for module in modules.values():
        if infos[module]._replace(rank=0) != shape:
            raise OutputError(
                f"modules {first!r} and {module!r} differ",
                adapters=[name],
                expected="experts of one shape",
            )
    shared = shape._replace(rank=max(infos[module].rank for module in modules.values()))
    return WrittenStack(stack, shared, tuple(modules.get(i) for i in range(shape.kind.experts)))


def written_targets(known: Mapping[str, int], stacks: Mapping[str, WrittenStack]) -> list[str]:
    """Return ``target_parameters`` that mean exactly these stacks.

    As the inputs gave them where that is the same, because PEFT takes two adapters on one model only if both give the
    same; full names otherwise.
    """
    names = {f"{owner(stack)}.{parameter}" for stack, w in stacks.items() for parameter in w.info.kind.parameters}
    covered = all(any(end in known for end in _ends(name)) for name in names)
    same = known and covered and count_matches(tuple(known), names) == dict(known)
    return sorted(known) if same else sorted(names)
