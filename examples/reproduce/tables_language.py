"""
Tables of the language model's page
===================================
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from entrants import WHOLE
from report import Table
from standings import Right, accuracies, difference, normalised

FIRST = "tsv"
COLUMNS = (8, 16, 32, WHOLE)
Found = Mapping[str, Any]


def tables(found: Found, about: Mapping[str, Any], n_test: int, n_validation: int) -> list[Table]:
    """All tables that the measurements there are allow."""
    made = [adapters_table(found, about, n_test), methods_table(found, n_test, n_validation)]
    made.append(norms_table(found))
    made += [ranks_table(found, n_test, n_validation), tasks_table(found, n_test)]
    made += [final_table(found), permuted_table(found, n_test), direct_table(found, n_test)]
    return [table for table in made if table.rows]


def right_in(marks: Mapping[str, str], tasks: Sequence[str]) -> Right:
    """Which texts of some tasks are right, from what JSON holds."""
    return {task: np.array([mark == "1" for mark in marks[task]]) for task in tasks}


def adapters_table(found: Found, about: Mapping[str, Any], n_test: int) -> Table:
    """One row a task: what the base model, and its own adapter, get right."""
    base, own = found["references"]["base"], found["references"]["own"]
    rows = []
    for task, marks in base.items():
        metrics = about.get(task)
        if metrics is None:
            rows.append([task, "", "", "", share(marks), "", ""])
            continue
        training = metrics["training"]
        modules = "all linear" if training["targets"] else "q, k, v, o"
        kind = "generated" if metrics["labels"] > 100 else str(metrics["labels"])
        cells = [kind, str(training["rank"]), modules, share(marks), share(own[task]), f"{metrics['seconds']:.0f}"]
        rows.append([task, *cells])
    caption = (
        f"Accuracy on {n_test} test texts of each task, of the base model and of the task's own adapter; generated "
        "answers must be the answer exactly. The tasks without an adapter are left out of merging. Seconds of "
        "training, on a machine that did other work too."
    )
    titles = ["task", "labels", "rank", "modules", "base model", "own adapter", "seconds"]
    return Table("language-model-adapters", titles, rows, caption)


def methods_table(found: Found, n_test: int, n_validation: int) -> Table:
    """One row a method at rank 16, by its accuracy with ``scale="match"``."""
    own_marks = found["references"]["own"]
    tasks = list(own_marks)
    unseen = [task for task in found["references"]["base"] if task not in tasks]
    own = right_in(own_marks, tasks)
    named = {name.removesuffix(", 16"): of for name, of in found.items() if name.endswith(", 16")}
    if "distilled" in found:
        named["distilled"] = found["distilled"]
    first = named.get(FIRST)
    rows = []
    for name in sorted(named, key=lambda name: -mean(named[name]["matched"], tasks)):
        of, cells = named[name], []
        for what in ("published", "matched", "chosen"):
            if what in of:
                cells += [f"{mean(of[what], tasks):.3f}"]
                if what == "matched":
                    right = right_in(of[what], tasks)
                    cells += [f"{normalised([right], [own])[0]:.3f}"]
                    cells += ["" if first is of or first is None else points(right, right_in(first[what], tasks))]
            else:
                cells += [""]
        left_out = f"{mean(of['matched'], unseen):.3f}" if unseen else ""
        rows.append([name, *cells, left_out, f"{of['seconds']:.0f}"])
    for name, marks in (("own adapters", own_marks), ("base model", found["references"]["base"])):
        right = right_in(marks, tasks)
        left_out = f"{mean(marks, unseen):.3f}" if unseen and name == "base model" else ""
        cells = [f"{mean(marks, tasks):.3f}", f"{normalised([right], [own])[0]:.3f}", ""]
        rows.append([name, "", *cells, "", left_out, ""])
    caption = (
        f"Mean accuracy of merges of {len(tasks)} adapters at rank 16 on {n_test} test texts of each of their tasks: "
        "as published, with each module at the adapters' mean norm ('match'), and at the norm, in mean norms of the "
        f"adapters, chosen on {n_validation} validation texts a task. Of 'match' also normalised by the tasks' own "
        f"adapters, points against {FIRST} with the standard error over texts, and the accuracy on the {len(unseen)} "
        "tasks left out. Distilled has the norm that its training gave it. Seconds of processor time for the merge."
    )
    titles = ["method", "published", "match", "normalised", "points", "norm chosen"]
    titles += ["left out", "seconds"]
    ahead = ""
    if first is not None and unseen:
        base = right_in(found["references"]["base"], unseen)
        gained = points(right_in(first["matched"], unseen), base)
        ahead = f"On the tasks left out {FIRST} is {gained} points ahead of the base model. "
    return Table("language-model-methods", titles, rows, caption, ahead + note(found))


def norms_table(found: Found) -> Table:
    """What the norm of a merge is worth."""
    rows = []
    for name, of in found.items():
        if not name.endswith(", 16") or "published" not in of:
            continue
        published, chosen = (right_in(of[what], list(of[what])) for what in ("published", "chosen"))
        right = right_in(of["matched"], list(of["published"]))
        cells = [f"{of['norm']:.2f}", points(right, published), f"{of['scale']:g}", points(chosen, right)]
        rows.append([name.removesuffix(", 16"), *cells])
    caption = (
        "What the norm is worth at rank 16, on the texts of the last table: the norm of the merge as published, in "
        "mean norms of the adapters, the points that 'match' gains over it, the norm that was chosen, and the points "
        "that it gains over 'match', with standard errors over texts."
    )
    titles = ["method", "as published", "'match' gains", "chosen", "chosen gains"]
    return Table("language-model-norms", titles, rows, caption)


def final_table(found: Found) -> Table:
    """Some methods at rank 16, matched, on texts that no table above has."""
    titles = ["merge", "accuracy", "normalised", f"points against {FIRST}"]
    if "final, own adapters" not in found or f"final, {FIRST}" not in found:
        return Table("language-model-final", titles, [])
    marks = found["final, own adapters"]["own"]
    tasks = list(marks)
    own = right_in(marks, tasks)
    first = right_in(found[f"final, {FIRST}"]["matched"], tasks)
    finals = {name.removeprefix("final, "): of for name, of in found.items() if name.startswith("final, ")}
    named = {name: of["matched"] for name, of in finals.items() if "matched" in of}
    rows = []
    for name in sorted(named, key=lambda name: -mean(named[name], tasks)):
        right = right_in(named[name], tasks)
        ahead = "" if name == FIRST else points(right, first)
        rows.append([name, f"{mean(named[name], tasks):.3f}", f"{normalised([right], [own])[0]:.3f}", ahead])
    rows.append(["own adapters", f"{accuracies([own])[0]:.3f}", "1.000", ""])
    n = len(next(iter(own.values())))
    caption = (
        f"Merges at rank 16 as above, each module at the adapters' mean norm, on {n} other test texts of each task, by "
        "which nothing was chosen. Points with the standard error over texts; two errors tell two methods apart."
    )
    return Table("language-model-final", titles, rows, caption)


def note(found: Found) -> str:
    """What PEFT's other combination types do with these adapters."""
    if (alike := found.get("PEFT alike")) is None:
        return ""
    refused = ", ".join(alike["refused"])
    said = next(iter(alike["refused"].values()), "")
    return (
        f"PEFT's 'cat' is the mean (its cosine with lorakit's is {alike['cosine']:.6f}), which its 'svd' cuts. PEFT "
        f"refuses these adapters, of two ranks, for {refused}: '{said}'"
    )


def ranks_table(found: Found, n_test: int, n_validation: int) -> Table:
    """Accuracy by rank of the methods that were measured at several, each at its chosen norm."""
    tasks = list(found["references"]["own"])
    own = right_in(found["references"]["own"], tasks)
    names = [name.removesuffix(", 8") for name in found if name.endswith(", 8")]
    columns = [k for k in COLUMNS if any(f"{name}, {k}" in found for name in names)]
    rows = []
    for name in names:
        cells = []
        for k in columns:
            of = found.get(f"{name}, {k}")
            right = right_in(of["chosen"], tasks) if of else None
            cells.append(f"{normalised([right], [own])[0]:.3f} ({of['scale']:g})" if of and right else "")
        whole = found.get(f"{name}, {WHOLE}")
        rows.append([name, *cells, str(whole["rank"]) if whole else ""])
    caption = (
        f"Accuracy by rank, divided by that of the task's own adapter, mean over tasks, {n_test} test texts each; each "
        f"at the norm, in parentheses, chosen on {n_validation} validation texts a task."
    )
    titles = ["method", *(f"k = {k}" if k else "whole" for k in columns), "rank of whole"]
    return Table("language-model-ranks", titles, rows, caption)


def tasks_table(found: Found, n_test: int) -> Table:
    """Accuracy by task."""
    base = found["references"]["base"]
    named = {"base model": base, "own adapters": found["references"]["own"]}
    for name in ("tsv, 16", "svd, 16", "lego, 16", "distilled"):
        if name in found:
            named[f"{name.removesuffix(', 16')}, match" if ", " in name else name] = found[name]["matched"]
    rows = [[task, *(share(marks[task]) if task in marks else "" for marks in named.values())] for task in base]
    caption = f"Accuracy by task on {n_test} test texts each, rank 16."
    return Table("language-model-tasks", ["task", *named], rows, caption)


def permuted_table(found: Found, n_test: int) -> Table:
    """LEGO's table 1."""
    named = {name.removeprefix("permuted, "): of for name, of in found.items() if name.startswith("permuted, ")}
    rows = []
    for what in ("original", "average", "svd", "lego"):
        right = {task: right_in(of[what], [task])[task] for task, of in named.items()}
        if not right:
            break
        original = {task: right_in(of["original"], [task])[task] for task, of in named.items()}
        cells = [share(named[task][what][task]) for task in named]
        rows.append(
            [what, *cells, f"{accuracies([right])[0]:.3f}", "" if what == "original" else points(right, original)]
        )
    caption = (
        f"Accuracy on {n_test} test texts of adapters merged with a copy of themselves whose units are in another "
        "order, to the adapter's rank; the change in points with its standard error over texts."
    )
    return Table("language-model-permuted", ["method", *named, "mean", "change"], rows, caption)


def direct_table(found: Found, n_test: int) -> Table:
    """The SVD paper's question: merges on A and B against merges on the updates."""
    rows = []
    for name, of in found.items():
        if not name.startswith("direct, "):
            continue
        tasks = list(of["direct, matched"])
        own = right_in(found["references"]["own"], tasks)
        for how in ("published", "matched"):
            right = {what: right_in(of[f"{what}, {how}"], tasks) for what in ("direct", "cut", "whole")}
            kept = [f"{normalised([right[what]], [own])[0]:.3f}" for what in right]
            which = f"{len(tasks)} of {name.removeprefix('direct, ')}"
            rows.append([which, how, *kept, points(right["cut"], right["direct"])])
    caption = (
        "Merges of adapters of one rank: the mean of A and of B (direct), and the mean of the updates, cut to the "
        "adapters' rank and whole. Accuracy divided by that of the task's own adapter, mean over tasks, "
        f"{n_test} test texts each; as published and with each module at the adapters' mean norm. Points of the cut "
        "mean ahead of the direct one, with the standard error over texts."
    )
    return Table("language-model-direct", ["adapters", "norm", "direct", "cut", "whole", "points"], rows, caption)


def share(marks: str) -> str:
    """Share of texts that are right."""
    return f"{marks.count('1') / len(marks):.3f}"


def mean(marks: Mapping[str, str], tasks: Sequence[str]) -> float:
    """Mean over tasks of that."""
    return accuracies([right_in(marks, tasks)])[0]


def points(right: Right, other: Right) -> str:
    """Difference in points, with its standard error over texts."""
    ahead, error = difference([right], [other])
    return f"{100 * ahead:+.1f} ± {100 * error:.1f}"
