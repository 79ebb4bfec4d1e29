"""
Standings: what the leaderboard's measurements come to
======================================================
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from entrants import RANKS, WHOLE
from evaluation import Evaluator
from report import Table, mean_spread, seeds

from lorakit import Adapter

Right = Mapping[str, np.ndarray]  # by task: whether each text was classified right
Results = Mapping[str, Mapping[int, Sequence[Right]]]  # by entrant and rank, one a seed
Walks = Mapping[str, Mapping[str, Any]]  # by entrant: seconds, and by rank what was chosen
COLUMNS = (*RANKS, WHOLE)


def right_of(adapter: Adapter | None, tasks: Iterable[str], evaluator: Evaluator, first: int = 0) -> Right:
    """Which texts of each task, from the first on, get their true label."""
    labels = {task: evaluator.labels(task)[first:] for task in tasks}
    rows = {task: np.arange(first, first + len(true)) for task, true in labels.items()}
    scores = evaluator.scores_by_task(adapter, rows)
    return {task: found.argmax(axis=1) == labels[task] for task, found in scores.items()}


def right_of_own(adapters: Iterable[Adapter], evaluator: Evaluator, first: int = 0) -> Right:
    """The same of each adapter on its own task."""
    return {a.name: right_of(a, [a.name], evaluator, first)[a.name] for a in adapters}


def by_task(by_seed: Sequence[Right]) -> list[dict[str, float]]:
    """Accuracy by task, of each seed."""
    return [{task: float(right.mean()) for task, right in found.items()} for found in by_seed]


def accuracies(by_seed: Sequence[Right]) -> list[float]:
    """Mean over tasks, of each seed."""
    return [float(np.mean([right.mean() for right in found.values()])) for found in by_seed]


def normalised(by_seed: Sequence[Right], own: Sequence[Right]) -> list[float]:
    """Mean over tasks of the accuracy divided by that of the task's own adapter, of each seed."""
    return [
        float(np.mean([found[task].mean() / theirs[task].mean() for task in theirs]))
        for found, theirs in zip(by_seed, own, strict=True)
    ]


def difference(one: Sequence[Right], other: Sequence[Right]) -> tuple[float, float]:
    """Difference of mean accuracies, and its standard error over texts.

    The two are measured on the same texts, so it is the texts' differences that vary; seeds share the texts, and are
    averaged before.
    """
    means, squares = [], []
    for task in one[0]:
        by_text = np.mean([a[task].astype(float) - b[task] for a, b in zip(one, other, strict=True)], axis=0)
        means.append(by_text.mean())
        squares.append(by_text.var(ddof=1) / len(by_text) if len(by_text) > 1 else 0.0)
    return float(np.mean(means)), float(np.sqrt(np.sum(squares)) / len(means))


def best(results: Results, k: int, n: int) -> list[str]:
    """The n entrants of highest mean accuracy at a rank."""
    there = [name for name in results if k in results[name]]
    return sorted(there, key=lambda name: -np.mean(accuracies(results[name][k])))[:n]


def heats_table(
    results: Results, walks: Walks, references: Mapping[str, Sequence[Right]], aliases: Mapping[str, Sequence[str]]
) -> Table:
    """One row an entrant, by accuracy at rank 16; those that have no rank 16 last."""

    def place(name: str) -> tuple[bool, float]:
        of = results[name]
        k = 16 if 16 in of else next(iter(of))
        return 16 not in of, -float(np.mean(accuracies(of[k])))

    rows = []
    for name in sorted(results, key=place):
        cells = [mean_spread(accuracies(results[name][k])) if k in results[name] else "" for k in COLUMNS]
        ranks = walks[name]["ranks"]
        whole = str(ranks[WHOLE]["rank"]) if WHOLE in ranks else ""
        rows.append([name, *cells, whole, f"{walks[name]['seconds']:.1f}"])
    for name, found in references.items():
        rows.append([name, *[""] * (len(COLUMNS) - 1), mean_spread(accuracies(found)), "", ""])
    first = next(iter(references.values()))
    n, n_tasks = len(next(iter(first[0].values()))), len(first[0])
    caption = (
        f"Mean accuracy of merges of {n_tasks} adapters on {n} test texts of each of their tasks, {seeds(first)}; by "
        "rank, each at its chosen scale, sorted by rank 16."
    )
    titles = ["method", *(f"k = {k}" for k in RANKS), "whole", "its rank", "seconds"]
    note = " ".join(f"{name} stands also for {', '.join(others)}." for name, others in aliases.items())
    return Table("leaderboard", titles, rows, caption, note)


def final_table(finals: Results, own: Sequence[Right]) -> Table:
    """The best of each rank on fresh texts, with the difference to the first and its standard error."""
    rows, sentences = [], []
    for k in COLUMNS:
        order = best(finals, k, len(finals))
        for name in order:
            behind, error = difference(finals[name][k], finals[order[0]][k])
            rows.append(
                [
                    (_rank(k) if name == order[0] else ""),
                    name,
                    mean_spread(accuracies(finals[name][k])),
                    mean_spread(normalised(finals[name][k], own)),
                    "" if name == order[0] else f"{100 * behind:+.1f} ± {100 * error:.1f}",
                ]
            )
        if order:
            near = [name for name in order[1:] if _near(finals, k, name, order[0])]
            told = f"not told apart from it: {', '.join(near)}" if near else "ahead of all others"
            sentences.append(f"At {_rank(k)} {order[0]} is first, {told}.")
    n = len(next(iter(own[0].values())))
    caption = (
        f"The final: the best of each rank on {n} other test texts a task, {seeds(own)}; normalised by the tasks' own "
        "adapters; points behind the first with the standard error over texts. Two errors tell two methods apart."
    )
    return Table(
        "leaderboard-final", ["k", "method", "accuracy", "normalised", "points"], rows, caption, " ".join(sentences)
    )


def _near(finals: Results, k: int, name: str, first: str) -> bool:
    behind, error = difference(finals[name][k], finals[first][k])
    return abs(behind) <= 2 * error


def chosen_table(walks: Walks, n: int) -> Table:
    """The scale of each entrant at each rank, and the rank of highest accuracy, by validation texts."""
    rows = []
    for name, walk in sorted(walks.items(), key=lambda item: -max(r["validation"] for r in item[1]["ranks"].values())):
        ranks = walk["ranks"]
        cells = [f"{ranks[k]['scale']:g} ({ranks[k]['norm']:.2f})" if k in ranks else "" for k in COLUMNS]
        top = max(ranks, key=lambda k: (ranks[k]["validation"], -ranks[k]["rank"]))
        rows.append([name, *cells, _rank(top), f"{ranks[top]['validation']:.3f}"])
    caption = (
        f"Norms of the merges, in mean norms of the adapters, chosen on {n} validation texts a task (and those that "
        "the merges have unscaled), with the rank that did best there; sorted by its accuracy."
    )
    titles = ["method", *(f"k = {k}" for k in RANKS), "whole", "best k", "validation"]
    return Table("leaderboard-chosen", titles, rows, caption)


def regmean_table(results: Results, walks: Walks, best_free: Mapping[int, str], n: int) -> Table:
    """RegMean beside the best of the methods that need no data, on the same texts."""
    rows = []
    for k in COLUMNS:
        if k in results["regmean"] and k in best_free:
            other = results[best_free[k]][k]
            ahead, error = difference(results["regmean"][k], other)
            scale = f"{walks['regmean']['ranks'][k]['scale']:g}"
            cells = [mean_spread(accuracies(results["regmean"][k])), scale]
            cells += [best_free[k], mean_spread(accuracies(other))]
            rows.append([_rank(k), *cells, f"{100 * ahead:+.1f} ± {100 * error:.1f}"])
    caption = (
        f"RegMean, which needs texts (here {n} training texts a task, without labels), and the best in validation of "
        "the methods that need none, on the texts of the heats; points ahead with the standard error over texts. One "
        f"merge takes {walks['regmean']['seconds']:.1f} s, most of it to run the texts."
    )
    return Table(
        "leaderboard-regmean", ["k", "RegMean", "norm", "best without data", "its accuracy", "points"], rows, caption
    )


def _rank(k: int) -> str:
    return f"k = {k}" if k else "whole rank"
