"""
Tables of the language model's page
===================================

Each takes the measurements of every seed. A row is of the seeds that have been measured for it, and methods are
compared on the seeds that both have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from entrants import WHOLE
from language_runs import Found, Run
from measured import right_in
from prompts import TRAINED
from report import Table, mean_spread
from report import seeds as over
from standings import Right, accuracies, difference, normalised

FIRST = "tsv"
COLUMNS = (8, 16, 32, WHOLE)


def tables(run: Run) -> list[Table]:
    """All tables that the measurements there are allow."""
    run = replace(run, by_seed={seed: joined(found) for seed, found in run.by_seed.items()})
    made = [adapters_table(run), methods_table(run), norms_table(run.found), final_table(run.found)]
    made += [tasks_table(run), ranks_table(run)]
    return [table for table in made if table.rows]


def joined(found: Found) -> dict[str, Any]:
    """Join what was measured of a method and a rank: 'tsv, 16, untuned' and 'tsv, 16, chosen' are 'tsv, 16'."""
    together: dict[str, Any] = {}
    for name, of in found.items():
        what, _, how = name.rpartition(", ")
        if how in ("untuned", "chosen"):
            together[what] = together.get(what, {}) | of
        else:
            together[name] = of
    return together


def having(found: Sequence[Found], *names: str) -> list[Found]:
    """The seeds that have all of these measurements."""
    return [of for of in found if all(name in of for name in names)]


def own_of(found: Sequence[Found]) -> list[Right]:
    """What the tasks' own adapters get right, of each seed."""
    return [right_in(of["references"]["own"], of["references"]["own"]) for of in found]


def adapters_table(run: Run) -> Table:
    """One row a task: what the base model, and its own adapter, get right."""
    found = run.found
    trained = list(run.adapters.values())
    rows = []
    for task, marks in found[0]["references"]["base"].items():
        about = [of[task] for of in trained if of.get(task)]
        if not about:
            rows.append([task, "", "", "", share(marks), "", ""])
            continue
        training = about[0]["training"]
        modules = "all linear" if training["targets"] else "q, k, v, o"
        kind = "generated" if about[0]["labels"] > 100 else str(about[0]["labels"])
        own = mean_spread([right[task].mean() for right in own_of(found)])
        seconds = ", ".join(f"{of['seconds']:.0f}" for of in about)
        rows.append([task, kind, str(training["rank"]), modules, share(marks), own, seconds])
    caption = (
        f"Accuracy on {run.n_test} test texts of each task, of the base model and of the task's own adapter, "
        f"{run.over}; generated answers must be the answer exactly. The tasks without an adapter are left out of "
        "merging. Seconds of training of each seed, on a machine that did other work too."
    )
    titles = ["task", "labels", "rank", "modules", "base model", "own adapter", "seconds"]
    return Table("language-model-adapters", titles, rows, caption)


def methods_table(run: Run) -> Table:
    """One row a method at rank 16, by its accuracy with ``scale="match"`` beside the first's."""
    found = run.found
    tasks = list(found[0]["references"]["own"])
    unseen = [task for task in found[0]["references"]["base"] if task not in tasks]
    names = {name.removesuffix(", 16"): name for of in found for name in of if name.endswith(", 16")}
    names |= {name: name for name in TRAINED if having(found, name)}
    first = f"{FIRST}, 16"
    rows: list[tuple[float, list[str]]] = []
    for shown, name in names.items():
        there = [of for of in having(found, name) if "matched" in of[name]]
        if not there:
            continue
        cells = [str(len(there))]
        for what in ("published", "matched", "chosen"):
            right = [right_in(of[name][what], tasks) for of in there if what in of[name]]
            cells.append(mean_spread(accuracies(right)) if len(right) == len(there) else "")
            if what == "matched":
                cells.append(mean_spread(normalised(right, own_of(there))))
        paired = having(there, first)
        ahead = compared(paired, name, first, "matched", tasks) if shown != FIRST and paired else None
        cells[4:4] = [points(*ahead), by_seed(*ahead)] if ahead else ["", ""]
        if unseen:
            cells.append(mean_spread([mean(of[name]["matched"], unseen) for of in there]))
        cells.append(f"{np.mean([of[name]['seconds'] for of in there]):.0f}")
        place = difference(*ahead)[0] if ahead else 0.0
        rows.append((-place, [shown, *cells]))
    made = [row for _, row in sorted(rows, key=lambda row: row[0])]
    made += references(found, tasks, unseen)
    caption = (
        f"Mean accuracy of merges of {len(tasks)} adapters at rank 16 on {run.n_test} test texts of each of their "
        f"tasks, {many(run)}: as published, with each module at the adapters' mean norm "
        f"('match'), and at the norm, in mean norms of the adapters, chosen on {run.n_validation} validation texts a "
        "task. Of 'match' also normalised by the tasks' own adapters; points against tsv, on the seeds that both have, "
        "with the standard error over texts, and in each seed; "
        f"and the accuracy on the {len(unseen)} tasks left out. Distilled has the norm that its training gave it. "
        "Seconds of processor time for the merge."
    )
    titles = ["method", "seeds", "published", "match", "normalised", "points", "by seed", "norm chosen"]
    titles += [*(["left out"] if unseen else []), "seconds"]
    return Table("language-model-methods", titles, made, caption, f"{left_out(found, unseen)}{note(found)}")


def references(found: Sequence[Found], tasks: Sequence[str], unseen: Sequence[str]) -> list[list[str]]:
    """Rows of the tasks' own adapters and of the base model."""
    own = own_of(found)
    base = [right_in(of["references"]["base"], tasks) for of in found]
    rows = []
    for name, right in (("own adapters", own), ("base model", base)):
        cells = [str(len(found)) if name == "own adapters" else "", ""]
        same = right if name == "own adapters" else right[:1]  # the base model is one, whatever the seed
        cells += [mean_spread(accuracies(same)), mean_spread(normalised(right, own)), "", "", ""]
        if unseen:
            cells.append(f"{mean(found[0]['references']['base'], unseen):.3f}" if name == "base model" else "")
        rows.append([name, *cells, ""])
    return rows


def left_out(found: Sequence[Found], unseen: Sequence[str]) -> str:
    """How far the first method is ahead of the base model on tasks that no adapter is of."""
    there = having(found, f"{FIRST}, 16")
    if not there or not unseen:
        return ""
    ahead = [right_in(of[f"{FIRST}, 16"]["matched"], unseen) for of in there]
    base = [right_in(of["references"]["base"], unseen) for of in there]
    return f"On the tasks left out {FIRST} is {points(ahead, base)} points ahead of the base model. "


def norms_table(found: Sequence[Found]) -> Table:
    """What the norm of a merge is worth."""
    names = dict.fromkeys(name for of in found for name in of if name.endswith(", 16") and "published" in of[name])
    rows = []
    for name in names:
        there = [of[name] for of in having(found, name) if "published" in of[name]]
        tasks = list(there[0]["published"])
        cells = [name.removesuffix(", 16"), mean_spread([of["norm"] for of in there], digits=2)]
        cells.append(gained(there, "matched", "published", tasks))
        walked = [of for of in there if "chosen" in of]
        cells.append(", ".join(f"{of['scale']:g}" for of in walked))
        rows.append([*cells, gained(walked, "chosen", "matched", tasks) if walked else ""])
    caption = (
        "What the norm is worth at rank 16, on the texts of the last table: the norm of the merge as published, in "
        "mean norms of the adapters, the points that 'match' gains over it, the norm that was chosen for each seed, "
        "and the points that it gains over 'match', with standard errors over texts."
    )
    titles = ["method", "as published", "'match' gains", "chosen", "chosen gains"]
    return Table("language-model-norms", titles, rows, caption)


def gained(of_seeds: Sequence[Mapping[str, Any]], one: str, other: str, tasks: Sequence[str]) -> str:
    """Points that a method has at one norm more than at another."""
    return points(*([right_in(of[what], tasks) for of in of_seeds] for what in (one, other)))


def final_table(found: Sequence[Found]) -> Table:
    """Some methods at rank 16, matched, on texts that no table above has."""
    titles = ["merge", "seeds", "accuracy", "normalised", f"points against {FIRST}", "by seed"]
    reference, first = "final, own adapters", f"final, {FIRST}"
    there = having(found, reference, first)
    if not there:
        return Table("language-model-final", titles, [])
    tasks = list(there[0][reference]["own"])
    rows: list[tuple[float, list[str]]] = []
    for name in dict.fromkeys(name for of in there for name in of if name.startswith("final, ") and name != reference):
        some = having(there, name)
        right = [right_in(of[name]["matched"], tasks) for of in some]
        own = [right_in(of[reference]["own"], tasks) for of in some]
        theirs = [right_in(of[first]["matched"], tasks) for of in some]
        cells = [str(len(some)), mean_spread(accuracies(right)), mean_spread(normalised(right, own))]
        cells += ["", ""] if name == first else [points(right, theirs), by_seed(right, theirs)]
        rows.append((-difference(right, theirs)[0], [name.removeprefix("final, "), *cells]))
    own = [right_in(of[reference]["own"], tasks) for of in there]
    made = [row for _, row in sorted(rows, key=lambda row: row[0])]
    made.append(["own adapters", str(len(there)), mean_spread(accuracies(own)), "1.000", "", ""])
    n = len(next(iter(own[0].values())))
    caption = (
        f"Merges at rank 16 as above, each module at the adapters' mean norm, on {n} other test texts of each task, by "
        f"which nothing was chosen, {over(there)}. Points with the standard error over texts, two of which tell two "
        "methods apart, and in each seed."
    )
    return Table("language-model-final", titles, made, caption)


def note(found: Sequence[Found]) -> str:
    """What PEFT's other combination types do with these adapters."""
    if not (there := having(found, "PEFT alike")):
        return ""
    alike = there[0]["PEFT alike"]
    refused = ", ".join(alike["refused"])
    said = next(iter(alike["refused"].values()), "")
    return (
        f"PEFT's 'cat' is the mean (its cosine with lorakit's is {alike['cosine']:.6f}), which its 'svd' cuts. PEFT "
        f"refuses these adapters, of two ranks, for {refused}: '{said}'"
    )


def ranks_table(run: Run) -> Table:
    """Accuracy by rank of the methods that were measured at several, each at its chosen norm."""
    found = run.found
    tasks = list(found[0]["references"]["own"])
    names = dict.fromkeys(name.rpartition(", ")[0] for of in found for name in of if name.endswith((", 8", ", 0")))
    columns = [k for k in COLUMNS if any(f"{name}, {k}" in of for name in names for of in found)]
    rows = []
    for name in names:
        cells = []
        for k in columns:
            there = [of for of in having(found, f"{name}, {k}") if "chosen" in of[f"{name}, {k}"]]
            right = [right_in(of[f"{name}, {k}"]["chosen"], tasks) for of in there]
            scales = ", ".join(f"{of[f'{name}, {k}']['scale']:g}" for of in there)
            cells.append(f"{mean_spread(normalised(right, own_of(there)))} ({scales})" if there else "")
        whole = having(found, f"{name}, {WHOLE}")
        rows.append([name, *cells, str(whole[0][f"{name}, {WHOLE}"]["rank"]) if whole else ""])
    caption = (
        f"Accuracy by rank, divided by that of the task's own adapter, mean over tasks, {run.n_test} test texts each, "
        f"{many(run)}; each at the norm, in parentheses for each seed, chosen on "
        f"{run.n_validation} validation texts a task."
    )
    titles = ["method", *(f"k = {k}" if k else "whole" for k in columns), "rank of whole"]
    return Table("language-model-ranks", titles, rows, caption)


def tasks_table(run: Run) -> Table:
    """Accuracy by task."""
    found = run.found
    named: dict[str, list[Mapping[str, str]]] = {
        "base model": [found[0]["references"]["base"]],
        "own adapters": [of["references"]["own"] for of in found],
    }
    for name in ("tsv, 16", "svd, 16", "lego, 16", "distilled"):
        if there := [of for of in having(found, name) if "matched" in of[name]]:
            shown = f"{name.removesuffix(', 16')}, match" if ", " in name else name
            named[shown] = [of[name]["matched"] for of in there]
    rows = [
        [task, *(mean_spread([mean(marks, [task]) for marks in of]) if task in of[0] else "" for of in named.values())]
        for task in found[0]["references"]["base"]
    ]
    caption = f"Accuracy by task on {run.n_test} test texts each, rank 16, {run.over}."
    return Table("language-model-tasks", ["task", *named], rows, caption)


def many(run: Run) -> str:
    """How to call what has been averaged over in rows that may be of fewer seeds."""
    return run.over + (" where there are as many" if len(run.by_seed) > 1 else "")


def compared(
    found: Sequence[Found], one: str, other: str, what: str, tasks: Sequence[str]
) -> tuple[list[Right], list[Right]]:
    """What two measurements get right, of each seed."""
    first, second = ([right_in(of[name][what], tasks) for of in found] for name in (one, other))
    return first, second


def share(marks: str) -> str:
    """Share of texts that are right."""
    return f"{marks.count('1') / len(marks):.3f}"


def mean(marks: Mapping[str, str], tasks: Sequence[str]) -> float:
    """Mean over tasks of that."""
    return accuracies([right_in(marks, tasks)])[0]


def points(one: Sequence[Right], other: Sequence[Right]) -> str:
    """Difference in points, mean over seeds, with its standard error over texts."""
    ahead, error = difference(one, other)
    return f"{100 * ahead:+.1f} ± {100 * error:.1f}"


def by_seed(one: Sequence[Right], other: Sequence[Right]) -> str:
    """The same difference in each seed."""
    pairs: list[tuple[Any, Any]] = list(zip(one, other, strict=True))
    return ", ".join(f"{100 * (accuracies([a])[0] - accuracies([b])[0]):+.1f}" for a, b in pairs)
