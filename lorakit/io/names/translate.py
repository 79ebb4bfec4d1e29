"""Names of a family of models, from one format to another: which family it is, and what becomes of each module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from ...adapters import ModuleInfo
from ...exceptions import Setting, UnsupportedAdapterError
from ...pieces import Piece
from .families import FAMILIES
from .families.family import DIFFUSERS, Family
from .spelling import Match, Spelling, filled, matches, rows_of_part

Plan = dict[str, tuple[Piece, ...]]
# Before the name of a part of a layer for which the other format has no name: no unit may reach it
NAMELESS = "?"


class Known(NamedTuple):
    """What is known of an adapter before its names are translated.

    Parameters
    ----------
    name : str
        Of the adapter, for messages.
    infos : mapping of str to ModuleInfo
        Its modules.
    spellings : tuple of Spelling
        How files of its format spell names.
    models : tuple of str
        What its files call its base model.
    trained : str
        What its training metadata call the kind of base model; '' if they do not.
    metadata : mapping of str to str
        The training metadata.
    others : mapping of str to int
        Layers without factors to whose parameters it adds, and the outputs of each.
    """

    name: str
    infos: Mapping[str, ModuleInfo]
    spellings: tuple[Spelling, ...]
    models: tuple[str, ...] = ()
    trained: str = ""
    metadata: Mapping[str, str] = MappingProxyType({})
    others: Mapping[str, int] = MappingProxyType({})


class Candidates(NamedTuple):
    """The families that an adapter's modules can be of.

    Parameters
    ----------
    families : tuple of Family
        Those that explain all of ``modules``.
    modules : tuple of str
        The modules that are of a family.
    certain : bool
        Whether files or the user name the family. Otherwise it follows from the names, where there is one family only.
    """

    families: tuple[Family, ...]
    modules: tuple[str, ...]
    certain: bool


def candidates(known: Known, given: str | None = None, among: Iterable[Family] = FAMILIES) -> Candidates:
    """Find the families that an adapter can be of.

    Parameters
    ----------
    known : Known
        The adapter.
    given : str or None
        The family, if the user says it.
    among : iterable of Family
        The families to think of.
    """
    allowed = [family for family in among if given is None or family.name == given]
    certain = given is not None
    if given is None and known.trained:
        allowed, certain = [family for family in allowed if family.is_called(known.trained)], True
    explained = {
        family: {module for module in known.infos if matches(family, known.spellings, module)} for family in allowed
    }
    everything = set().union(*explained.values())
    if not everything:
        return Candidates((), (), certain)
    modules = tuple(module for module in known.infos if module in everything)
    whole = [family for family in allowed if explained[family] == everything]
    if len(whole) > 1 and not certain:
        named = [family for family in whole if any(map(family.is_called, known.models))]
        if named:
            whole, certain = named, True
    if len(whole) > 1:
        whole = [family for family in whole if _fits(family, known, modules)] or whole
    return Candidates(tuple(whole), modules, certain)


def family_plan(
    known: Known, found: Candidates, target: tuple[Spelling, ...], *, unsure: Spelling | None = None
) -> tuple[Plan, Family | None]:
    """Return what makes each module in another format, and each other layer that the family knows; and the family.

    Parameters
    ----------
    known : Known
        The adapter.
    found : Candidates
        The families that it can be of.
    target : tuple of Spelling
        How the other format spells names; the first is written.
    unsure : Spelling or None
        How it spells them where the family is not certain, if that does not depend on it.

    Raises
    ------
    UnsupportedAdapterError
        If the families that it can be of give it different names there, or its widths are not those of its family.
    """
    if not found.families and found.modules:
        _refuse_mixture(known, found)
    plans = []
    code = _written(target, known.metadata).code
    able = [family for family in found.families if code in family.rows]
    if found.families and not able:
        refuse_unknown(known.name, found.modules[0], found.families[0].title)
    for family in able:
        flat = unsure is not None and not found.certain and family.flat_names_of_diffusers
        spelling = unsure if flat and unsure is not None else _written(target, known.metadata)
        plans.append((_plan_with_others(known, family, found.modules, spelling), family))
    if any(plan != plans[0][0] for plan, _ in plans[1:]):
        _refuse_ambiguous(known, found, plans)
    if not plans:
        return {}, None
    return plans[0][0], plans[0][1] if len(plans) == 1 else None


def in_diffusers(known: Known, found: Candidates) -> bool:
    """Whether every module has the name that diffusers gives it, whichever family it is of."""
    return all(
        match.code == DIFFUSERS or match.row.name == match.row.parts[0].name
        for family in found.families
        for module in found.modules
        for match in matches(family, known.spellings, module)
    )


def one_part(spellings: tuple[Spelling, ...], module: str) -> str | None:
    """Return the layer of diffusers that a name means, if it is one layer, the same in every family."""
    found = {
        match.parts()[0][0] if len(match.row.parts) == 1 and not match.row.swapped else None
        for family in FAMILIES
        for match in matches(family, spellings, module)
    }
    return found.pop() if len(found) == 1 else None


def parts_by_name(spellings: tuple[Spelling, ...], module: str) -> set[str]:
    """Return the layers of diffusers that a name can stand for, in any family."""
    return {
        f"{family.name}: {part}"
        for family in FAMILIES
        for match in matches(family, spellings, module)
        for part, _ in match.parts()
    }


def _fits(family: Family, known: Known, modules: Sequence[str]) -> bool:
    return all(
        any(match.fits(known.infos[module]) for match in matches(family, known.spellings, module)) for module in modules
    )


def _written(target: tuple[Spelling, ...], metadata: Mapping[str, str]) -> Spelling:
    marked = [spelling for spelling in target if spelling.marked_by is not None and spelling.marked_by in metadata]
    return (marked or [spelling for spelling in target if spelling.marked_by is None])[0]


def _plan_with_others(known: Known, family: Family, modules: Sequence[str], spelling: Spelling) -> Plan:
    if not known.others:
        return _plan(known, family, modules, spelling)
    # the widths of their inputs are not known
    known = known._replace(
        infos={**known.infos, **{layer: ModuleInfo(0, 0, d_out) for layer, d_out in known.others.items()}}
    )
    layers = [layer for layer in known.others if matches(family, known.spellings, layer)]
    norms = [layer for layer in known.others if matches(family.of_norms, known.spellings, layer)]
    return _plan(known, family, [*modules, *layers], spelling) | _plan(known, family.of_norms, norms, spelling)


def _plan(known: Known, family: Family, modules: Sequence[str], spelling: Spelling) -> Plan:
    found = {module: matches(family, known.spellings, module) for module in modules}
    if all(match.code == spelling.code for alike in found.values() for match in alike):  # whatever the parts are
        return {
            spelling.of(filled(alike[0].row.name, alike[0].numbers)): (Piece(module, 0, known.infos[module].d_out),)
            for module, alike in found.items()
        }
    parts: Plan = {}
    widths: dict[str, int] = {}  # inputs
    for module in modules:
        info = known.infos[module]
        match = _one(known, module, info.d_out, info.d_in, found[module], family)
        for part, pieces in _taken_apart(known, module, info.d_out, match, family):
            if part in parts:
                _refuse_twice(known, parts[part][0].module, module, part)
            parts[part], widths[part] = pieces, info.d_in
    if spelling.code == DIFFUSERS:
        return {spelling.of(part): _joined(pieces) for part, pieces in parts.items()}
    made: Plan = {}
    for part, pieces in parts.items():
        wholes = rows_of_part(family, spelling.code, part)
        if not wholes:
            holder = pieces[0].module
            if holder is None or _rows(pieces) == known.infos[holder].d_out:
                refuse_unknown(known.name, holder, part)
            made[NAMELESS + part] = _joined(pieces)
            continue
        match = wholes[0] if len(wholes) == 1 else _one(known, part, _rows(pieces), widths[part], wholes, family)
        name = spelling.of(filled(match.row.name, match.numbers))
        if name not in made:
            made[name] = _joined(_put_together(known, name, match, parts))
    return made


def _one(known: Known, module: str, d_out: int, d_in: int, found: Sequence[Match], family: Family) -> Match:
    """Return the one of several rows of one name that a module is, by its widths."""
    if len(found) == 1:
        return found[0]
    fitting = [match for match in found if match.row.ratio is None or d_out == match.row.ratio * d_in]
    if len(fitting) != 1:
        ratios = " or ".join(f"{match.row.ratio:g}" for match in found)
        if module in known.others:
            raise UnsupportedAdapterError(
                f"also adds to {module!r}, a name of several layers that differ in their inputs ({ratios} times as "
                "many outputs), and has no factors there, which would show them",
                adapters=[known.name],
                module=module,
                remedy=[Setting("differences", "drop"), " when it is read"],
            )
        raise UnsupportedAdapterError(
            f"module {module!r} has {d_out} outputs and {d_in} inputs",
            adapters=[known.name],
            module=module,
            expected=f"{ratios} times as many outputs, as {family.title} has",
            remedy="leave it out with adapter.select",
        )
    return fitting[0]


def _taken_apart(
    known: Known, module: str, d_out: int, match: Match, family: Family
) -> list[tuple[str, tuple[Piece, ...]]]:
    parts = match.parts()
    shares = 2 if match.row.swapped else sum(share for _, share in parts)
    if d_out % shares:
        raise UnsupportedAdapterError(
            f"module {module!r} has {d_out} outputs",
            adapters=[known.name],
            module=module,
            expected=f"a multiple of {shares}, as {family.title} has",
            remedy="is it an adapter of another model?",
        )
    unit = d_out // shares
    if match.row.swapped:
        return [(parts[0][0], (Piece(module, unit, d_out), Piece(module, 0, unit)))]
    found: list[tuple[str, tuple[Piece, ...]]] = []
    start = 0
    for part, share in parts:
        found.append((part, (Piece(module, start, start + share * unit),)))
        start += share * unit
    return found


def _put_together(known: Known, name: str, match: Match, parts: Plan) -> list[Piece]:
    """Return the pieces of a layer of another code, with gaps for the parts that are not adapted."""
    wanted = match.parts()
    units = {_rows(parts[part]) / share for part, share in wanted if part in parts}
    if len(units) > 1:
        seen = ", ".join(f"{part}: {_rows(parts[part])}" for part, _ in wanted if part in parts)
        raise UnsupportedAdapterError(
            f"the parts of {name!r} have these numbers of outputs: {seen}",
            adapters=[known.name],
            module=name,
            expected="in proportion " + " : ".join(str(share) for _, share in wanted),
            remedy="is it an adapter of another model?",
        )
    unit = units.pop()
    pieces: list[Piece] = []
    for part, share in wanted:
        pieces += parts.get(part, (Piece(None, 0, int(share * unit)),))
    if match.row.swapped:
        half = _rows(pieces) // 2
        return [*_cut(pieces, half, 2 * half), *_cut(pieces, 0, half)]
    return pieces


def _rows(pieces: Iterable[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)


def _cut(pieces: Iterable[Piece], start: int, stop: int) -> list[Piece]:
    """Return the pieces between two rows of what pieces make."""
    found, row = [], 0
    for module, first, last in pieces:
        low, high = max(start, row), min(stop, row + last - first)
        if low < high:
            found.append(Piece(module, first + low - row, first + high - row))
        row += last - first
    return found


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Return the same pieces, with those that follow one another in one module as one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].module == piece.module and found[-1].stop == piece.start:
            found[-1] = found[-1]._replace(stop=piece.stop)
        else:
            found.append(piece)
    return tuple(found)


def _refuse_ambiguous(known: Known, found: Candidates, plans: Sequence[tuple[Plan, Family]]) -> NoReturn:
    common = set(plans[0][0]).intersection(*(plan for plan, _ in plans[1:]))
    names = [
        (family.title, next((name for name in plan if name not in common), next(iter(plan)))) for plan, family in plans
    ]
    seen = ", ".join(f"{title} ({name!r})" for title, name in names)
    raise UnsupportedAdapterError(
        f"modules such as {found.modules[0]!r} can be of several models, which name them differently: {seen}",
        adapters=[known.name],
        module=found.modules[0],
        expected="names or training metadata that only one of these has",
        remedy=["say which it is: ", Setting("family", *(family.name for family in found.families))],
    )


def _refuse_mixture(known: Known, found: Candidates) -> NoReturn:
    of = {module: [f.title for f in FAMILIES if matches(f, known.spellings, module)] for module in found.modules}
    first = found.modules[0]
    other = next(module for module in found.modules if set(of[module]).isdisjoint(of[first]) or of[module] != of[first])
    raise UnsupportedAdapterError(
        f"module {first!r} is of {' or '.join(of[first])}, and {other!r} of {' or '.join(of[other])}",
        adapters=[known.name],
        module=first,
        expected="modules of one model",
        remedy="take those of one model with adapter.select",
    )


def _refuse_twice(known: Known, one: str | None, other: str, part: str) -> NoReturn:
    raise UnsupportedAdapterError(
        f"modules {one!r} and {other!r} are both {part!r} in diffusers",
        adapters=[known.name],
        module=other,
        expected="one of the two spellings",
        remedy="leave the other out with adapter.select",
    )


def refuse_unknown(name: str, module: str | None, part: str) -> NoReturn:
    """Raise UnsupportedAdapterError for a layer that another format has no name for."""
    raise UnsupportedAdapterError(
        f"module {module!r}, which is or holds {part!r}, has no name in that format",
        adapters=[name],
        module=module,
        remedy="leave it out with adapter.select, or convert to another format",
    )
