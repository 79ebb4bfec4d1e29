"""Adapters whose modules are put together from pieces of another adapter's: fused projections, split and joined."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .adapters import Adapter, Differences, ModuleInfo, ModuleReader
from .differences import PartsOfDifferences
from .exceptions import IncompatibleAdaptersError, LorakitError, Setting, UnsupportedAdapterError
from .factors import LoraFactors, promoted_dtype
from .linalg.fused import join_outputs, slice_outputs
from .readers import narrowed, read_in

__all__ = ["Piece", "join_modules", "layers_of_differences", "put_together", "split_modules"]


class Piece(NamedTuple):
    """Some outputs of a module.

    Parameters
    ----------
    module : str or None
        The module; None for outputs that have no update.
    start, stop : int
        The outputs, as in ``range(start, stop)``: rows of B.
    """

    module: str | None
    start: int
    stop: int


def split_modules(adapter: Adapter, parts: Mapping[str, Mapping[str, int]]) -> Adapter:
    """Return an adapter in which fused modules are modules of their own, exactly and lazily.

    Each part has the rows of B that are its own. A is shared and never split, so that the rank stays what it was; but
    units that are zero at a part are left out of it, and so is a part that no unit reaches. What :func:`join_modules`
    joined therefore comes back with the ranks that it had.

    Parameters
    ----------
    adapter : Adapter
        The adapter. The fused modules are read once, to know the ranks of their parts, and not kept.
    parts : mapping of str to mapping of str to int
        From the name of a fused module to its parts, in order: the name of each and its number of outputs. These may
        differ, as those of Q, K and V do under grouped-query attention.

    Returns
    -------
    Adapter
        With the parts in place of the fused modules; the other modules are as they were.

    Raises
    ------
    IncompatibleAdaptersError
        If the numbers of outputs do not sum to those of the module, or the module is no linear layer.
    ValueError
        If the adapter has no such module, or two modules would have one name.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, join_modules, split_modules
    >>> fused = Adapter({"qkv": LoraFactors(np.ones((2, 6)), np.ones((8, 2)))})
    >>> parts = {"qkv": {"q": 4, "k": 2, "v": 2}}
    >>> split = split_modules(fused, parts)
    >>> split["k"]
    LoraFactors(rank=2, d_in=6, d_out=2, dtype=float64)
    >>> join_modules(split, parts)["qkv"].rank
    2
    """
    widths = _widths(adapter)
    _check_names(adapter, parts, widths)
    plan: list[tuple[str, tuple[Piece, ...]]] = []
    for module, d_out in widths.items():
        if module not in parts:
            plan.append((module, (Piece(module, 0, d_out),)))
            continue
        sizes = parts[module]
        if sum(sizes.values()) != d_out:
            raise IncompatibleAdaptersError(
                f"module {module!r} has {d_out} outputs",
                module=module,
                adapters=[adapter.name],
                expected=f"the sum of those of its parts, {' + '.join(map(str, sizes.values()))}",
            )
        ends = accumulate(sizes.values(), initial=0)
        for part, (start, stop) in zip(sizes, pairwise(ends), strict=True):
            plan.append((part, (Piece(module, start, stop),)))
    return put_together(adapter, _distinct(adapter, plan))


def join_modules(adapter: Adapter, parts: Mapping[str, Mapping[str, int]]) -> Adapter:
    """Return an adapter in which modules are joined into fused ones, exactly and lazily: the reverse of splitting.

    The factors A are stacked and B is block-diagonal: three modules of rank r make one of rank 3 r. Units of different
    parts that have the same row of A become one unit, so that what :func:`split_modules` split has its rank again.

    Parameters
    ----------
    adapter : Adapter
        The adapter. The modules that are joined are read once, to know the rank of what they make, and not kept.
    parts : mapping of str to mapping of str to int
        From the name of a fused module to its parts, in order: the name of each and its number of outputs. A part that
        the adapter lacks counts as a zero update.

    Returns
    -------
    Adapter
        With each fused module where the first of its parts was; the other modules are as they were. A fused module of
        which the adapter has no part is left out.

    Raises
    ------
    IncompatibleAdaptersError
        If a part has another number of outputs, or the parts have different numbers of inputs, or one is no linear
        layer.
    ValueError
        If two modules would have one name.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import Adapter, LoraFactors, join_modules
    >>> factors = {name: LoraFactors(np.full((2, 6), 0.5 + i), np.ones((4, 2))) for i, name in enumerate("qk", 1)}
    >>> join_modules(Adapter(factors), {"qkv": {"q": 4, "k": 4, "v": 4}})["qkv"]
    LoraFactors(rank=4, d_in=6, d_out=12, dtype=float64)
    """
    whole = {part: fused for fused, sizes in parts.items() for part in sizes}
    plan: list[tuple[str, tuple[Piece, ...]]] = []
    done = set()
    widths = _widths(adapter)
    for module, d_out in widths.items():
        fused = whole.get(module)
        if fused is None:
            plan.append((module, (Piece(module, 0, d_out),)))
        elif fused not in done:
            done.add(fused)
            plan.append((fused, tuple(_parts_of(adapter, parts[fused], widths))))
    return put_together(adapter, _distinct(adapter, plan))


def put_together(adapter: Adapter, plan: Mapping[str, Sequence[Piece]], *, dropped: Collection[str] = ()) -> Adapter:
    """Return an adapter made of pieces of another's modules, lazily.

    Parameters
    ----------
    adapter : Adapter
        The other.
    plan : mapping of str to sequence of Piece
        From the name of each module to its pieces, the first outputs first. A single piece that is a whole module only
        renames it; modules that are made in another way are read once, to know their ranks. A module of which no unit
        reaches the piece is left out, unless the other has no unit that does anything. Layers without factors, of
        which the other has differences, may be pieces too: these are moved with them.
    dropped : collection of str, default=()
        Layers without factors whose differences are left out.

    Raises
    ------
    IncompatibleAdaptersError
        If the pieces of a module have different numbers of inputs, or are of other modules than linear ones.
    UnsupportedAdapterError
        If the other adds to a layer that is neither a piece nor dropped.
    """
    whole_plan = {name: tuple(pieces) for name, pieces in plan.items()}
    differences = _differences_by(adapter, whole_plan, dropped)
    reader = adapter.reader
    infos: dict[str, ModuleInfo] = {}
    kept: dict[str, tuple[Piece, ...]] = {}
    for name, pieces in whole_plan.items():
        given = _with_factors(adapter, pieces)
        if not _sources(given):
            continue
        if _is_whole(reader, given):
            infos[name] = reader.infos[given[0].module]  # type: ignore[index]
        else:
            _check_pieces(adapter, name, given)
            factors = _assembled(reader, given, None)
            if factors.rank == 0:
                continue
            infos[name] = ModuleInfo(factors.rank, factors.d_in, factors.d_out)
        kept[name] = given
    provenance = replace(adapter.provenance, differences=differences)
    return Adapter.from_reader(PieceReader(reader, kept, infos), name=adapter.name, provenance=provenance)


def _with_factors(adapter: Adapter, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return pieces with zeros in place of layers without factors."""
    if all(piece.module is None or piece.module in adapter for piece in pieces):
        return pieces
    return tuple(piece if piece.module in adapter else piece._replace(module=None) for piece in pieces)


def layers_of_differences(adapter: Adapter) -> dict[str, int]:
    """Return the layers without factors to whose parameters an adapter adds, and how many outputs each has."""
    infos = {} if adapter.differences is None else adapter.differences.infos
    return {layer: shape[0] for name, (_, shape) in infos.items() if (layer := name.rpartition(".")[0]) not in adapter}


def _differences_by(
    adapter: Adapter, plan: Mapping[str, tuple[Piece, ...]], dropped: Collection[str]
) -> Differences | None:
    """Return what an adapter adds to whole parameters, moved as their layers are: a bias is cut as the outputs are."""
    if adapter.differences is None:
        return None
    of_layer: dict[str, dict[str, tuple[str, int]]] = {}
    for name, (_, shape) in adapter.differences.infos.items():
        layer, _, parameter = name.rpartition(".")
        of_layer.setdefault(layer, {})[parameter] = name, shape[0]
    places: dict[str, list[tuple[str | None, int, int]]] = {}
    moved = set()
    for new, pieces in plan.items():
        for parameter in dict.fromkeys(p for module, _, _ in pieces for p in of_layer.get(module or "", ())):
            known = [of_layer.get(module or "", {}).get(parameter, (None, 0)) for module, _, _ in pieces]
            alone = len(pieces) == 1 and (pieces[0].start, pieces[0].stop) == (0, known[0][1])
            if parameter != "bias" and not alone:
                continue
            parts = zip(known, pieces, strict=True)
            places[f"{new}.{parameter}"] = [(old, start, stop) for (old, _), (_, start, stop) in parts]
            moved |= {old for old, _ in known}
    gone = {layer for layer in of_layer if layer in dropped or layer in adapter}
    gone -= {module for pieces in plan.values() for module, _, _ in pieces if module is not None}
    for name in adapter.differences.infos:
        if name not in moved and name.rpartition(".")[0] not in gone:
            raise UnsupportedAdapterError(
                f"also adds to {name!r}, a parameter without factors, whose new name is not known",
                adapters=[adapter.name],
                remedy=[Setting("differences", "drop"), " when it is read"],
            )
    return PartsOfDifferences(adapter.differences, places) if places else None


class PieceReader:
    """Modules that are put together from pieces of another reader's.

    Parameters
    ----------
    reader : ModuleReader
        The other reader.
    plan : mapping of str to tuple of Piece
        The pieces of each module.
    infos : mapping of str to ModuleInfo
        What is known of each module without reading it.
    """

    def __init__(
        self, reader: ModuleReader, plan: Mapping[str, tuple[Piece, ...]], infos: Mapping[str, ModuleInfo]
    ) -> None:
        self.reader, self.plan, self.infos = reader, plan, infos
        self.dtype = reader.dtype
        self.checked = bool(getattr(reader, "checked", False))

    def read(self, module: str) -> LoraFactors:
        """Read one module."""
        return _assembled(self.reader, self.plan[module], None)

    def read_in(self, module: str, dtype: torch.dtype) -> LoraFactors:
        """Read one module in this dtype or a better one."""
        return _assembled(self.reader, self.plan[module], dtype)

    def scale(self, module: str) -> float | None:
        """Return the factor that the file gives ``B @ A``; None if there is none, or the pieces have different ones."""
        asked = getattr(self.reader, "scale", None)
        scales = {asked(name) for name in _sources(self.plan[module])} if asked is not None else set()
        return scales.pop() if len(scales) == 1 else None

    def only(self, modules: Sequence[str]) -> PieceReader:
        """Return a reader of these modules alone."""
        plan = {module: self.plan[module] for module in modules}
        needed = list(dict.fromkeys(name for pieces in plan.values() for name in _sources(pieces)))
        return PieceReader(narrowed(self.reader, needed), plan, {module: self.infos[module] for module in modules})


def _sources(pieces: Sequence[Piece]) -> list[str]:
    return list(dict.fromkeys(piece.module for piece in pieces if piece.module is not None))


def _is_whole(reader: ModuleReader, pieces: Sequence[Piece]) -> bool:
    if len(pieces) != 1 or pieces[0].module is None:
        return False
    return (pieces[0].start, pieces[0].stop) == (0, reader.infos[pieces[0].module].d_out)


def _assembled(reader: ModuleReader, pieces: Sequence[Piece], dtype: torch.dtype | None) -> LoraFactors:
    read = {}
    for name in _sources(pieces):
        read[name] = reader.read(name) if dtype is None else read_in(reader, name, dtype)
    if _is_whole(reader, pieces):
        return read[pieces[0].module]  # type: ignore[index]
    common = promoted_dtype(factors.dtype for factors in read.values())
    cut: list[tuple[Tensor, Tensor] | int] = []
    for piece in pieces:
        if piece.module is None:
            cut.append(piece.stop - piece.start)
            continue
        a, b = read[piece.module].to(common)
        cut.append(slice_outputs(a, b, piece.start, piece.stop))
    only = cut[0]
    return LoraFactors(*(join_outputs(cut) if len(cut) > 1 or isinstance(only, int) else only))


def _check_pieces(adapter: Adapter, name: str, pieces: Sequence[Piece]) -> None:
    infos = {module: adapter.infos[module] for module in _sources(pieces)}
    other = next((module for module, info in infos.items() if info.kind.name != "linear"), None)
    if other is not None:
        raise _refused(adapter, other, f"module {other!r} is of the kind {infos[other].kind}", "a linear layer")
    if len({info.d_in for info in infos.values()}) > 1:
        seen = ", ".join(f"{module!r}: {info.d_in}" for module, info in infos.items())
        raise _refused(adapter, name, f"the parts of {name!r} have different numbers of inputs ({seen})", "one number")


def _refused(adapter: Adapter, module: str, seen: str, expected: str) -> LorakitError:
    return IncompatibleAdaptersError(
        seen,
        module=module,
        adapters=[adapter.name],
        expected=expected,
        remedy="layers that are parts of one fused layer read the same input; check the names",
    )


def _widths(adapter: Adapter) -> dict[str, int]:
    """Return the number of outputs of every layer that an adapter changes, by factors or by differences."""
    return {module: info.d_out for module, info in adapter.infos.items()} | layers_of_differences(adapter)


def _parts_of(adapter: Adapter, sizes: Mapping[str, int], widths: Mapping[str, int]) -> Iterator[Piece]:
    for part, rows in sizes.items():
        if widths.get(part, rows) != rows:
            raise IncompatibleAdaptersError(
                f"module {part!r} has {widths[part]} outputs",
                module=part,
                adapters=[adapter.name],
                expected=str(rows),
            )
        yield Piece(part if part in widths else None, 0, rows)


def _check_names(adapter: Adapter, parts: Mapping[str, object], widths: Mapping[str, int]) -> None:
    missing = next((module for module in parts if module not in widths), None)
    if missing is not None:
        raise ValueError(f"{adapter.name}: has no module {missing!r}; it has {', '.join(map(repr, list(adapter)[:3]))}")


def _distinct(adapter: Adapter, plan: Sequence[tuple[str, tuple[Piece, ...]]]) -> dict[str, tuple[Piece, ...]]:
    made = dict(plan)
    if len(made) != len(plan):
        twice = next(name for i, (name, _) in enumerate(plan) if name in dict(plan[:i]))
        raise ValueError(f"{adapter.name}: two modules would be called {twice!r}")
    return made
