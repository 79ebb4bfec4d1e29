"""The sections of a report that are about what was made of adapters."""

from __future__ import annotations

import numpy as np

from .._recipes import is_recipe
from ..io.formats.record import operation_text
from ._advice import best_at_rank
from ._again import Chain, chain_of, command_of, python_of, recipe_of_chain
from ._charts import bar, look_of
from ._parts import KEPT, Cell, Code, Scale, Section, Table, Text, cell, kept_look, named, shown
from ._subject import Subject
from ._summary import ranks_text

_MOST_COLUMNS = 12
_MOST_BLOCKS = 200
_MOST_STEPS = 20


def kept_by_merge(subject: Subject) -> Section:
    """Return what each adapter kept and lost in a merge."""
    expected = subject.measures.reached(subject.measures.total[: subject.n, : subject.n])
    strengths = subject.given_strengths
    shares = subject.measures.weights if strengths is None else strengths
    rows = []
    for i, name in enumerate(subject.names):
        kept = float(subject.kept[i])
        error = float(np.sqrt(max(_error(subject, i), 0.0)))
        rows.append([
            named(name),
            Cell("", kept, bar=bar(kept, mark=float(expected[i]), look=look_of(i, subject.n))),
            cell(kept, 3),
            cell(float(expected[i]), 3),
            cell(float(subject.strengths[i]), 2),
            cell(float(shares[i]), 3),
            cell(error, 3),
        ])  # fmt: skip
    text = Text([
        "Kept is the cosine of the merged update with the adapter's: 1 if the merge points where the adapter does, 0 "
        "if nothing of it is left. The tick marks what the exact mean at full rank comes to. Own part is the "
        "factor with which the adapter's own update is in the merge. The relative error is near 1 wherever unrelated "
        "adapters are merged, since the merge also holds the others; it is no sign of failure."
    ])  # fmt: skip
    titles = ["adapter", "", "kept", "exact mean", "own part", "weight" if strengths is None else "strength",
              "relative error"]  # fmt: skip
    table = Table("Kept of each adapter.", titles, rows, 5)
    return Section("kept", "What each adapter kept and lost", [text, table, *_by_block(subject)])


def _error(subject: Subject, i: int) -> float:
    total, j = subject.measures.total, subject.n
    return float((total[j, j] - 2 * total[i, j] + total[i, i]) / total[i, i]) if total[i, i] else 0.0


def kept_by_prune(subject: Subject) -> Section:
    """Return what was kept of each adapter that was pruned."""
    rows = []
    for i, (name, adapter, result) in enumerate(zip(subject.names, subject.adapters, subject.results, strict=True)):
        kept = float(subject.kept[i]) ** 2
        best = best_at_rank(subject, i)
        norm = float(subject.norms[i])
        rows.append([
            named(name),
            Cell("", kept, bar=bar(kept, mark=best, look=look_of(i, subject.n))),
            Cell(f"{kept:.2%}", kept),
            Cell(f"{best:.2%}", best),
            cell(float(subject.norms[subject.n + i]) / norm if norm else np.nan, 3),
            Cell(ranks_text(adapter), max(adapter.ranks or (0,))),
            Cell(ranks_text(result), max(result.ranks or (0,))),
            Cell(f"{result.n_parameters / max(adapter.n_parameters, 1):.0%}", result.n_parameters),
        ])  # fmt: skip
    text = Text([
        "Energy is the squared norm of the update; kept is its share along the pruned update (their squared cosine). "
        "The tick marks the most that any update of these ranks can keep."
    ])  # fmt: skip
    titles = ["adapter", "", "energy kept", "possible", "norm, now to before", "rank before", "rank now", "size"]
    return Section(
        "kept", "What was kept", [text, Table("Kept of each adapter.", titles, rows, 6), *_by_block(subject)]
    )


def _by_block(subject: Subject) -> list[Table | Scale]:
    """Return the cosines of each adapter with its result, by block."""
    many = subject.n > _MOST_COLUMNS
    names = ["mean", "least"] if many else [shown(name, 18) for name in subject.names]
    rows = []
    for block, inside in list(subject.blocks.items())[:_MOST_BLOCKS]:
        kept = subject.kept_in(inside)
        if many:
            kept = np.array([np.nanmean(kept), np.nanmin(kept)]) if np.isfinite(kept).any() else np.full(2, np.nan)
        rows.append([
            named(block, 40),
            *(cell(float(v), 2, kept_look(float(v)), f"{name}, {block}") for name, v in zip(names, kept, strict=True)),
        ])  # fmt: skip
    caption = "Cosine of each adapter's update with the result's, by block."
    return [Table(caption, ["block", *names], rows, len(names), grid=True, tall=len(rows) > 16), KEPT]


def clusters(subject: Subject) -> Section | None:
    """Return what LEGO's clusters hold."""
    if subject.clusters is None:
        return None
    by_module, shared = subject.clusters
    if not by_module:
        return None
    total = sum(units for _, units in shared)
    rows = [
        [Cell("one adapter" if n == 1 else f"{n} adapters", n), Cell("", units, bar=bar(units, most=total)),
         Cell(f"{units / total:.1%}", units / total), Cell(f"{units:,}", units), Cell(f"{count:,}", count)]
        for n, (count, units) in enumerate(shared, 1)
    ]  # fmt: skip
    first = Table("Units by how many adapters share their cluster, over all modules.",
                  ["units of", "", "share", "units", "clusters"], rows, 3)  # fmt: skip
    places = dict(zip(subject.measures.modules, subject.places, strict=True))
    listed = [
        [Cell(" · ".join(shown(part, 60) for part in places[m]), m, title=m), cell(c.n, 0), cell(c.units, 0),
         cell(c.mixed, 2), cell(c.alone, 2), cell(c.purity, 2), cell(c.kept, 2)]
        for m, c in list(by_module.items())[:1000]
    ]  # fmt: skip
    titles = ["module", "clusters", "units", "units in mixed clusters", "clusters of one unit", "purity",
              "norm kept by averaging"]  # fmt: skip
    second = Table("Clusters of every module.", titles, listed, 6, tall=len(listed) > 16)
    text = Text([
        "LEGO takes every adapter apart into rank-one units, clusters the units of each module, and averages each "
        "cluster. Clusters of one adapter keep what is its own; mixed clusters hold what adapters share. Units that "
        "are averaged and point apart lose norm: “norm kept” is the centroid's norm over that of its members, before "
        "LEGO scales it back."
    ])  # fmt: skip
    return Section("clusters", "Clusters", [text, first, second])


def again(subject: Subject) -> Section | None:
    """Return how to make the results again."""
    if not subject.records:
        return None
    record = subject.records[0]
    if not record["operations"]:
        return None
    steps = list(dict.fromkeys(map(operation_text, record["operations"])))
    parts: list[Text | Table | Code] = []
    chain = chain_of(subject.records)
    command, python = (None, None) if chain is None else (command_of(chain), python_of(chain))
    if command or python:
        parts.append(Text(["The names of the adapters stand for their paths."]))
    if command:
        parts.append(Code("On the command line", command))
    if python:
        parts.append(Code("In Python", python))
    sources = [source for one in subject.records for source in one["sources"]]
    text = None if chain is None else recipe_of_chain(chain, sources)
    if text:
        verb = "prune" if subject.kind == "prune" else "merge"
        parts.append(Code(f"As a recipe, for lorakit {verb} --recipe FILE", text))
    if not command and not python:
        parts.append(Text(["No single command makes this again: a step was not recorded in full, or it needs data."]))
    if record["result"] is not None:
        check = "lorakit verify RESULT --sources ADAPTER..."
        parts.append(Code("To check that the file is what its record says", check))
    factor = _factor(record["operations"][-1])
    rows = [[Cell(str(i)), Cell(text)] for i, text in enumerate(steps[:_MOST_STEPS], 1)]
    parts.append(Table("What was done, with every parameter.", ["step", "operation"], rows, 0, sortable=False))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
    parts.append(Text([*factor, f"Made with {versions}."]))
    return Section("again", "To make it again", parts)


def _factor(operation: object) -> list[str]:
    """Say by how much a merge was multiplied."""
    found = operation.get("factor") if is_recipe(operation) else None
    values = [found.get(key) for key in ("min", "median", "max")] if isinstance(found, dict) else []
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    if len(numbers) != 3:
        return []
    low, middle, high = numbers
    span = "" if low == high else f" ({low:.3g} to {high:.3g} by module)"
    return [f"The method's own update was multiplied by {middle:.3g}{span}."]


def what_next(subject: Subject) -> Section:
    """Return the commands to go on with from a set of adapters."""
    chain = Chain([{"class": "TSVMerger", "params": {"scale": "match"}}], list(subject.adapters.names))
    command, python = command_of(chain), python_of(chain)
    parts: list[Text | Code] = [Text([
        "The names stand for the adapters' paths. Without -k the merge has the sum of the adapters' ranks; choose a "
        "rank with the figure of the energy above.",
    ])]  # fmt: skip
    if command:
        parts.append(Code("On the command line", f"{command} --report"))
    page = 'lorakit.report(adapters, estimator).save("merged.report.html")'
    parts.append(Code("In Python", f"{python}\n\nimport lorakit\n{page}"))
    return Section("next", "To merge them", parts)
