"""
LoRA Merging with SVD, figure 1: linear mode connectivity
=========================================================

What the loss does on the straight line from one adapter to another. Of two adapters the line through their updates is
that of the multiplied merge, the line through A and B that of the direct merge. The paper calls two adapters connected
if the loss is nowhere above the chord between the two ends, and finds that multiplied merges always are and direct ones
hardly ever::

    python examples/reproduce/svd_figure1.py --jobs 2

The loss is the mean cross-entropy on the test texts of both tasks, each at its full weight. A second table does the
same between merges of all tasks, on all of them: whether methods end in one basin. There each merge has the norm that
was chosen on validation texts with the adapters of the first seed, and the line is through the updates.

The paper has four pairs; here neighbours in the list of tasks make as many pairs as there are. Its loss at each end is
over both tasks too, so that a chord is high: each end knows one of the two. That is why a merge can be far below it.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil
from pathlib import Path

import numpy as np
from adapters import at_norm, best_scale, load_tasks
from evaluation import Evaluator
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds
from scipy.special import log_softmax

from lorakit import Adapter, AverageMerger, LegoMerger, SVDMerger, TSVMerger
from lorakit.base import BaseMerger
from lorakit.metrics import ModeConnectivity, mode_connectivity

ALPHAS = 11
ALPHAS_OF_MERGES = 5  # every task's texts at each: the dearest part
SPACES = {"updates": "multiplied", "factors": "direct"}
MERGERS: dict[str, BaseMerger] = {
    "SVD": SVDMerger(k=16),
    "LEGO": LegoMerger(k=16, random_state=0),
    "TSV": TSVMerger(k=16),
    "direct": AverageMerger(),
}
FLAT = 1e-6  # height above the chord that is round-off

Curves = dict[str, dict[str, ModeConnectivity]]  # by pair and space


def main() -> None:
    """Run, report, draw."""
    options = parse(parser("Figure 1 of LoRA Merging with SVD: linear mode connectivity."))
    pairs = list(zip(options.tasks[0::2], options.tasks[1::2], strict=False))
    ends = list(combinations(MERGERS, 2))
    by_seed: list[Curves] = [{} for _ in options.seeds]
    of_merges: list[Curves] = [{} for _ in options.seeds]
    with Processes(options.jobs) as processes:
        units = [(pair, seed) for seed in options.seeds for pair in pairs]
        measured = processes.map(between_tasks, [(*unit, options.n_test) for unit in units])
        for (pair, seed), found in zip(units, measured, strict=True):
            by_seed[options.seeds.index(seed)][", ".join(pair)] = found
            progress(f"seed {seed}, {pair}: " + _shown(found))
        given = [(options.tasks, what, options.seeds[0], options.n_validation) for what in MERGERS]
        targets = dict(zip(MERGERS, processes.map(choose, given), strict=True))
        progress(f"chosen norms: {targets}")
        units = [(line, seed) for seed in options.seeds for line in ends]
        given = [(options.tasks, line, targets, seed, half(options.n_test)) for line, seed in units]
        for (line, seed), curve in zip(units, processes.map(between_merges, given), strict=True):
            of_merges[options.seeds.index(seed)][", ".join(line)] = {"updates": curve}
            progress(f"seed {seed}, {line}: barrier {curve.barrier:.3f}")
    report = Report("svd_figure1", options)
    report.numbers = {"tasks": _numbers(by_seed), "merges": _numbers(of_merges), "targets": targets}
    picture = report.figure("svd_figure1.png")
    draw(by_seed, picture)
    first = table(by_seed, options)
    report.tables.append(Table(first.name, first.titles, first.rows, first.caption, first.note, picture))
    report.tables.append(merges_table(of_merges, targets, options))
    report.publish()


def half(n: int) -> int:
    """How many texts a task the lines between merges are measured on."""
    return ceil(n / 2)


def cross_entropy(adapter: Adapter, tasks: Sequence[str], evaluator: Evaluator) -> float:
    """Mean over the tasks of the mean cross-entropy on each one's texts."""
    losses = []
    for task, scores in evaluator.scores_by_task(adapter, dict.fromkeys(tasks)).items():
        labels = evaluator.labels(task)
        losses.append(-log_softmax(scores.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())
    return float(np.mean(losses))


def between_tasks(pair: tuple[str, str], seed: int, n: int) -> dict[str, ModeConnectivity]:
    """The lines between two tasks' adapters, through updates and through factors."""
    y, x = load_tasks(pair, seed=seed)
    return lines(x, y, pair, Evaluator("test", n), ALPHAS)


def lines(
    x: Adapter, y: Adapter, tasks: Sequence[str], evaluator: Evaluator, alphas: int
) -> dict[str, ModeConnectivity]:
    """The lines from y to x, with the loss on some tasks, by space."""

    def loss(adapter: Adapter) -> float:
        return cross_entropy(adapter, tasks, evaluator)

    return {space: mode_connectivity(x, y, loss, alphas=alphas, space=space) for space in SPACES}


def choose(tasks: list[str], what: str, seed: int, n: int) -> float:
    """Choose the norm of one merge of all tasks."""
    adapters = load_tasks(tasks, seed=seed)
    return best_scale(MERGERS[what].fit(adapters).merged_, adapters, Evaluator("validation", n), tasks)


def between_merges(
    tasks: list[str], ends: tuple[str, str], targets: Mapping[str, float], seed: int, n: int
) -> ModeConnectivity:
    """The line through the updates of two merges of all tasks."""
    adapters, test = load_tasks(tasks, seed=seed), Evaluator("test", n)
    y, x = (at_norm(MERGERS[what].fit(adapters).merged_, adapters, targets[what]).renamed(what) for what in ends)
    return mode_connectivity(x, y, lambda adapter: cross_entropy(adapter, tasks, test), alphas=ALPHAS_OF_MERGES)


def table(by_seed: list[Curves], options: argparse.Namespace) -> Table:
    """One row a pair: the loss at the ends and in the middle, and the barriers."""
    rows = []
    for pair in by_seed[0]:
        row = [pair, mean_spread([np.mean(seed[pair]["updates"].losses[[0, -1]]) for seed in by_seed])]
        for space in SPACES:
            curves = [seed[pair][space] for seed in by_seed]
            middle = [float(np.interp(0.5, curve.alphas, curve.losses)) for curve in curves]
            row += [mean_spread(middle), mean_spread([curve.barrier for curve in curves])]
        rows.append(row)
    titles = [
        "tasks",
        "chord, middle",
        *(f"{how}, {what}" for how in SPACES.values() for what in ("middle", "barrier")),
    ]
    caption = (
        f"Cross-entropy on {options.n_test} test texts of each of the two tasks, on the line between their adapters: "
        f"the middle of the chord, and the middle of the line and its barrier, through the updates (multiplied) and "
        f"through A and B (direct), {seeds(by_seed)}."
    )
    return Table("svd-figure-1", titles, rows, caption, verdict(by_seed))


def verdict(by_seed: list[Curves]) -> str:
    """Say how many lines are connected, and how the direct merge's compare with the multiplied one's."""
    sentences = []
    for space, how in SPACES.items():
        barriers = [seed[pair][space].barrier for seed in by_seed for pair in seed]
        connected = sum(barrier <= FLAT for barrier in barriers)
        sentences.append(
            f"The {how} line is nowhere above the chord in {connected} of {len(barriers)} cases; its largest "
            f"barrier is {max(barriers):.3f}."
        )
    higher = [
        bool((seed[p]["factors"].losses >= seed[p]["updates"].losses - FLAT)[1:-1].all())
        for seed in by_seed
        for p in seed
    ]
    sentences.append(f"The direct line is nowhere below the multiplied one in {sum(higher)} of {len(higher)}.")
    return " ".join([*sentences, "(The paper: multiplied connected on all pairs, direct on one.)"])


def merges_table(by_seed: list[Curves], targets: Mapping[str, float], options: argparse.Namespace) -> Table:
    """One row a pair of merges."""
    rows = []
    for pair in by_seed[0]:
        curves = [seed[pair]["updates"] for seed in by_seed]
        ends = [mean_spread([curve.losses[i] for curve in curves]) for i in (0, -1)]
        middle = mean_spread([float(np.interp(0.5, curve.alphas, curve.losses)) for curve in curves])
        barrier, depth = (mean_spread([getattr(curve, what) for curve in curves]) for what in ("barrier", "depth"))
        rows.append([pair, *ends, middle, barrier, depth])
    barriers = [curves["updates"].barrier for seed in by_seed for curves in seed.values()]
    flat = sum(barrier <= FLAT for barrier in barriers)
    note = (
        f"{flat} of {len(barriers)} lines between merges are nowhere above the chord; the largest barrier is "
        f"{max(barriers):.3f}."
    )
    norms = ", ".join(f"{what} {target:g}" for what, target in targets.items())
    caption = (
        f"Cross-entropy on {half(options.n_test)} test texts of each of all {len(options.tasks)} tasks, on the line "
        f"through the updates of two merges of all adapters, rank 16 (direct: 8), {seeds(by_seed)}. Chosen norms, in "
        f"mean norms of the adapters: {norms}."
    )
    return Table(
        "svd-figure-1-merges", ["merges", "first", "second", "middle", "barrier", "depth"], rows, caption, note
    )


def draw(by_seed: list[Curves], path: Path) -> None:
    """Draw each pair's two lines, means over seeds with the range over them as a band, and the chord."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    pairs = list(by_seed[0])
    rows = ceil(len(pairs) / 4)
    columns = ceil(len(pairs) / rows)
    size = (2.8 * columns, 2.5 * rows + 0.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for ax in grid.flat[len(pairs) :]:
        ax.set_visible(False)
    looks = {  # Okabe and Ito's
        "updates": ("#0072B2", "o", "-"),
        "factors": ("#D55E00", "s", "--"),
    }
    for ax, pair in zip(grid.flat, pairs, strict=False):
        for space, (colour, marker, dashes) in looks.items():
            losses = np.array([seed[pair][space].losses for seed in by_seed])  # (seeds, alphas)
            alphas = by_seed[0][pair][space].alphas
            name = f"{SPACES[space]} ({'B A' if space == 'updates' else 'A and B'})"
            ax.plot(
                alphas, losses.mean(axis=0), color=colour, marker=marker, linestyle=dashes, markersize=4, label=name
            )
            ax.fill_between(alphas, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        ends = losses.mean(axis=0)[[0, -1]]
        ax.plot([0, 1], ends, color="black", linestyle=":", linewidth=1, label="chord", zorder=0)
        first, second = pair.split(", ")
        ax.set_title(f"{first} to {second}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#DDDDDD", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.set_xlabel(r"$\alpha$")
    for ax in grid[:, 0]:
        ax.set_ylabel("cross-entropy, both tasks")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _numbers(by_seed: list[Curves]) -> list[dict[str, dict[str, object]]]:
    return [
        {
            pair: {space: {"losses": c.losses.tolist(), "barrier": c.barrier} for space, c in curves.items()}
            for pair, curves in seed.items()
        }
        for seed in by_seed
    ]


def _shown(curves: Mapping[str, ModeConnectivity]) -> str:
    return ", ".join(f"barrier through {space} {curve.barrier:.3f}" for space, curve in curves.items())


if __name__ == "__main__":
    main()
