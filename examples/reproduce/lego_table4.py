"""
LEGO, table 4: texts of mixed tasks, each with the adapters that it retrieves
=============================================================================

There is a pool of adapters, and texts that do not say which task they belong to. Each text retrieves the three adapters
whose examples its embedding is nearest to, as LoraRetriever does, and is answered by a merge of the three: their
average, the ensemble, TIES, LEGO; or by the first alone (selection). Once with the adapter of the text's own task in
the pool (the paper's "IID"), once without ("OOD")::

    python examples/reproduce/lego_table4.py --jobs 2

The paper has 48 adapters of Flan tasks, here there are a dozen; like the paper's, the tasks are shown in clusters, of
which the "OOD" case leaves the relatives. Embeddings are those of the base model, an adapter's examples 20 of its
training texts. A text's classes are known whatever it retrieves: they come with the frozen head of its task. The SVD of
the mean, at LEGO's rank, is added to the paper's methods.

As in table 3 the merges are measured as the paper has them, and at a norm, in mean norms of the three adapters, that is
chosen on validation texts for each method and case with the adapters of the first seed.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from adapters import at_norm, load_tasks
from backbones import MINILM
from evaluation import Evaluator
from lego_table3 import AS_PUBLISHED, CHOSEN, LEGO, NORMS
from minilm import embed
from processes import Processes
from report import Report, Table, mean_over_tasks, mean_spread, parse, parser, progress, seeds, standing
from tasks import load_task

from lorakit import (
    Adapter,
    AdapterRetriever,
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    LegoMerger,
    SVDMerger,
    TiesMerger,
)
from lorakit.base import BaseMerger

N_TEST, N_VALIDATION = 50, 20  # texts a task; the paper has 50
TOP, EXAMPLES = 3, 20
WITH_OWN, WITHOUT_OWN = "with own adapter", "without own adapter"
CASES = (WITH_OWN, WITHOUT_OWN)
SELECTION = "selection"
METHODS: dict[str, BaseMerger | None] = {
    SELECTION: None,
    "weight average": AverageMerger(),
    "ensemble": ConcatMerger(),
    "TIES": TiesMerger(space="factors"),
    "SVD": SVDMerger(k=16),
    LEGO: LegoMerger(random_state=0),
}
PAPERS = tuple(what for what in METHODS if what != "SVD")
TARGETS = (0.2, *NORMS)  # adapters of other tasks alone may be best at little
AS_IT_IS = 0.0  # a target of 0 stands for: not scaled
CLUSTERS = {
    "WordNet": ("wn_noun", "wn_verb", "wn_pos", "wn_rel"),
    "sentiment": ("movie", "amazon", "tweets"),
    "topic": ("icd10", "deb_section", "news20", "reuters8"),
    "language": ("langid", "proglang"),
    "writer": ("spam", "election"),
}
BASE, PERFECT = "base model", "perfect selection"

ByTask = dict[str, float]
Found = dict[tuple[str, str], dict[str, list[ByTask]]]  # by case and scale, and by method: accuracies, one a seed


class BaseEmbeddings:
    """Embeddings of texts by the base model, each made once."""

    def __init__(self) -> None:
        self._model = MINILM.load()
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return shape (texts, width)."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(new, embed(self._model, new).numpy(), strict=True))
        return np.array([self._known[text] for text in texts])


def main() -> None:
    """Choose the scales, run, report."""
    found = parser("LEGO's table 4: adapters retrieved for each text, and merged.")
    found.set_defaults(n_test=N_TEST, n_validation=N_VALIDATION)
    options = parse(found)
    tasks, merging = options.tasks, [what for what in METHODS if what != SELECTION]
    if len(tasks) <= TOP:
        raise SystemExit(f"a text retrieves {TOP} adapters without that of its own task: name {TOP + 1} tasks or more")
    with Processes(options.jobs) as processes:
        chosen = [(what, case) for case in CASES for what in merging]
        given = [(*unit, tasks, options.seeds[0], options.n_validation) for unit in chosen]
        targets: dict[tuple[str, str], float] = {}
        for (what, case), target in zip(chosen, processes.map(choose, given), strict=True):
            targets[what, case] = target
            progress(f"chosen norm {case}, {what}: {target:g}")
        units = [(what, case, seed) for seed in options.seeds for case in CASES for what in METHODS]
        asked = [
            (what, case, tasks, seed, "test", options.n_test, [AS_IT_IS, targets.get((what, case), AS_IT_IS)])
            for what, case, seed in units
        ]
        accuracies: Found = {(case, scale): {} for case in CASES for scale in (AS_PUBLISHED, CHOSEN)}
        for (what, case, seed), by_target in zip(units, processes.map(measure, asked), strict=True):
            at = by_target[targets.get((what, case), AS_IT_IS)]
            accuracies[case, AS_PUBLISHED].setdefault(what, []).append(by_target[AS_IT_IS])
            accuracies[case, CHOSEN].setdefault(what, []).append(at)
            progress(f"seed {seed}, {case}, {what}: {_mean(by_target[AS_IT_IS]):.3f}, scaled {_mean(at):.3f}")
    test = Evaluator("test", options.n_test)
    perfect = [
        {adapter.name: test.accuracy(adapter, adapter.name) for adapter in load_tasks(tasks, seed=seed)}
        for seed in options.seeds
    ]
    report = Report("lego_table4", options, numbers={"perfect": perfect, **_numbers(accuracies, targets)})
    references = {BASE: [test.accuracies(None, tasks)], PERFECT: perfect}
    hits = [retrieved(tasks, case, options) for case in CASES]
    report.tables += [table(accuracies, references, options), norm_table(targets, hits, options)]
    report.publish()


@cache
def embeddings() -> BaseEmbeddings:
    """Those of this process."""
    return BaseEmbeddings()


def retriever_of(pool: AdapterSet, merger: BaseMerger | None = None) -> AdapterRetriever:
    """A retriever over a pool; each adapter is represented by training texts of its task."""
    examples = {name: [text for text, _ in load_task(name).splits["train"][:EXAMPLES]] for name in pool.names}
    # each merge is asked for once: a cache would only hold memory
    return AdapterRetriever(embeddings(), top_k=TOP, merger=merger, cache_size=0).fit(pool, examples)


def mixed(retriever: AdapterRetriever, case: str, tasks: Sequence[str], evaluator: Evaluator) -> Iterator[Any]:
    """Mix the texts of all tasks; yield each merge that they need with the adapters in it and its texts' places.

    Yields
    ------
    merged : Adapter
        The merge.
    members : list of Adapter
        What it is a merge of: the adapters retrieved.
    rows : dict of str to ndarray of int
        By task, the positions of the texts that it is for.
    """
    places = [(task, i) for task in tasks for i in range(len(evaluator.labels(task)))]
    texts = [text for task in tasks for text in evaluator.texts(task)]
    exclude = None if case == WITH_OWN else [task for task, _ in places]
    names, _ = retriever.rank(texts, exclude=exclude)
    for merged, positions in retriever.merge_groups(texts, exclude=exclude):
        rows: dict[str, list[int]] = {}
        for position in positions:
            task, i = places[position]
            rows.setdefault(task, []).append(i)
        members = [retriever.adapters_[name] for name in names[positions[0]]]
        yield merged, members, {task: np.array(found) for task, found in rows.items()}


def measure(
    what: str, case: str, tasks: list[str], seed: int, split: str, n: int, targets: Sequence[float]
) -> dict[float, ByTask]:
    """Answer each text by its own merge, at several norms; accuracy of each task by norm."""
    evaluator = Evaluator(split, n)
    retriever = retriever_of(load_tasks(tasks, seed=seed), METHODS[what])
    right = {target: dict.fromkeys(tasks, 0) for target in targets}
    for merged, members, rows in mixed(retriever, case, tasks, evaluator):
        for target in right:
            adapter = scaled_to(merged, members, target)
            for task, scores in evaluator.scores_by_task(adapter, rows).items():
                right[target][task] += int((scores.argmax(axis=1) == evaluator.labels(task)[rows[task]]).sum())
    return {t: {task: found[task] / len(evaluator.labels(task)) for task in tasks} for t, found in right.items()}


def scaled_to(merged: Adapter, members: Sequence[Adapter], target: float) -> Adapter:
    """The merge at a multiple of its adapters' mean norm, or as it is."""
    return merged if target == AS_IT_IS else at_norm(merged, members, target)


def choose(what: str, case: str, tasks: list[str], seed: int, n: int) -> float:
    """Choose the norm of a method's merges in one case on validation texts; least of equals."""
    found = measure(what, case, tasks, seed, "validation", n, TARGETS)
    return max(TARGETS, key=lambda target: round(_mean(found[target]), 9))


def retrieved(tasks: list[str], case: str, options: argparse.Namespace) -> dict[str, float]:
    """What is retrieved: how often the own adapter, as the first and at all; and how many different merges it takes."""
    test = Evaluator("test", options.n_test)
    retriever = retriever_of(load_tasks(tasks, seed=options.seeds[0]))
    texts = [text for task in tasks for text in test.texts(task)]
    own = np.array([task for task in tasks for _ in test.texts(task)])
    names, _ = retriever.rank(texts, exclude=None if case == WITH_OWN else own.tolist())
    hits = names == own[:, None]
    merges = len({tuple(sorted(row)) for row in names.tolist()})
    return {"first": float(hits[:, 0].mean()), "any": float(hits.any(axis=1).mean()), "merges": merges}


def clustered(by_task: ByTask) -> dict[str, float]:
    """Mean accuracy of each cluster that has tasks, and over all tasks."""
    there = {name: [by_task[task] for task in tasks if task in by_task] for name, tasks in CLUSTERS.items()}
    return {name: float(np.mean(values)) for name, values in there.items() if values} | {"all": _mean(by_task)}


def table(found: Found, references: dict[str, list[ByTask]], options: argparse.Namespace) -> Table:
    """One row a case, scale and method; one column a cluster of tasks, and the mean over tasks."""
    rows = [["", "", what, *_cells(by_seed)] for what, by_seed in references.items()]
    for (case, scale), by_method in found.items():
        for what, by_seed in by_method.items():
            if scale == AS_PUBLISHED or what != SELECTION:
                rows.append([case, scale, what, *_cells(by_seed)])
    rows = _without_repeats(rows)
    caption = (
        f"Mean accuracy on mixed texts of {len(options.tasks)} tasks, {options.n_test} test texts each, of merges of "
        f"the {TOP} adapters that each text retrieves, {seeds(options.seeds)}."
    )
    titles = ["pool", "scale", "method", *clustered(references[BASE][0])]
    return Table("lego-table-4", titles, rows, caption, verdict(found))


def _cells(by_seed: list[ByTask]) -> list[str]:
    of_seeds = [clustered(by_task) for by_task in by_seed]
    return [mean_spread([c[name] for c in of_seeds]) for name in of_seeds[0]]


def _without_repeats(rows: list[list[str]]) -> list[list[str]]:
    """Leave the first two cells out where they are those of the row above."""
    shown = [rows[0]]
    for above, row in pairwise(rows):
        shown.append(["", "", *row[2:]] if row[:2] == above[:2] else row)
    return shown


def verdict(found: Found) -> str:
    """Compare LEGO with the best of the others, and what each loses with the own adapter."""
    sentences = []
    for (case, scale), by_method in found.items():
        scores = {what: mean_over_tasks(by_seed) for what, by_seed in by_method.items()}
        sentences.append(f"{scale.capitalize()}, {case}: {standing(scores, LEGO)}")
    first, second = (
        {what: np.mean(mean_over_tasks(found[case, AS_PUBLISHED][what])) for what in PAPERS} for case in CASES
    )
    lost = {what: 100 * (first[what] - second[what]) for what in PAPERS}
    shown = ", ".join(f"{what} loses {points:.1f}" for what, points in lost.items())
    sentences.append(f"Without the own adapter, as published, {shown} points.")
    paper = (
        "(The paper, 7b: LEGO is first in both cases, 0.2 points ahead of selection with and 5.2 ahead of TIES without "
        "the own adapter; LEGO loses 0.4 points without it, selection 8.2.)"
    )
    return " ".join([*sentences, paper])


def norm_table(
    targets: dict[tuple[str, str], float], hits: Sequence[dict[str, float]], options: argparse.Namespace
) -> Table:
    """The norms that were chosen, and what was retrieved."""
    methods = [what for what in METHODS if what != SELECTION]
    rows = [[what, *(f"{targets[what, case]:g}" for case in CASES)] for what in methods]
    caption = (
        "Norms of the merges, in mean norms of their adapters, chosen on "
        f"{options.n_validation} validation texts a task with the adapters of seed {options.seeds[0]}."
    )
    note = (
        f"The own adapter, where it is in the pool, is retrieved first for {100 * hits[0]['first']:.0f} % of the texts "
        f"and among the {TOP} for {100 * hits[0]['any']:.0f} %. The texts need {hits[0]['merges']:.0f} different "
        f"merges with it, and {hits[1]['merges']:.0f} without."
    )
    return Table("lego-table-4-norms", ["method", *CASES], rows, caption, note)


def _mean(by_task: ByTask) -> float:
    return float(np.mean(list(by_task.values())))


def _numbers(found: Found, targets: dict[tuple[str, str], float]) -> dict[str, Any]:
    return {
        "targets": {f"{what}, {case}": target for (what, case), target in targets.items()},
        "scores": {f"{case}, {scale}": by_method for (case, scale), by_method in found.items()},
    }


if __name__ == "__main__":
    main()
