"""
Beyond the papers: merges that nobody tuned
===========================================

Who merges a folder of adapters often has no texts to choose anything by. What is then best is not what wins when every
method gets the norm that suits it: a method that makes short merges loses by that alone. So each is taken as it comes,
and with ``scale='match'``, which gives each module of the merge the mean norm of the adapters' there and needs no texts
either, at equal rank. Two, four and all adapters are merged, as a method may be good for few and bad for many: every
task is in one group of each size::

    python examples/reproduce/beyond_untuned.py --jobs 2

What is best here is the candidate for the command line's default.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from adapters import load_tasks
from evaluation import Evaluator
from leaderboard import own
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds
from sklearn.base import clone
from standings import Right, accuracies, difference, right_of

from lorakit import CtMMerger, IsoMerger, LegoMerger, SVCMerger, SVDMerger, TiesMerger, TSVMerger, WUDIMerger
from lorakit.base import BaseMerger

N_TEST = 60
SIZES = (2, 4)  # of groups, beside all
RANKS = (8, 16)  # the adapters' own, and twice that, which is LEGO's
METHODS: dict[str, BaseMerger] = {
    "svd": SVDMerger(),
    "lego": LegoMerger(random_state=0),
    "lego, align svd": LegoMerger(align="svd", random_state=0),
    "ties delta": TiesMerger(space="delta"),
    "ties core": TiesMerger(space="core"),
    "tsv": TSVMerger(),
    "iso": IsoMerger(),
    "ctm": CtMMerger(),
    "svc": SVCMerger(),
    "wudi": WUDIMerger(),
}
AS_IT_COMES, MATCH = "as it comes", "match"
SCALES = {AS_IT_COMES: 1.0, MATCH: "match"}

Cell = tuple[str, str, int, int]  # method, scale, rank, size of groups
Results = dict[Cell, list[Right]]  # one a seed


def main() -> None:
    """Merge, measure, report."""
    command = parser("Merges at equal rank that nobody tuned.")
    command.set_defaults(n_test=N_TEST)
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="a table of these alone")
    options = parse(command)
    sizes = [*(size for size in SIZES if size < len(options.tasks)), len(options.tasks)]
    cells = [(what, scale, k, size) for what in options.methods for scale in SCALES for k in RANKS for size in sizes]
    units = [(cell, seed) for seed in options.seeds for cell in cells]
    results: Results = {cell: [] for cell in cells}
    with Processes(options.jobs) as processes:
        given = [(cell, options.tasks, seed, options.n_test) for cell, seed in units]
        for (cell, seed), right in zip(units, processes.map(measure, given), strict=True):
            results[cell].append(right)
            what, scale, k, size = cell
            progress(f"seed {seed}, {size} adapters, k = {k}, {what}, {scale}: {accuracies([right])[0]:.3f}")
    theirs = [own(options.tasks, seed, range(options.n_test)) for seed in options.seeds]
    base = right_of(None, options.tasks, Evaluator("test", options.n_test))
    report = Report("beyond_untuned", options)
    report.numbers = {", ".join(map(str, cell)): accuracies(found) for cell, found in results.items()}
    report.tables.append(table(results, base, theirs, options))
    report.publish()


def groups_of(tasks: Sequence[str], size: int) -> list[list[str]]:
    """Groups of neighbours in the list; what is left over joins the last."""
    n = max(1, len(tasks) // size)
    return [list(tasks[i * size : (i + 1) * size if i < n - 1 else len(tasks)]) for i in range(n)]


def measure(cell: Cell, tasks: list[str], seed: int, n: int) -> Right:
    """Merge every group, and see which test texts of its tasks the merge gets right."""
    what, scale, k, size = cell
    test, right = Evaluator("test", n), {}
    for group in groups_of(tasks, size):
        merger = clone(METHODS[what]).set_params(k=k, scale=SCALES[scale])
        right |= right_of(merger.fit(load_tasks(group, seed=seed)).merged_, group, test)
    return right


def table(results: Results, base: Right, own: Sequence[Right], options: argparse.Namespace) -> Table:
    """One row a method and scale, by the mean of all its columns, best first."""
    columns = list(dict.fromkeys((k, size) for _, _, k, size in results))
    rows = []
    for what, scale in ranking(results):
        cells = [mean_spread(accuracies(results[what, scale, k, size])) for k, size in columns]
        rows.append([what, scale, *cells, f"{_mean(results, what, scale):.3f}"])
    for name, found in (("own adapters", list(own)), ("base model", [base])):
        rows.append([name, "", *[""] * len(columns), mean_spread(accuracies(found))])
    caption = (
        f"Mean accuracy of merges of rank k of 2, 4 and all {len(options.tasks)} adapters of rank 8 on "
        f"{options.n_test} test texts of each of their tasks, {seeds(options.seeds)}; nothing is tuned."
    )
    titles = ["method", "scale", *(f"k = {k}, {size} adapters" for k, size in columns), "mean"]
    every = {what for what, *_ in results} == set(METHODS)
    return Table("beyond-untuned" if every else "beyond-untuned-some", titles, rows, caption, verdict(results))


def ranking(results: Results) -> list[tuple[str, str]]:
    """Methods with their scales, by their mean over ranks and sizes."""
    rows = dict.fromkeys((what, scale) for what, scale, _, _ in results)
    return sorted(rows, key=lambda row: -_mean(results, *row))


def verdict(results: Results) -> str:
    """Say who is first, who is not told apart from it, what the papers' two are behind, and what 'match' does."""
    first, *others = ranking(results)
    behind = {row: ahead(results, first, row) for row in others}
    near = [", ".join(row) for row, (points, error) in behind.items() if points <= 2 * error]
    told = f"not told apart from it: {'; '.join(near)}" if near else "ahead of all others"
    sentences = [f"{', '.join(first)} is first, {told}."]
    for row, (points, error) in behind.items():
        if row[0] in ("svd", "lego"):
            sentences.append(f"It is {100 * points:.1f} ± {100 * error:.1f} points ahead of {', '.join(row)}.")
    methods = dict.fromkeys(what for what, *_ in results)
    gains = [_mean(results, what, MATCH) - _mean(results, what, AS_IT_COMES) for what in methods]
    sentences.append(
        f"{MATCH!r} helps {sum(gain > 0 for gain in gains)} of {len(gains)} methods, by {100 * min(gains):+.1f} to "
        f"{100 * max(gains):+.1f} points."
    )
    return " ".join(sentences)


def ahead(results: Results, one: tuple[str, str], other: tuple[str, str]) -> tuple[float, float]:
    """How far one is ahead of the other over all ranks and sizes, and the standard error over texts."""

    def mean(row: tuple[str, str]) -> list[Right]:
        found = [by_seed for cell, by_seed in results.items() if cell[:2] == row]
        return [
            {task: np.mean([right[task] for right in of_seed], axis=0) for task in of_seed[0]}
            for of_seed in zip(*found, strict=True)
        ]

    return difference(mean(one), mean(other))


def _mean(results: Results, what: str, scale: str) -> float:
    return float(np.mean([accuracies(found) for cell, found in results.items() if cell[:2] == (what, scale)]))


if __name__ == "__main__":
    main()
