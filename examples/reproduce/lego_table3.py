"""
LEGO, table 3: many tasks in one adapter, and tasks that no adapter was trained for
===================================================================================

The paper merges the adapters of seven tasks and judges the merge on these and on two tasks that it has not seen. Here
seven, and three that are left out: two kinds of sentiment (movie reviews and tweets are seen) and verbs (nouns are)::

    python examples/reproduce/lego_table3.py --jobs 2

Its baselines work on A and B, as here: their averages, task arithmetic with its coefficient chosen on validation
texts, TIES, DARE, DELLA; and the ensemble, the mean of the outputs, which is the exact mean of the updates at the sum
of their ranks. Densities are lorakit's defaults, LEGO is at the paper's k = 2 r; none of them is tuned.

How large a merge is counts as much as the method, and the methods differ in it by a factor of five. So each is measured
twice: as the paper has it, and at a scale chosen on validation texts of the seen tasks with the adapters of the first
seed. (Task arithmetic is the weight average at a chosen scale, both times.) Two more methods stand beside LEGO there,
at its rank: the mean of the updates cut by SVD, and TIES on the updates.

The paper's adapters are Llama-2's, of one script as it seems. Adapters of one script that sets its seed once for each
begin with the same A, and their A stay alike: what works on A and B then suffers less. A second table has both cases.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from adapters import SCALES, at_norm, best_scale, load_tasks, mean_norm, norm
from evaluation import Evaluator
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds, standing
from sklearn.base import clone
from standings import Right, by_task, difference, right_of, right_of_own
from tasks import available
from torch.nn.functional import cosine_similarity

from lorakit import (
    Adapter,
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    DareMerger,
    DellaMerger,
    LegoMerger,
    SVDMerger,
    TaskArithmeticMerger,
    TiesMerger,
)
from lorakit.base import BaseMerger

SEEN = ("icd10", "langid", "wn_noun", "wn_pos", "deb_section", "movie", "tweets")
LEFT_OUT = ("amazon", "nyt", "wn_verb")
NORMS = (*SCALES, 2.7, 3.3, 4.0)  # TIES and DELLA make large merges of A and B, and do best at large norms
LEGO, AVERAGE, ARITHMETIC = "LEGO", "weight average", "task arithmetic"
PAPERS: dict[str, BaseMerger] = {
    AVERAGE: AverageMerger(),
    "ensemble": ConcatMerger(),
    ARITHMETIC: TaskArithmeticMerger(space="factors"),
    "TIES": TiesMerger(space="factors"),
    "DARE": DareMerger(space="factors", random_state=0),
    "DELLA": DellaMerger(space="factors", random_state=0),
    LEGO: LegoMerger(random_state=0),
}
AT_LEGOS_RANK: dict[str, BaseMerger] = {"SVD": SVDMerger(), "TIES on B A": TiesMerger(space="delta")}
METHODS = PAPERS | AT_LEGOS_RANK
AS_PUBLISHED, CHOSEN = "as published", "scale chosen"
ROWS = {
    AS_PUBLISHED: tuple(PAPERS),
    CHOSEN: tuple(what for what in METHODS if what != AVERAGE),  # at a chosen scale it is task arithmetic
}
BASE, OWN = "base model", "own adapters"
COMPARED = (AVERAGE, "ensemble", "TIES", LEGO)  # in the table of starts

Found = dict[str, dict[str, list[Right]]]  # by scale and method: one a seed


@dataclass(frozen=True)
class Pool:
    """Which adapters are merged: those of some tasks, of one seed."""

    tasks: tuple[str, ...]
    seed: int
    ranks: Mapping[str, int] = field(default_factory=dict)  # where not 8
    shared_start: bool = False

    def load(self) -> AdapterSet:
        """Read them."""
        return load_tasks(self.tasks, seed=self.seed, ranks=self.ranks, shared_start=self.shared_start)


def main() -> None:
    """Choose the scales, run, report."""
    found = parser("LEGO's table 3: merges of many tasks, on these and on tasks left out.")
    found.add_argument(
        "--shared-start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also compare with adapters that began at the same A, of the first seed (not with --quick)",
    )
    options = parse(found, SEEN)
    tasks, others = options.tasks, left_out(options.tasks, options.quick)
    with Processes(options.jobs) as processes:
        pools = [Pool(tuple(tasks), seed) for seed in options.seeds]
        targets, right, norms = run(pools, METHODS, others, options, processes)
        report = Report("lego_table3", options, numbers={"targets": targets, "scores": numbers(right), "norms": norms})
        test = Evaluator("test", options.n_test)
        references = {
            BASE: [right_of(None, [*tasks, *others], test)] * len(pools),
            OWN: [right_of_own(p.load(), test) for p in pools],
        }
        report.tables.append(table(right, references, tasks, others, options))
        report.tables.append(norm_table(norms, targets, options))
        if options.shared_start and not options.quick:
            shared = Pool(tuple(tasks), options.seeds[0], shared_start=True)
            found_shared = run([shared], COMPARED, [], options, processes)
            report.tables.append(starts_table(pools[0], shared, right, found_shared[1], options))
            report.numbers["shared start"] = numbers(found_shared[1])
    report.publish()


def left_out(tasks: Iterable[str], quick: bool) -> list[str]:
    """The tasks that no merged adapter was trained for; of a quick run one."""
    found = available([task for task in LEFT_OUT if task not in tasks])
    return found[:1] if quick else found


def run(
    pools: Sequence[Pool],
    methods: Iterable[str],
    others: Sequence[str],
    options: argparse.Namespace,
    processes: Processes,
) -> tuple[dict[str, float], Found, dict[str, float]]:
    """Choose each method's scale with the first pool, and measure its merges of every pool at both scales.

    Returns
    -------
    targets, right, norms
        By method: the chosen norm in mean norms of the adapters; for each scale which texts the merge of each pool gets
        right; and the norm that the merges of the first pool have as published.
    """
    methods = list(methods)
    given = [(pools[0], what, options.n_validation) for what in methods]
    targets: dict[str, float] = {}
    for what, target in zip(methods, processes.map(choose, given), strict=True):
        targets[what] = target
        progress(f"chosen norm of {what}: {target:g}")
    units = [(pool, what) for pool in pools for what in methods]
    measured = processes.map(measure, [(*unit, targets[unit[1]], others, options.n_test) for unit in units])
    right: Found = {AS_PUBLISHED: {}, CHOSEN: {}}
    norms: dict[str, float] = {}
    for (pool, what), (by_scale, size) in zip(units, measured, strict=True):
        norms.setdefault(what, size)
        for scale, found in by_scale.items():
            right[scale].setdefault(what, []).append(found)
        shown = ", ".join(f"{accuracy(found, pool.tasks):.3f} {scale}" for scale, found in by_scale.items())
        progress(f"seed {pool.seed}, {what}: {shown}")
    return targets, right, norms


def merge(what: str, adapters: AdapterSet) -> Adapter:
    """Merge by a method of METHODS; those at LEGO's rank get twice the adapters' mean rank."""
    merger = clone(METHODS[what])
    if what in AT_LEGOS_RANK:
        merger.set_params(k=twice_the_rank(adapters))
    return merger.fit(adapters).merged_


def twice_the_rank(adapters: AdapterSet) -> int:
    """LEGO's default rank: twice the mean rank of the adapters."""
    return round(2 * float(np.mean([max(adapter.ranks) for adapter in adapters])))


def choose(pool: Pool, what: str, n: int) -> float:
    """Choose the norm of a method's merge, in mean norms of the adapters, on validation texts of their tasks."""
    adapters = pool.load()
    return best_scale(merge(what, adapters), adapters, Evaluator("validation", n), pool.tasks, NORMS)


def measure(pool: Pool, what: str, target: float, others: Sequence[str], n: int) -> tuple[dict[str, Right], float]:
    """Which test texts a merge gets right, as published and at the chosen norm; and its norm as published."""
    adapters, test = pool.load(), Evaluator("test", n)
    merged, tasks = merge(what, adapters), [*pool.tasks, *others]
    at_target = right_of(at_norm(merged, adapters, target), tasks, test)
    published = at_target if what == ARITHMETIC else right_of(merged, tasks, test)
    size = norm(merged) / mean_norm(adapters)
    return {AS_PUBLISHED: published, CHOSEN: at_target}, size


def accuracy(right: Right, tasks: Iterable[str]) -> float:
    """Mean accuracy over tasks."""
    return float(np.mean([right[task].mean() for task in tasks]))


def table(
    right: Found,
    references: Mapping[str, list[Right]],
    tasks: Sequence[str],
    others: Sequence[str],
    options: argparse.Namespace,
) -> Table:
    """One row a scale and method, one column a task, and the means over seen tasks, left-out tasks and all."""
    rows = [["", what, *_cells(found, tasks, others if what == BASE else ())] for what, found in references.items()]
    for scale, methods in ROWS.items():
        for what in methods:
            behind, error = difference(right[scale][what], right[scale][LEGO])
            against = "" if what == LEGO else f"{100 * behind:+.1f} ± {100 * error:.1f}"
            first = scale if what == methods[0] else ""
            rows.append([first, what, *_cells(right[scale][what], tasks, others), against])
    caption = (
        f"Accuracy of merges of {len(tasks)} adapters on their tasks and on {len(others)} that are left out, "
        f"{options.n_test} test texts each, {seeds(options.seeds)}. The last column: points more than LEGO, mean of "
        "all tasks, with the standard error over texts."
    )
    titles = ["scale", "method", *tasks, "seen", *([*others, "left out", "all"] if others else []), "against LEGO"]
    rows = [row + [""] * (len(titles) - len(row)) for row in rows]
    return Table("lego-table-3", titles, rows, caption, verdict(right, tasks, others))


def _cells(found: list[Right], tasks: Sequence[str], others: Sequence[str]) -> list[str]:
    """Accuracy on each task and the means over seeds; of no others, of the seen tasks only."""
    cells = []
    for group in (tasks, others):
        if group:
            cells += [mean_spread([np.mean([f[task].mean() for f in found])]) for task in group]
            cells.append(mean_spread([accuracy(f, group) for f in found]))
    return cells + ([mean_spread([accuracy(f, [*tasks, *others]) for f in found])] if others else [])


def verdict(right: Found, tasks: Sequence[str], others: Sequence[str]) -> str:
    """Say whether LEGO is ahead of the best of the others, and how often."""
    groups = {"seen tasks": tasks}
    if others:
        groups |= {"left-out tasks": others, "all tasks": [*tasks, *others]}
    sentences = []
    for scale, methods in ROWS.items():
        for which, group in groups.items():
            scores = {what: [accuracy(f, group) for f in right[scale][what]] for what in methods}
            sentences.append(f"{scale.capitalize()}, {which}: {standing(scores, LEGO)}")
    paper = (
        "(The paper, all tasks: LEGO ahead of the best other, TIES, by 3.9 points on the 7b and 0.7 on the 13b model.)"
    )
    return " ".join([*sentences, paper])


def norm_table(norms: Mapping[str, float], targets: Mapping[str, float], options: argparse.Namespace) -> Table:
    """The norms that merges have as published, and those that were chosen."""
    rows = [[what, "chosen" if what == ARITHMETIC else f"{norms[what]:.2f}", f"{targets[what]:g}"] for what in METHODS]
    caption = (
        "Norms of the merges, in mean norms of the adapters: as published, and as chosen on "
        f"{options.n_validation} validation texts a seen task with the adapters of seed {options.seeds[0]}."
    )
    return Table("lego-table-3-norms", ["method", AS_PUBLISHED, "chosen"], rows, caption)


def starts_table(own_pool: Pool, shared: Pool, right: Found, of_shared: Found, options: argparse.Namespace) -> Table:
    """The same merges of adapters that began at the same A, beside those that did not."""
    rows = []
    for what in COMPARED:
        cells = [mean_spread([accuracy(f[scale][what][0], own_pool.tasks)]) for f in (right, of_shared) for scale in f]
        rows.append([what, *cells])
    alike = [round(mean_cosine(pool.load()), 2) + 0.0 for pool in (own_pool, shared)]  # + 0.0: not -0.00
    note = (
        f"Row i of one adapter's A and row i of another's have a mean cosine of {alike[0]:.2f} where each adapter has "
        f"a start of its own, and of {alike[1]:.2f} where they share one."
    )
    caption = (
        f"Mean accuracy on the seen tasks of merges of adapters with starts of their own and with a shared start, "
        f"{options.n_test} test texts each, seed {own_pool.seed}; scales are chosen for each."
    )
    titles = ["method", *(f"{start}, {scale}" for start in ("own starts", "shared start") for scale in right)]
    return Table("lego-table-3-starts", titles, rows, caption, note)


def mean_cosine(adapters: AdapterSet) -> float:
    """Mean cosine of row i of one adapter's A and row i of another's, over modules, rows and pairs of adapters."""
    found = [
        cosine_similarity(one[module].A.float(), other[module].A.float()).mean().item()
        for i, one in enumerate(adapters)
        for other in adapters[i + 1 :]
        for module in one
    ]
    return float(np.mean(found)) if found else 1.0


def numbers(right: Found) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Accuracies by scale, method, seed and task."""
    return {scale: {what: by_task(found) for what, found in of.items()} for scale, of in right.items()}


if __name__ == "__main__":
    main()
