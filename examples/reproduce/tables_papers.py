"""
The two papers' tables on a language model
==========================================
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from language_runs import Found, Run
from lego_pruning import METHODS as PRUNERS
from lego_table3 import LEGO
from lego_table5 import METHODS as OF_TABLE5
from measured import right_in
from report import Table, mean_spread
from standings import Right, accuracies, normalised
from svd_figure1 import SPACES, Curves
from svd_figure1 import verdict as verdict_of_lines
from tables_language import having, mean, own_of, points

from lorakit.metrics import ModeConnectivity

HOW = ("published", "matched")


def tables(run: Run) -> list[Table]:
    """All tables that the measurements there are allow."""
    made: Sequence[Callable[[Run], Table]] = (
        permuted_table,
        pruning_table,
        mixed_table,
        number_table,
        direct_table,
        cut_table,
        errors_table,
        distances_table,
        lego_against_svd_table,
        lines_table,
    )
    return [table for table in (make(run) for make in made) if table.rows]


def beginning(found: Sequence[Found], start: str) -> list[str]:
    """Names of measurements that begin so."""
    return list(dict.fromkeys(name for of in found for name in of if name.startswith(start)))


def rights(found: Sequence[Found], name: str, what: str) -> list[Right]:
    """What a measurement gets right, of each seed."""
    return [right_in(of[name][what], of[name][what]) for of in found]


def own_in(found: Sequence[Found], tasks: Sequence[str]) -> list[Right]:
    """What the own adapters of some tasks get right, of each seed."""
    return [{task: right[task] for task in tasks} for right in own_of(found)]


def permuted_table(run: Run) -> Table:
    """LEGO's table 1."""
    names = beginning(run.found, "permuted, ")
    found = having(run.found, *names)
    rows = []
    if names and found:
        tasks = [name.removeprefix("permuted, ") for name in names]
        right = {
            what: [{t: right_in(of[f"permuted, {t}"][what], [t])[t] for t in tasks} for of in found]
            for what in ("original", "average", "svd", "lego")
        }
        for what, of_seeds in right.items():
            cells = [f"{np.mean([of[task].mean() for of in of_seeds]):.3f}" for task in tasks]
            change = "" if what == "original" else points(of_seeds, right["original"])
            rows.append([what, *cells, mean_spread(accuracies(of_seeds)), change])
    caption = (
        f"LEGO's table 1: accuracy on {run.n_test} test texts of adapters merged with a copy of themselves whose units "
        f"are in another order, to the adapter's rank, {run.over}; the change in points with its standard error "
        "over texts."
    )
    titles = ["method", *(name.removeprefix("permuted, ") for name in names), "mean", "change"]
    return Table("language-model-permuted", titles, rows, caption)


def pruning_table(run: Run) -> Table:
    """LEGO's figure 6."""
    rows = []
    names = beginning(run.found, "pruned, ")
    for name in names:
        found = having(run.found, name)
        own = own_of(found)
        svd = rights(found, name, "SVD")
        for what in PRUNERS:
            right = rights(found, name, what)
            distances = [float(np.mean(list(of[name]["errors"][what].values()))) for of in found]
            cells = [name.removeprefix("pruned, ") if what == PRUNERS[0] else "", what, mean_spread(accuracies(right))]
            cells += [mean_spread(normalised(right, own)), "" if what == "SVD" else points(right, svd)]
            rows.append([*cells, points(right, own), mean_spread(distances)])
    caption = (
        f"LEGO's figure 6: each adapter pruned to a part of its ranks, on {run.n_test} test texts of its own task, "
        f"{run.over}; accuracy, its share of the whole adapter's, mean over tasks, points ahead of SVD and of "
        "the whole adapter with the standard error over texts, and the relative Frobenius error. As pruned: no factor "
        "is chosen."
    )
    titles = ["ranks left", "method", "accuracy", "kept", "against SVD", "against the whole", "error"]
    return Table("language-model-pruning", titles, rows, caption)


def mixed_table(run: Run) -> Table:
    """LEGO's table 5, and what of its table 3 is of tasks left out."""
    found, name = having(run.found, "mixed ranks"), "mixed ranks"
    rows: list[list[str]] = []
    note = ""
    if found:
        seen = list(found[0]["references"]["own"])
        unseen = [task for task in found[0]["references"]["base"] if task not in seen]
        able = found[0][name]["able"]
        refused = [what for what in OF_TABLE5 if what not in able]
        note = f"Refused, as the ranks differ: {', '.join(refused)}." if refused else ""
        for how in HOW:
            lego = rights(found, name, f"{LEGO}, {how}")
            for what in able:
                right = rights(found, name, f"{what}, {how}")
                cells = [how if what == able[0] else "", what]
                for group in (seen, unseen, [*seen, *unseen]):
                    cells.append(mean_spread([mean(of[name][f"{what}, {how}"], group) for of in found]))
                rows.append([*cells, "" if what == LEGO else points(right, lego)])
    caption = (
        "LEGO's table 5: merges of adapters of two ranks, to twice their mean rank (the ensemble: whole), on "
        f"{run.n_test} test texts of each of their tasks and of tasks left out, {run.over}; as published, and with "
        "each module at the adapters' mean norm; points ahead of LEGO, mean of all tasks, with the standard error over "
        "texts."
    )
    return Table(
        "language-model-mixed", ["norm", "method", "seen", "left out", "all", "against LEGO"], rows, caption, note
    )


def number_table(run: Run) -> Table:
    """LEGO's tables 6 and 7."""
    rows = []
    names = beginning(run.found, "number, ")
    for name in sorted(names, key=lambda name: int(name.removeprefix("number, "))):
        found = having(run.found, name)
        tasks = list(found[0][name]["SVD, matched"])
        own = own_in(found, tasks)
        cells = [name.removeprefix("number, ")]
        for how in HOW:
            right = {what: rights(found, name, f"{what}, {how}") for what in ("LEGO", "SVD", "TSV")}
            cells += [mean_spread(normalised(of, own)) for of in right.values()]
            cells.append(points(right["LEGO"], right["SVD"]))
        rows.append(cells)
    caption = (
        f"LEGO's tables 6 and 7: merges of more and more adapters at rank 16, {run.n_test} test texts of each of their "
        f"tasks, {run.over}: accuracy divided by that of the tasks' own adapters, mean over tasks, as published "
        "and with each module at the adapters' mean norm; points of LEGO ahead of SVD with the standard error over "
        "texts."
    )
    titles = ["adapters", *(f"{what}, {how}" for how in HOW for what in ("LEGO", "SVD", "TSV", "LEGO ahead"))]
    return Table("language-model-number", titles, rows, caption)


def direct_table(run: Run) -> Table:
    """The SVD paper's table 1: merges on A and B against merges on the updates."""
    rows = []
    for name in beginning(run.found, "direct, "):
        found = having(run.found, name)
        tasks = list(found[0][name]["direct, matched"])
        own = own_in(found, tasks)
        for how in HOW:
            right = {what: rights(found, name, f"{what}, {how}") for what in ("direct", "cut", "whole")}
            kept = [mean_spread(normalised(of, own)) for of in right.values()]
            which = f"{len(tasks)} of {name.removeprefix('direct, ')}"
            rows.append([which, how, *kept, points(right["cut"], right["direct"])])
    caption = (
        "The SVD paper's table 1: merges of adapters of one rank, the mean of A and of B (direct), and the mean of the "
        "updates, cut to the adapters' rank and whole. Accuracy divided by that of the task's own adapter, mean over "
        f"tasks, {run.n_test} test texts each, {run.over}; as published and with each module at the adapters' "
        "mean norm. Points of the cut mean ahead of the direct one, with the standard error over texts."
    )
    return Table("language-model-direct", ["adapters", "norm", "direct", "cut", "whole", "points"], rows, caption)


def cut_table(run: Run) -> Table:
    """The SVD paper's table 2: the exact mean, and its cut to low rank."""
    rows = []
    pairs = beginning(run.found, "pair, ")
    for name in pairs:
        found = having(run.found, name)
        rows.append([name.removeprefix("pair, "), "their rank", *_cut_cells(found, name, "cut"), ""])
    if len(pairs) > 1 and (found := having(run.found, *pairs)):
        exact, cut = (_pooled(found, pairs, what) for what in ("exact", "cut"))
        rows.append(["mean of the pairs", "their rank", *_cells(exact, cut), ""])
    if found := having(run.found, "cut"):
        for k in (what for what in found[0]["cut"] if what.isdigit()):
            distance = mean_spread([of["cut"]["errors"][k] for of in found])
            first = "all" if k == next(what for what in found[0]["cut"] if what.isdigit()) else ""
            rows.append([first, k, *_cut_cells(found, "cut", k), distance])
    caption = (
        "The SVD paper's table 2: the exact mean of the updates at the adapters' mean norm, one factor for the model, "
        f"and its cut to a lower rank, at the same factor. Mean accuracy on {run.n_test} test texts of each task, "
        f"{run.over}; points that the cut gains, with the standard error over texts; its relative Frobenius "
        "error."
    )
    return Table("language-model-cut", ["adapters", "cut to", "exact", "cut", "points", "error"], rows, caption)


def errors_table(run: Run) -> Table:
    """The SVD paper's equation 7."""
    rows, titles = [], ["adapters", "method"]
    for name in beginning(run.found, "errors, "):
        of_seeds = [of[name]["errors"] for of in having(run.found, name)]
        for method, by_column in of_seeds[0].items():
            first = name.removeprefix("errors, ") if method == next(iter(of_seeds[0])) else ""
            rows.append([first, method, *(mean_spread([of[method][c] for of in of_seeds], 2) for c in by_column)])
            titles = ["adapters", "method", *by_column]
    caption = (
        "The SVD paper's equation 7: distance of cuts, and of the direct merge, from the exact merge of the adapters "
        f"of one rank, in its own norm, before scaling, {run.over}."
    )
    return Table("language-model-errors", titles, rows, caption)


def distances_table(run: Run) -> Table:
    """What needs no model: errors of pruning, of the cut to low rank, and of direct merges."""
    of_seeds = [of["distances"] for of in having(run.found, "distances")]
    rows = []
    for part, by_method in of_seeds[0]["pruned"].items() if of_seeds else ():
        for what in by_method:
            error = mean_spread([float(np.mean(of["pruned"][part][what])) for of in of_seeds])
            rows.append([f"an adapter, pruned to {part} of its ranks" if what == PRUNERS[0] else "", what, error])
    for group, by_what in of_seeds[0]["merged"].items() if of_seeds else ():
        for what in by_what:
            error = mean_spread([of["merged"][group][what] for of in of_seeds])
            rows.append([f"the exact mean, {group}" if what == next(iter(by_what)) else "", what, error])
    caption = (
        "Relative Frobenius errors over the model: of pruned adapters to the adapter, mean over the adapters (LEGO's "
        f"pruning), and of cuts and direct merges to the exact mean of the updates (the SVD paper's equation 7), "
        f"{run.over}."
    )
    return Table("language-model-distances", ["of", "what", "error"], rows, caption)


def lego_against_svd_table(run: Run) -> Table:
    """The SVD paper's table 3."""
    rows = []
    pairs = beginning(run.found, "pair, ")
    if pairs and (found := having(run.found, *pairs)):
        for part, of_rank in ((0, "pairs, their rank"), (1, "pairs, twice it")):
            for how in HOW:
                right = {what: _pooled(found, pairs, what, how, part) for what in ("LEGO", "SVD")}
                rows.append([of_rank if how == HOW[0] else "", how, *_cells(right["LEGO"], right["SVD"])])
    if found := having(run.found, "all"):
        for k in sorted({int(what.split(", ")[1]) for what in found[0]["all"] if what.startswith("SVD, ")}):
            for how in HOW:
                right = {what: rights(found, "all", f"{what}, {k}, {how}") for what in ("LEGO", "SVD")}
                rows.append([f"all, {k}" if how == HOW[0] else "", how, *_cells(right["LEGO"], right["SVD"])])
    caption = (
        "The SVD paper's table 3: LEGO and the mean of the updates cut by SVD at equal rank, mean accuracy on "
        f"{run.n_test} test texts of each task, {run.over}; as published, and with each module at the adapters' "
        "mean norm; points that SVD is ahead, with the standard error over texts."
    )
    return Table("language-model-lego-svd", ["adapters, k", "norm", "LEGO", "SVD", "points"], rows, caption)


def lines_table(run: Run) -> Table:
    """The SVD paper's figure 1."""
    names = beginning(run.found, "line, ")
    found = having(run.found, *names)
    rows: list[list[str]] = []
    curves: list[Curves] = [{name: _curves(of[name]) for name in names} for of in found]
    for name in names if found else ():
        row = [
            name.removeprefix("line, "),
            mean_spread([float(np.mean(of[name]["updates"].losses[[0, -1]])) for of in curves]),
        ]
        for space in SPACES:
            lines = [of[name][space] for of in curves]
            row.append(mean_spread([float(np.interp(0.5, line.alphas, line.losses)) for line in lines]))
            row.append(mean_spread([line.barrier for line in lines]))
        rows.append(row)
    n = len(next(iter(curves[0].values()))["updates"].alphas) if rows else 0
    caption = (
        f"The SVD paper's figure 1: cross-entropy on {run.n_test} test texts of each of two tasks, at {n} points of "
        "the line between their adapters: the middle of the chord, and the middle of the line and its barrier, through "
        f"the updates (multiplied) and through A and B (direct), {run.over}."
    )
    titles = ["tasks", "chord, middle"]
    titles += [f"{how}, {what}" for how in SPACES.values() for what in ("middle", "barrier")]
    return Table("language-model-lines", titles, rows, caption, verdict_of_lines(curves) if rows else "")


def _curves(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, ModeConnectivity]:
    return {
        space: ModeConnectivity(
            np.array(found[space]["alphas"]),
            np.array(found[space]["losses"]),
            ("x", "y"),
            "updates" if space == "updates" else "factors",
        )
        for space in SPACES
    }


def _cut_cells(found: Sequence[Found], name: str, what: str) -> list[str]:
    return _cells(rights(found, name, "exact"), rights(found, name, what))


def _cells(one: Sequence[Right], other: Sequence[Right]) -> list[str]:
    """Accuracies of two merges, and the points that the second is ahead."""
    return [mean_spread(accuracies(one)), mean_spread(accuracies(other)), points(other, one)]


def _pooled(
    found: Sequence[Found], pairs: Sequence[str], what: str, how: str | None = None, part: int = 0
) -> list[Right]:
    """What the merges of all pairs get right, as if one: of each seed, each task once.

    ``part`` says which of the two ranks of a method with a norm is meant.
    """
    pooled = []
    for of in found:
        right: dict[str, np.ndarray] = {}
        for pair in pairs:
            names = [name for name in of[pair] if name.startswith(f"{what}, ") and name.endswith(str(how))]
            marks = of[pair][names[part] if how else what]
            right |= {f"{pair}, {task}": value for task, value in right_in(marks, marks).items()}
        pooled.append(right)
    return pooled
