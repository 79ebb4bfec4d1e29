"""The sections of a report that are about adapters, whatever was done with them."""

from __future__ import annotations

import numpy as np

from ._charts import MOST_CURVES, Curve, bar, legend, line_chart, look_of, table_of
from ._measures import Floats, energy, norms, rank_for
from ._parts import SIGNED, Cell, Figure, Section, Table, Text, cell, named, number, shown, signed_look
from ._subject import Subject
from ._summary import ranks_text

MOST_IN_MATRIX = 24  # adapters
_MOST_PAIRS = 40
MOST_ROWS = 1000  # modules, of a table
_MOST_BLOCKS, _MOST_KINDS = 200, 16


def went_in(subject: Subject) -> Section:
    """Return the table of the adapters."""
    bases = {adapter.provenance.base_model for adapter in subject.adapters}
    titles = ["adapter", "licence", *(["base model"] * (len(bases) > 1)), "SHA-256", "kind", "dtype", "rank", "alpha",
              "modules", "parameters"]  # fmt: skip
    rows = []
    for name, adapter, about in zip(subject.names, subject.adapters, subject.about, strict=True):
        known = adapter.provenance
        digest = about.sha256
        rows.append([
            named(name),
            Cell(shown(about.licence or "not stated", 40)),
            *([named(known.base_model or "–", 40)] if len(bases) > 1 else []),
            Cell(digest[:12] if digest else "in memory" if about.in_memory else "not known", title=digest or ""),
            Cell(", ".join(known.stored_as)),
            Cell(str(adapter.dtype).removeprefix("torch.")),
            Cell(ranks_text(adapter), max(adapter.ranks or (0,))),
            Cell(" / ".join(f"{alpha:g}" for alpha in about.alphas[:3]) or "–", (about.alphas or [0.0])[-1]),
            Cell(f"{len(adapter):,}", len(adapter)),
            Cell(f"{adapter.n_parameters:,}", adapter.n_parameters),
        ])  # fmt: skip
    parts: list[Text | Table] = [
        Table("The adapters, as their files describe them.", titles, rows, 4),
        Text(["SHA-256 is of the file with the weights; alpha is as the file gives it."]),
    ]
    if not subject.n:
        sources = subject.records[0]["sources"]
        rows = [[named(str(one["name"])), Cell(str(one["sha256"] or "–"))] for one in sources[:MOST_ROWS]]
        parts = [
            Text(["The files of the adapters are not at hand. The record of the result names them:"]),
            Table("The sources that the record names.", ["adapter", "SHA-256 of the weights"], rows, 0),
        ]
    return Section("in", "What went in", parts)


def alike(subject: Subject) -> Section:
    """Return the cosines between the adapters."""
    text = Text([
        "The cosine of two updates, all modules as one long vector: 1 is the same direction, 0 unrelated, −1 opposite. "
        "Between unrelated tasks it is usually near 0."
    ])  # fmt: skip
    if subject.n <= MOST_IN_MATRIX:
        rows = [
            [named(name), *(
                cell(float(c), 2, "self" if i == j else signed_look(float(c)), f"{name} and {subject.names[j]}")
                for j, c in enumerate(subject.cosines[i])
            )]
            for i, name in enumerate(subject.names)
        ]  # fmt: skip
        titles = ["adapter", *(shown(name, 18) for name in subject.names)]
        table = Table("Cosines between the adapters' updates.", titles, rows, subject.n, sortable=False, grid=True)
        return Section("alike", "How alike the adapters are", [text, table, SIGNED])
    chosen = sorted({*range(_MOST_PAIRS // 2), *range(len(subject.pairs) - _MOST_PAIRS // 2, len(subject.pairs))})
    rows = [
        [named(subject.names[i]), named(subject.names[j]), cell(c, 3, signed_look(c))]
        for c, i, j in (subject.pairs[k] for k in chosen if 0 <= k < len(subject.pairs))
    ]
    caption = f"The most opposed and the most alike of {len(subject.pairs):,} pairs."
    return Section("alike", "How alike the adapters are", [text, Table(caption, ["one", "other", "cosine"], rows, 1)])


def conflicts(subject: Subject) -> Section:
    """Return where the adapters agree and where they work against each other, by block and by module."""
    text = Text([
        "The mean cosine of all pairs of adapters at each place, where every pair counts by the product of its norms. "
        "Blue: they pull in one direction, and a merge adds up. No colour: they do not meet. Orange: they work against "
        "each other, and a merge cancels part of both."
    ])  # fmt: skip
    return Section("conflict", "Where they agree and where they conflict", [text, _grid(subject), SIGNED])


def _grid(subject: Subject) -> Table:
    kinds = list(dict.fromkeys(kind for _, kind in subject.places))
    blocks = list(subject.blocks)[:_MOST_BLOCKS]
    wide = len(kinds) <= _MOST_KINDS
    titles = ["block", *(kinds if wide else []), "whole block"]
    rows = []
    for block in blocks:
        inside = subject.blocks[block]
        row = [named(block, 40)]
        for kind in kinds if wide else ():
            there = [i for i in inside if subject.places[i][1] == kind]
            row.append(_agreement(subject, there, f"{block} {kind}"))
        rows.append([*row, _agreement(subject, inside, block)])
    more = f" The first {_MOST_BLOCKS} of {len(subject.blocks)} blocks." if len(subject.blocks) > _MOST_BLOCKS else ""
    caption = f"Mean cosine of the pairs of adapters, by block and kind of module.{more}"
    return Table(caption, titles, rows, len(titles) - 1, grid=True, tall=len(rows) > 16)


def _agreement(subject: Subject, modules: list[int], where: str) -> Cell:
    value = subject.agreement(modules) if modules else np.nan
    return cell(value, 2, signed_look(value), where)


def modules(subject: Subject) -> Section:
    """Return the table of modules."""
    several, made = subject.n > 1, bool(subject.results)
    merged = subject.kind == "merge" and subject.n > 0
    titles = ["module", "share of norm²", "rank for 90 %"] + ["rank of the result"] * made
    titles += ["kept, mean", "kept, least"] * merged + ["cosine of pairs, mean", "cosine of pairs, lowest"] * several
    total = float(np.square(subject.norms[: subject.n or 1]).sum())
    order = _order(subject)
    rows = []
    for m in order:
        name, (block, kind) = subject.measures.modules[m], subject.places[m]
        gram, low = subject.measures.grams[m], subject.lowest[m]
        kept = subject.kept_in([m]) if merged else np.zeros(0)
        known = merged and bool(np.isfinite(kept).any())
        share = float(np.square(norms(gram)[: subject.n or 1]).sum()) / total if total else 0.0
        row = [Cell(f"{shown(block, 40)} · {shown(kind, 60)}", name, title=name)]
        row += [Cell(f"{share:.1%}", share), _rank_needed(subject, m)]
        if made:
            ranks = sorted({result.infos[name].rank for result in subject.results if name in result.infos})
            row.append(Cell("/".join(map(str, ranks)) or "–", ranks[-1] if ranks else 0))
        if merged:
            row.append(cell(float(np.nanmean(kept)) if known else np.nan, 2))
            least = int(np.nanargmin(kept)) if known else 0
            row.append(_of(float(kept[least]), subject.names[least]) if known else cell(np.nan))
        if several:
            together = subject.agreement([m])
            row.append(cell(together, 2, signed_look(together)))
            names = [] if low is None else [subject.names[i] for i in low[1:]]
            row.append(cell(np.nan) if low is None else _of(low[0], *names, look=signed_look(low[0])))
        rows.append(row)
    n = len(subject.measures.modules)
    some = "" if len(order) == n else f" The {len(order):,} of {n:,} that conflict most."
    text = Text([
        "“Rank for 90 %” is the rank at which the "
        + ("exact mean of the adapters" if several else "update") + " keeps 90 % of its energy (squared norm)."
    ])  # fmt: skip
    table = Table(f"Every module.{some}", titles, rows, len(titles) - 1, tall=len(rows) > 16)
    return Section("modules", "Module by module", [text, table])


def _of(value: float, *names: str, look: str = "") -> Cell:
    """Return the cell of a number with the adapters that it is of."""
    return Cell(f"{', '.join(shown(name, 16) for name in names)} {number(value, 2)}", value, look)


def _order(subject: Subject) -> list[int]:
    n = len(subject.measures.modules)
    if n <= MOST_ROWS:
        return list(range(n))
    worst = sorted(range(n), key=lambda m: np.inf if subject.lowest[m] is None else subject.lowest[m][0])  # type: ignore[index]
    return sorted(worst[:MOST_ROWS])


def _rank_needed(subject: Subject, m: int) -> Cell:
    several = subject.n > 1 and subject.kind != "prune"
    values = subject.measures.mean_spectra[m] if several else max(subject.measures.spectra[m], key=np.sum)
    needed = rank_for(values, 0.9)
    return Cell(str(needed), needed)


def spectra(subject: Subject) -> Section:
    """Return the singular values, and the energy that ranks keep."""
    curves = [Curve(name, subject.measures.curve(i), look_of(i, subject.n)) for i, name in enumerate(subject.names)]
    mean = subject.kind != "prune" and subject.n > 1
    if mean:
        curves.append(Curve("exact mean", subject.measures.curve(None), "mean"))
    if subject.kind == "merge":
        curves.append(Curve("result", subject.measures.curve(subject.n), "result"))
    energies = [Curve(c.name, energy(c.values)[1:], c.look) for c in curves if c.name != "result" or not subject.n]
    first = _figure(
        energies, "Share of the energy (squared norm) that a rank keeps, if every module is cut to it.",
        across="rank", up="share of the energy", top=1.0,
    )  # fmt: skip
    second = _figure(
        curves, "Singular values: root mean square over the modules, from the largest to the smallest.",
        across="number of the singular value", up="singular value", log=True,
    )  # fmt: skip
    words = ["A curve that rises fast can be cut to a low rank. "]
    if mean:
        words = ["The exact mean shows what rank a merge needs: "
                 + _energy_words(subject, energy(subject.measures.curve(None)))]  # fmt: skip
    return Section("spectra", "Spectra and energy", [Text(words), first, second])


def _energy_words(subject: Subject, kept: Floats) -> str:
    ranks = subject.results[0].ranks if subject.results else ()
    ks = sorted({*(k for k in (4, 8, 16, 32, 64) if k < len(kept)), *ranks[-1:]})[-5:]
    shares = [f"{kept[min(k, len(kept) - 1)]:.0%} of its energy at rank {k}" for k in ks]
    return ", ".join(shares) + "."


def _figure(curves: list[Curve], caption: str, *, across: str, up: str, top: float | None = None, log: bool = False,
            first: int = 1, ticks: list[str] | None = None) -> Figure:  # fmt: skip
    told = "; ".join(
        f"{shown(c.name, 32)} from {number(float(c.values[0]), 2)} to {number(float(c.values[-1]), 2)}"
        for c in curves[: MOST_CURVES + 2]
        if len(c.values)
    )
    svg = line_chart(curves, title=caption, description=told, across=across, up=up, top=top, log=log, ticks=ticks)
    if ticks is not None:
        titles, rows = ticks[:40], [(c.name, [number(float(v)) for v in c.values[:40]]) for c in curves[:40]]
    else:
        titles, rows = table_of(curves[:40], first)
    numbers = Table(
        f"{caption} In numbers.", ["curve", *titles], [[named(name), *map(Cell, texts)] for name, texts in rows],
        len(titles), sortable=False,
    )  # fmt: skip
    return Figure(svg, caption, legend(curves), numbers)


def sizes(subject: Subject) -> Section:
    """Return the norms, of the whole updates and by block."""
    names = [*subject.names, *(["result"] if subject.kind == "merge" else [])]
    values = subject.norms[: len(names)]
    mean = float(values[: subject.n].mean()) if subject.n else 0.0
    most = float(values.max(initial=0.0))
    looks = [look_of(i, subject.n) if i < subject.n else "result" for i in range(len(names))]
    rows = [
        [named(name), Cell("", v, bar=bar(v, mark=mean, most=most, look=look)), cell(v, 3),
         cell(v / mean if mean else np.nan, 2)]
        for name, v, look in zip(names, values.tolist(), looks, strict=True)
    ]  # fmt: skip
    table = Table(
        "Norms of the updates. The tick is the adapters' mean.", ["update", "", "norm", "to the mean"], rows, 2
    )
    parts: list[Text | Table | Figure] = [
        Text(["The Frobenius norm of an update says how far it moves the model. In a merge, a large update outweighs a "
              "small one."]), table,
    ]  # fmt: skip
    blocks = list(subject.blocks)
    if len(blocks) > 2:
        by_block = np.array([norms(subject.measures.gram(inside)) for inside in subject.blocks.values()])
        curves = [Curve(name, by_block[:, i], looks[i]) for i, name in enumerate(names)]
        parts.append(_figure(curves, "Norm of the update in each block.", across="block", up="norm", ticks=blocks))
    return Section("norms", "Norms", parts)
