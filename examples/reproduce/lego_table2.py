"""
LEGO, table 2: knowledge conflict
=================================

A shared adapter, trained on one task and then frozen, gets one more unit for each of two other tasks, trained alone:
two adapters that differ in that unit only. The paper joins them in two ways. Averaging the two units loses 36 % of the
accuracy that each has with its own; keeping both loses 6 %. So units of different tasks should not be forced into
one::

    python examples/reproduce/lego_table2.py --jobs 2

Here six tasks add a unit (in every adapted module) to an adapter of ``icd10``, instead of two tasks, and are joined in
all pairs and then all together. An average of units is also smaller than they are, which by itself costs accuracy. So
each is measured twice: as the paper has it, and at a scale chosen on validation texts with the adapters of the first
seed. For averages and concatenations that scale is the norm of the units' part, in mean norms of the units.

Two columns go beyond the paper: what LEGO makes of the same adapters, of rank r + 1, when it is given room for every
unit, and when its k is r + 1, so that units of different tasks must share a cluster.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from adapters import at_norm, joined, load
from evaluation import Evaluator
from lego_table3 import AS_PUBLISHED, CHOSEN, NORMS
from processes import Processes
from report import Report, Table, mean_over_tasks, mean_spread, parse, parser, progress, seeds
from train_all import ADDED, SHARED, added
from training import Training

from lorakit import Adapter, AdapterSet, AverageMerger, LegoMerger

AS_IT_IS = 0.0  # a norm of 0 stands for: not scaled
BASE, ALONE, TUNED = "base model", "shared adapter", "own unit"
AVERAGE, CONCAT, LEGO_ROOM, LEGO_TIGHT = "average", "concatenation", "LEGO, room for all", "LEGO, k = r + 1"
PAIRS, ALL = "pairs", "all"

ByTask = dict[str, float]
Scores = dict[str, dict[str, ByTask]]  # accuracy by way of joining, scale and task
Targets = dict[str, dict[str, float]]  # chosen norm by kind of group and way of joining


def main() -> None:
    """Choose the scales, run, report."""
    options = parse(parser("LEGO's table 2: units of different tasks, averaged or kept."), ADDED)
    tasks = [task for task in options.tasks if task != SHARED]
    groups = groups_of(tasks)
    with Processes(options.jobs) as processes:
        targets = choose_targets(tasks, options, processes)
        progress(f"chosen norms: {targets}")
        units = [(kind, group, seed) for seed in options.seeds for kind in groups for group in groups[kind]]
        given = [(group, targets[kind], seed, options.n_test) for kind, group, seed in units]
        found: list[dict[str, list[Scores]]] = [{kind: [] for kind in groups} for _ in options.seeds]
        for (kind, group, seed), scores in zip(units, processes.map(measure, given), strict=True):
            found[options.seeds.index(seed)][kind].append(scores)
            progress(f"seed {seed}, {', '.join(group)}: {_shown(scores)}")
    by_seed = [{kind: mean_of(scores) for kind, scores in of.items()} for of in found]
    single = [singles(tasks, seed, options.n_test) for seed in options.seeds]
    report = Report("lego_table2", options, numbers={"targets": targets, "merged": by_seed, "single": single})
    report.tables += [table(kind, by_seed, single, tasks, targets[kind], options) for kind in groups]
    report.publish()


def groups_of(tasks: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """All pairs of tasks, and all tasks where these are more than a pair."""
    groups: dict[str, list[tuple[str, ...]]] = {PAIRS: list(combinations(tasks, 2))}
    return groups | {ALL: [tuple(tasks)]} if len(tasks) > 2 else groups


def read(tasks: Sequence[str], seed: int) -> tuple[Adapter, AdapterSet]:
    """The shared adapter, and the unit of each task."""
    return load(Training(SHARED, seed=seed)), AdapterSet(load(added(task, seed)) for task in tasks)


def ways(shared: Adapter, units: AdapterSet) -> dict[str, Callable[[float], Adapter]]:
    """The ways of joining, each a function of the norm wanted."""
    whole = AdapterSet(joined(shared, unit, name=unit.name) for unit in units)
    rank = max(shared.ranks)
    average = AverageMerger().fit(units).merged_
    concatenated = joined(*units, name=CONCAT)
    room, tight = (LegoMerger(rank + n, random_state=0).fit(whole).merged_ for n in (len(units), 1))

    def beside(part: Adapter) -> Callable[[float], Adapter]:
        return lambda norm: joined(shared, _at(part, units, norm), name="joined")

    return {
        AVERAGE: beside(average),
        CONCAT: beside(concatenated),
        LEGO_ROOM: lambda norm: _at(room, whole, norm),
        LEGO_TIGHT: lambda norm: _at(tight, whole, norm),
    }


def _at(merged: Adapter, adapters: AdapterSet, norm: float) -> Adapter:
    return merged if norm == AS_IT_IS else at_norm(merged, adapters, norm)


def choose_targets(tasks: Sequence[str], options: argparse.Namespace, processes: Processes) -> Targets:
    """Choose norms for pairs, by those of neighbours, and for all tasks together, on validation texts."""
    groups: dict[str, list[tuple[str, ...]]] = {PAIRS: list(zip(tasks[0::2], tasks[1::2], strict=False))}
    if len(tasks) > 2:
        groups[ALL] = [tuple(tasks)]
    targets: Targets = {}
    for kind, of_kind in groups.items():
        given = [(group, options.seeds[0], options.n_validation) for group in of_kind]
        tried = list(processes.map(try_norms, given))
        targets[kind] = {
            way: max(NORMS, key=lambda norm: round(float(np.mean([t[way][norm] for t in tried])), 9))
            for way in tried[0]
        }
    return targets


def try_norms(tasks: Sequence[str], seed: int, n: int) -> dict[str, dict[float, float]]:
    """Mean accuracy on validation texts by way of joining and norm."""
    validation = Evaluator("validation", n)
    found = ways(*read(tasks, seed))
    return {way: {norm: validation.mean(make(norm), tasks) for norm in NORMS} for way, make in found.items()}


def measure(tasks: Sequence[str], targets: Mapping[str, float], seed: int, n: int) -> Scores:
    """Accuracy of each task with the units of these tasks joined."""
    test = Evaluator("test", n)
    return {
        way: {
            AS_PUBLISHED: test.accuracies(make(AS_IT_IS), tasks),
            CHOSEN: test.accuracies(make(targets[way]), tasks),
        }
        for way, make in ways(*read(tasks, seed)).items()
    }


def singles(tasks: Sequence[str], seed: int, n: int) -> dict[str, ByTask]:
    """Accuracy of each task without its unit, and with it alone."""
    test = Evaluator("test", n)
    shared, units = read(tasks, seed)
    own = {unit.name: test.accuracy(joined(shared, unit, name=unit.name), unit.name) for unit in units}
    return {BASE: test.accuracies(None, tasks), ALONE: test.accuracies(shared, tasks), TUNED: own}


def mean_of(scores: Sequence[Scores]) -> Scores:
    """Of each task the mean over the groups that it is in."""
    return {
        way: {
            scale: {
                task: float(np.mean([s[way][scale][task] for s in scores if task in s[way][scale]]))
                for task in dict.fromkeys(task for s in scores for task in s[way][scale])
            }
            for scale in of_way
        }
        for way, of_way in scores[0].items()
    }


def table(
    kind: str,
    by_seed: Sequence[Mapping[str, Scores]],
    single: Sequence[Mapping[str, ByTask]],
    tasks: Sequence[str],
    targets: Mapping[str, float],
    options: argparse.Namespace,
) -> Table:
    """One row a way of joining and scale, one column a task; the mean, and what it loses of the own units' as there."""
    rows = []

    def add(what: str, scale: str, norm: str, scores: Sequence[ByTask]) -> None:
        cells = [mean_spread([float(np.mean([s[task] for s in scores]))]) for task in tasks]
        lost = "" if what in (BASE, TUNED) else mean_spread([100 * x for x in _lost(scores, single)], 1)
        rows.append([what, scale, norm, *cells, mean_spread(mean_over_tasks(scores)), lost])

    for what in single[0]:
        add(what, "", "", [s[what] for s in single])
    for way in by_seed[0][kind]:
        for scale in (AS_PUBLISHED, CHOSEN):
            norm = f"{targets[way]:g}" if scale == CHOSEN else ""
            add(way, scale, norm, [s[kind][way][scale] for s in by_seed])
    which = "pairs of tasks (of each task the mean over its pairs)" if kind == PAIRS else f"{len(tasks)} tasks"
    caption = (
        f"Accuracy on {options.n_test} test texts a task of a shared adapter with the units of {which}, "
        f"{seeds(options.seeds)}; norms as chosen on {options.n_validation} validation texts a task; the last column "
        "is what is lost of the mean accuracy with the own unit, in per cent of it."
    )
    titles = ["units", "scale", "norm", *tasks, "mean", "lost, %"]
    return Table(f"lego-table-2-{kind}", titles, rows, caption, verdict(kind, by_seed, single))


def _lost(scores: Sequence[ByTask], single: Sequence[Mapping[str, ByTask]]) -> list[float]:
    """The share of the own units' mean accuracy that is lost, by seed."""
    return [
        1 - float(np.mean(list(of.values())) / np.mean(list(own[TUNED].values())))
        for of, own in zip(scores, single, strict=True)
    ]


def verdict(kind: str, by_seed: Sequence[Mapping[str, Scores]], single: Sequence[Mapping[str, ByTask]]) -> str:
    """Say what averaging and keeping lose, and how much of what a unit adds they keep."""
    sentences = []
    for scale in (AS_PUBLISHED, CHOSEN):
        lost = {way: _lost([s[kind][way][scale] for s in by_seed], single) for way in (AVERAGE, CONCAT)}
        less = sum(c < a for a, c in zip(lost[AVERAGE], lost[CONCAT], strict=True))
        kept = {way: _kept([s[kind][way][scale] for s in by_seed], single) for way in (AVERAGE, CONCAT)}
        shown = {way: mean_spread([100 * x for x in of_way], 1) for way, of_way in lost.items()}
        sentences.append(
            f"{scale.capitalize()}, {kind}: the average loses {shown[AVERAGE]} %, the concatenation {shown[CONCAT]} % "
            f"(less in {less} of {len(by_seed)} seeds); of the points that the own unit adds to the shared adapter "
            f"they keep {kept[AVERAGE]:.0f} % and {kept[CONCAT]:.0f} %."
        )
    return " ".join([*sentences, "(The paper, one pair: 36.1 % and 6.2 % are lost.)"])


def _kept(scores: Sequence[ByTask], single: Sequence[Mapping[str, ByTask]]) -> float:
    added_, all_ = (
        np.mean(
            [np.mean(list(s.values())) - np.mean(list(o[ALONE].values())) for s, o in zip(some, single, strict=True)]
        )
        for some in (scores, [own[TUNED] for own in single])
    )
    return float(100 * added_ / all_)


def _shown(scores: Scores) -> str:
    return ", ".join(
        f"{way} {np.mean(list(of[AS_PUBLISHED].values())):.3f} / {np.mean(list(of[CHOSEN].values())):.3f}"
        for way, of in scores.items()
    )


if __name__ == "__main__":
    main()
