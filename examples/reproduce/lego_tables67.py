"""
LEGO, tables 6 and 7: adapters of diverse tasks, and of many
============================================================

The paper merges seven adapters of very different tasks, and twenty of all kinds, and finds that element-wise merges
fall apart, to nothing with twenty, while LEGO holds. Here with seven tasks that have little in common (diagnoses,
languages, parts of speech, packages, source code, reviews, pairs of words) and with all there are, fifteen::

    python examples/reproduce/lego_tables67.py --jobs 2

Each merge is measured as the paper has it, and at a norm of its own: one factor for the model, chosen on validation
texts with the adapters of the first seed, and fixed. Methods differ much in norm (a mean of adapters that have little
in common is short, LEGO gives its merge about the norm of one adapter), so that without the second measurement it
would not be known which of the two counts. The mean, cut to LEGO's rank by SVD, is added.

What else differs: a text gets one of its task's labels, so that a broken model scores what guessing does, and not 0
like one that writes no label at all. Average, TIES, DARE and DELLA act on A and on B, as the paper's do, with lorakit's
default densities.

Adapters of one script often begin with the same random values, whatever their task, and as A moves little their units
then match one another, which spares merges on A and B much of the harm. Ours begin apart, as those of different people
do; ``--shared-start --seeds 0`` is the other case.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from adapters import at_norm, load_tasks, mean_norm, norm
from evaluation import Evaluator
from leaderboard import FIRST_SCALE, walk
from leaderboard import SCALES as USUAL_SCALES
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds
from standings import Right, accuracies, by_task, difference, normalised, right_of, right_of_own
from tasks import TRAINED

from lorakit import (
    Adapter,
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    DareMerger,
    DellaMerger,
    LegoMerger,
    SVDMerger,
    TiesMerger,
)
from lorakit.base import BaseMerger

DIVERSE = ("icd10", "langid", "wn_pos", "deb_section", "proglang", "movie", "wn_rel")  # seven, as in the paper
MERGERS: dict[str, BaseMerger] = {
    "average": AverageMerger(),
    "ensemble": ConcatMerger(),
    "TIES": TiesMerger(space="factors"),
    "DARE": DareMerger(space="factors"),
    "DELLA": DellaMerger(space="factors"),
    "LEGO": LegoMerger(),  # of twice the adapters' rank: 16
    "SVD": SVDMerger(k=16),  # not in the paper's tables
}
BASELINES = ("average", "ensemble", "TIES", "DARE", "DELLA")
SCALES = (*USUAL_SCALES, 3.3, 4.0, 5.0, 6.0)  # merges on A and B are wanted long
BASE, OWN = "base model", "own adapters"
AS_PUBLISHED, CHOSEN = "as published", "chosen norm"

Results = dict[str, dict[str, dict[str, list[Right]]]]  # by group, method and scale, one a seed: what is right


def main() -> None:
    """Choose the norms, run, report."""
    arguments = parser("LEGO's tables 6 and 7: diverse tasks, and many.")
    arguments.add_argument("--shared-start", action="store_true", help="adapters that began with the same values")
    options = parse(arguments, TRAINED)
    start = "-shared-start" if options.shared_start else ""
    groups = groups_of(options.tasks)
    units = [(group, what) for group in groups for what in MERGERS]
    with Processes(options.jobs) as processes:
        given = [(groups[g], what, options.seeds[0], options.n_validation, options.shared_start) for g, what in units]
        targets: dict[str, dict[str, float]] = {group: {} for group in groups}
        for (group, what), target in zip(units, processes.map(choose, given), strict=True):
            targets[group][what] = target
            progress(f"{group}, {what}: norm {target:g} is chosen")
        results, norms = run(groups, units, targets, options, processes)
    numbers = {"targets": targets, "norms": norms, "accuracies": _numbers(results)}
    report = Report(f"lego_tables67{start}".replace("-", "_"), options, numbers=numbers)
    for name, group in zip(("lego-table-6", "lego-table-7"), groups, strict=False):
        for scale in (AS_PUBLISHED, CHOSEN):
            end = f"{start}-scaled" if scale == CHOSEN else start
            report.tables.append(task_table(f"{name}{end}", group, scale, results[group], options.n_test))
    report.tables.append(summary_table(f"lego-tables-67{start}", results, norms, targets, options))
    report.publish()


def groups_of(tasks: Sequence[str]) -> dict[str, list[str]]:
    """The diverse tasks, and all with those first; only one group if there are no others."""
    diverse = [task for task in DIVERSE if task in tasks]
    everything = [*diverse, *(task for task in tasks if task not in diverse)]
    groups = {f"{len(diverse)} diverse": diverse} if len(diverse) > 1 else {}
    return groups if everything == diverse and groups else groups | {f"all {len(everything)}": everything}


def run(
    groups: Mapping[str, list[str]],
    units: Sequence[tuple[str, str]],
    targets: Mapping[str, Mapping[str, float]],
    options: argparse.Namespace,
    processes: Processes,
) -> tuple[Results, dict[str, dict[str, list[float]]]]:
    """Measure every method on every group with the adapters of every seed, and what there is to compare with."""
    results: Results = {group: {what: {AS_PUBLISHED: [], CHOSEN: []} for what in MERGERS} for group in groups}
    norms: dict[str, dict[str, list[float]]] = {group: {what: [] for what in MERGERS} for group in groups}
    n, shared = options.n_test, options.shared_start
    for seed in options.seeds:
        given = [(groups[group], what, seed, targets[group][what], n, shared) for group, what in units]
        for (group, what), (found, own_norm) in zip(units, processes.map(measure, given), strict=True):
            for scale, right in found.items():
                results[group][what][scale].append(right)
            norms[group][what].append(own_norm)
            shown = ", ".join(f"{scale} {accuracies([right])[0]:.3f}" for scale, right in found.items())
            progress(f"seed {seed}, {group}, {what}: {shown}")
    for group, names in groups.items():
        test = Evaluator("test", n)
        own = [right_of_own(load_tasks(names, seed=s, shared_start=shared), test) for s in options.seeds]
        results[group][BASE] = {AS_PUBLISHED: [right_of(None, names, test)] * len(options.seeds)}
        results[group][OWN] = {AS_PUBLISHED: own}
    return results, norms


def merge(adapters: AdapterSet, what: str, seed: int) -> Adapter:
    """Merge by one method."""
    merger = MERGERS[what]
    if "random_state" in merger.get_params():
        merger.set_params(random_state=seed)
    return merger.fit(adapters).merged_


def choose(names: Sequence[str], what: str, seed: int, n: int, shared_start: bool = False) -> float:
    """Choose the norm of a method's merge, in mean norms of the adapters, on validation texts."""
    adapters, validation = load_tasks(names, seed=seed, shared_start=shared_start), Evaluator("validation", n)
    merged = merge(adapters, what, seed)
    return walk(lambda target: validation.mean(at_norm(merged, adapters, target), names), FIRST_SCALE, SCALES)[0]


def measure(
    names: Sequence[str], what: str, seed: int, target: float, n: int, shared_start: bool = False
) -> tuple[dict[str, Right], float]:
    """Which test texts a merge gets right, as it is and at a norm; and what norm it has as it is."""
    adapters = load_tasks(names, seed=seed, shared_start=shared_start)
    merged = merge(adapters, what, seed)
    variants = {AS_PUBLISHED: merged, CHOSEN: at_norm(merged, adapters, target)}
    test = Evaluator("test", n)
    found = {scale: right_of(variant, names, test) for scale, variant in variants.items()}
    return found, norm(merged) / mean_norm(adapters)


def at(results: Mapping[str, Mapping[str, list[Right]]], what: str, scale: str) -> list[Right]:
    """Results of a method, or of what has no scale to choose."""
    return results[what].get(scale, results[what][AS_PUBLISHED])


def task_table(name: str, group: str, scale: str, results: Mapping[str, Mapping[str, list[Right]]], n: int) -> Table:
    """One row a task and one column a method, as the paper's table 7 has it; below it the means."""
    columns = {what: at(results, what, scale) for what in (OWN, BASE, *MERGERS)}
    tasks = list(columns[OWN][0])
    rows = [
        [task, *(f"{np.mean([right[task].mean() for right in found]):.3f}" for found in columns.values())]
        for task in tasks
    ]
    rows.append(["mean", *(mean_spread(accuracies(found)) for found in columns.values())])
    rows.append(["normalised", *(mean_spread(normalised(found, columns[OWN])) for found in columns.values())])
    caption = (
        f"Accuracy on {n} test texts of each task of merges of {group} adapters, {scale}, {seeds(columns[OWN])}; "
        "normalised: the mean of the shares of the own adapters' accuracies."
    )
    return Table(name, ["task", *columns], rows, caption, verdict(group, scale, columns))


def verdict(group: str, scale: str, columns: Mapping[str, Sequence[Right]]) -> str:
    """Say whether LEGO is ahead of what the paper compares it with, and what is below the base model."""
    scores = {what: accuracies(found) for what, found in columns.items()}
    best = max(BASELINES, key=lambda what: np.mean(scores[what]))
    ahead = sum(lego > max(others) for lego, *others in zip(*(scores[w] for w in ("LEGO", *BASELINES)), strict=True))
    n = len(scores["LEGO"])
    sentences = [f"{group}, {scale}: LEGO is ahead of {', '.join(BASELINES)} in {ahead} of {n} seeds."]
    for what in (best, "SVD"):
        points, error = difference(columns["LEGO"], columns[what])
        known = "the best of these, " if what == best else ""
        sentences.append(f"Against {known}{what} it has {100 * points:+.1f} ± {100 * error:.1f} points.")
    below = {what: sum(a < b for a, b in zip(scores[what], scores[BASE], strict=True)) for what in MERGERS}
    shown = ", ".join(f"{what} ({count} of {n} seeds)" for what, count in below.items() if count)
    sentences.append(f"Below the base model: {shown or 'none'}. (± is the standard error over texts.)")
    return " ".join(sentences)


def summary_table(
    name: str,
    results: Results,
    norms: Mapping[str, Mapping[str, Sequence[float]]],
    targets: Mapping[str, Mapping[str, float]],
    options: argparse.Namespace,
) -> Table:
    """One row a method: normalised accuracies and norms, by group."""
    titles, rows = ["method"], [[what] for what in (BASE, *MERGERS)]
    for group, found in results.items():
        titles += [f"{group}, {what}" for what in (AS_PUBLISHED, CHOSEN, "norm", "chosen")]
        own = found[OWN][AS_PUBLISHED]
        for row in rows:
            what = row[0]
            cells = [mean_spread(normalised(found[what][scale], own)) for scale in found[what]]
            cells += [mean_spread(norms[group][what], digits=2), f"{targets[group][what]:g}"] if what != BASE else []
            row += cells + [""] * (4 - len(cells))
    caption = (
        f"Normalised accuracy on {options.n_test} test texts a task, {seeds(options.seeds)}, with the norms that the "
        "merges have, in mean norms of the adapters, and those that were chosen on "
        f"{options.n_validation} validation texts a task."
    )
    return Table(name, titles, rows, caption, decline(results))


def decline(results: Results) -> str:
    """Say what each method loses from few adapters to many."""
    if len(results) < 2:
        return ""
    few, many = results
    sentences = []
    for scale in (AS_PUBLISHED, CHOSEN):
        lost = {}
        for what in MERGERS:
            means = [np.mean(normalised(results[g][what][scale], results[g][OWN][AS_PUBLISHED])) for g in (few, many)]
            lost[what] = f"{what} {100 * (means[1] - means[0]):+.1f}"
        sentences.append(
            f"From {few} to {many}, {scale}, in points of the normalised mean: {', '.join(lost.values())}."
        )
    paper = "(The paper, from 7 to 20 tasks, in points of accuracy: average -28.0, TIES -9.2, DELLA -5.6, LEGO -3.8.)"
    return " ".join([*sentences, paper])


def _numbers(results: Results) -> dict[str, Any]:
    return {
        group: {what: {scale: by_task(right) for scale, right in by_scale.items()} for what, by_scale in found.items()}
        for group, found in results.items()
    }


if __name__ == "__main__":
    main()
