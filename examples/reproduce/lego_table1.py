"""
LEGO, table 1: merging an adapter with a permuted copy of itself
================================================================

The units of an adapter can be listed in any order; what it does stays the same. The paper merges each adapter with a
copy in another order, by averaging A and averaging B, and finds that most tasks lose. Here every method merges the two:
one that keeps the order-free meaning of an adapter gives the adapter back, and loses nothing::

    python examples/reproduce/lego_table1.py --n-test 400
"""

from collections.abc import Mapping

import numpy as np
from adapters import load_tasks, permuted
from evaluation import Evaluator
from report import Report, Table, mean_over_tasks, mean_spread, parse, parser, progress, seeds

from lorakit import Adapter, AdapterSet, AverageMerger, DareMerger, LegoMerger, SVDMerger, TiesMerger
from lorakit.base import BaseMerger

METHODS: dict[str, BaseMerger] = {
    "weight average": AverageMerger(),
    "TIES on A and B": TiesMerger(space="factors", density=0.5),
    "DARE on A and B": DareMerger(space="factors", random_state=0),
    "TIES on B A": TiesMerger(space="delta", density=0.5),
    "SVD": SVDMerger(),
    "LEGO": LegoMerger(random_state=0),
}
ORIGINAL = "original"
NOTHING = 0.01  # a loss up to here is called none

Scores = dict[str, dict[str, float]]  # accuracy by row of the table and task


def main() -> None:
    """Run it."""
    options = parse(parser("LEGO's table 1: an adapter merged with a permuted copy of itself."))
    test = Evaluator("test", options.n_test)
    by_seed = [one_seed(options.tasks, seed, test) for seed in options.seeds]
    report = Report("lego_table1", options, numbers=dict(zip(map(str, options.seeds), by_seed, strict=True)))
    report.tables.append(table(by_seed, options.tasks, options.n_test))
    report.publish()


def one_seed(tasks: list[str], seed: int, test: Evaluator) -> Scores:
    """Merge each task's adapter with its copy, and measure it on its own task."""
    rng = np.random.RandomState(seed)
    found: Scores = {what: {} for what in (ORIGINAL, *METHODS)}
    for adapter in load_tasks(tasks, seed=seed):
        pair = AdapterSet([adapter, permuted(adapter, rng)])
        for what, merged in {ORIGINAL: adapter, **merges(pair)}.items():
            found[what][adapter.name] = test.accuracy(merged, adapter.name)
        lost = found[ORIGINAL][adapter.name] - found["weight average"][adapter.name]
        progress(f"seed {seed}: {adapter.name}: the weight average loses {100 * lost:.1f} points")
    return found


def merges(pair: AdapterSet) -> Mapping[str, Adapter]:
    """Merge an adapter and its copy by every method, to the adapter's rank."""
    k = max(pair[0].ranks)
    return {what: merger.set_params(k=k).fit(pair).merged_ for what, merger in METHODS.items()}


def table(by_seed: list[Scores], tasks: list[str], n: int) -> Table:
    """One row a method and column a task: means over seeds, then the mean over tasks with its spread over seeds."""
    rows = []
    for what in (ORIGINAL, *METHODS):
        scores = [seed[what] for seed in by_seed]
        changes = [
            a - b for a, b in zip(mean_over_tasks(scores), mean_over_tasks([s[ORIGINAL] for s in by_seed]), strict=True)
        ]
        cells = [mean_spread([np.mean([s[task] for s in scores])]) for task in tasks]
        change = "" if what == ORIGINAL else mean_spread([100 * c for c in changes], digits=1)
        rows.append([what, *cells, mean_spread(mean_over_tasks(scores)), change])
    caption = (
        f"Accuracy on {n} test texts a task of adapters merged with a permuted copy of themselves, {seeds(by_seed)}; "
        "the change of the mean is in points."
    )
    return Table("lego-table-1", ["method", *tasks, "mean", "change"], rows, caption, verdict(by_seed, tasks))


def verdict(by_seed: list[Scores], tasks: list[str]) -> str:
    """Say how many tasks each method loses on, and by how much at most."""
    sentences = []
    for what in METHODS:
        lost = {task: np.mean([seed[ORIGINAL][task] - seed[what][task] for seed in by_seed]) for task in tasks}
        worst = max(lost, key=lambda task: lost[task])
        fallen = sum(loss > NOTHING for loss in lost.values())
        most = f", at most {100 * lost[worst]:.1f} points ({worst})" if fallen else ""
        sentences.append(f"{what} loses on {fallen} of {len(tasks)} tasks{most}.")
    return f"By means over seeds, {100 * NOTHING:g} point counting as none: {' '.join(sentences)}"


if __name__ == "__main__":
    main()
