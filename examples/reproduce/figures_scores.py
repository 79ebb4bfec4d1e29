"""
Pictures of scores: LEGO's figures 7 and 8
==========================================

Each function measures, draws one picture and returns the table of what it shows.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from adapters import at_norm, load_tasks
from drawing import GREY, curves, legend_below, panels, save
from evaluation import Evaluator
from figures_norms import few
from leaderboard import FIRST_SCALE, own, walk
from lego_tables67 import AS_PUBLISHED, CHOSEN, DIVERSE, SCALES
from lego_tables67 import choose as choose_norm
from lego_tables67 import measure as measure_merge
from processes import Processes
from report import Report, Table, mean_spread, progress, seeds
from standings import Right, normalised

from lorakit import AdapterSet, LegoMerger, rank_path

KS = (4, 8, 16, 32, 56)  # half to seven times the adapters' rank
BOTH = "both"
REWEIGHTING = {
    "none": LegoMerger(norm=None, output_scale=None),
    "parameters": LegoMerger(output_scale=None),
    "output": LegoMerger(norm=None),
    BOTH: LegoMerger(),
}
BEST = "both, chosen norm"
COUNTS = (2, 4, 8)  # adapters that are merged, beside all
METHODS = ("average", "ensemble", "TIES", "LEGO")  # of the paper's figure 8


def figure7(options: argparse.Namespace, report: Report) -> Table:
    """Accuracy against the rank, by what is reweighted."""
    tasks = few(options)
    first = load_tasks(tasks, seed=options.seeds[0])
    ks = ranks(first)
    units = [(what, seed) for seed in options.seeds for what in REWEIGHTING]
    with Processes(options.jobs) as processes:
        given = [(tasks, k, options.seeds[0], options.n_validation) for k in ks]
        targets = dict(zip(ks, processes.map(choose_at, given), strict=True))
        progress(f"chosen norms: {targets}")
        given = [(tasks, what, seed, targets if what == BOTH else {}, options.n_test) for what, seed in units]
        found: dict[str, list[list[float]]] = {what: [] for what in (*REWEIGHTING, BEST)}  # seeds, ranks
        for (_, seed), by_name in zip(units, processes.map(measure_ranks, given), strict=True):
            for name, values in by_name.items():
                found[name].append(values)
                progress(f"seed {seed}, {name}: {', '.join(f'{value:.3f}' for value in values)}")
    base = Evaluator("test", options.n_test).mean(None, tasks)
    figure, (ax,) = panels(1, size=(6.4, 4.0))
    curves(ax, ks, found, log=True)
    ax.axhline(base, color=GREY, linewidth=1, linestyle=":", zorder=0, label="base model")
    ax.set_xlabel("rank of the merge, $k$")
    ax.set_ylabel("mean accuracy")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), title="reweighted")
    picture = report.figure("lego_figure7.png")
    save(figure, picture)
    rows = [
        [what, *(mean_spread([seed[i] for seed in values]) for i in range(len(ks)))] for what, values in found.items()
    ]
    rows.append(["norm that is chosen", *(f"{targets[k]:g}" for k in ks)])
    report.numbers["figure 7"] = {"ks": ks, "accuracies": found, "targets": targets, "base": base}
    caption = (
        f"Figure 7, what the reweightings do: mean accuracy of LEGO's merges of {len(tasks)} adapters on their tasks, "
        f"{options.n_test} test texts each, by rank, {seeds(options.seeds)}; and with both, at the norm (in mean norms "
        f"of the adapters) that validation texts chose for each rank with the adapters of the first seed. Base model: "
        f"{base:.3f}."
    )
    note = reweighting_verdict(found, ks)
    return Table("lego-figure-7", ["reweighted", *(f"k = {k}" for k in ks)], rows, caption, note, picture)


def ranks(adapters: AdapterSet) -> list[int]:
    """Ranks of figure 7 that there are units for."""
    return [k for k in KS if k <= sum(max(adapter.ranks) for adapter in adapters)]


def choose_at(tasks: Sequence[str], k: int, seed: int, n: int) -> float:
    """Choose the norm of LEGO's merge at one rank on validation texts."""
    adapters, validation = load_tasks(tasks, seed=seed), Evaluator("validation", n)
    merged = LegoMerger(k=k, random_state=seed).fit(adapters).merged_
    return walk(lambda target: validation.mean(at_norm(merged, adapters, target), tasks), FIRST_SCALE, SCALES)[0]


def measure_ranks(
    tasks: Sequence[str], what: str, seed: int, targets: dict[int, float], n: int
) -> dict[str, list[float]]:
    """Accuracy at each rank of one way of reweighting; and, where norms are given, at those."""
    adapters, test = load_tasks(tasks, seed=seed), Evaluator("test", n)
    path = rank_path(REWEIGHTING[what].set_params(random_state=seed), adapters, ranks(adapters))
    found = {what: [test.mean(fitted.merged_, tasks) for fitted in path.values()]}
    if targets:
        found[BEST] = [test.mean(at_norm(path[k].merged_, adapters, target), tasks) for k, target in targets.items()]
    return found


def reweighting_verdict(found: dict[str, list[list[float]]], ks: Sequence[int]) -> str:
    """Say which way is best at each rank, and how steady each is over the ranks."""
    means = {what: np.mean(values, axis=0) for what, values in found.items()}
    published = (BOTH, *(what for what in REWEIGHTING if what != BOTH))  # the first of equals
    best = [max(published, key=lambda what, i=i: round(means[what][i], 9)) for i in range(len(ks))]
    spans = ", ".join(f"{what} {100 * np.ptp(values):.1f}" for what, values in means.items())
    lost = ", ".join(f"{100 * (means[BEST][i] - means[BOTH][i]):+.1f}" for i in range(len(ks)))
    by_rank = ", ".join(f"{k}: {what}" for k, what in zip(ks, best, strict=True))
    return (
        f"Both reweightings are best at {sum(what == BOTH for what in best)} of {len(ks)} ranks (best by rank: "
        f"{by_rank}). Points between the best and the worst rank: {spans}. What a chosen norm adds to both, in points "
        f"by rank: {lost}. (The paper: both together are best and steady over the ranks.)"
    )


def figure8(options: argparse.Namespace, report: Report) -> Table:
    """Normalised accuracy against the number of adapters that are merged."""
    order = [task for task in DIVERSE if task in options.tasks]
    order += [task for task in options.tasks if task not in order]
    counts = [*(n for n in COUNTS if n < len(order)), len(order)]
    units = [(what, n) for n in counts for what in METHODS]
    found: dict[str, list[list[float]]] = {
        f"{what}, {scale}": [[] for _ in options.seeds] for what in METHODS for scale in (AS_PUBLISHED, CHOSEN)
    }  # by method and scale: seeds, counts
    with Processes(options.jobs) as processes:
        given = [(order[:n], what, options.seeds[0], options.n_validation) for what, n in units]
        targets = dict(zip(units, processes.map(choose_norm, given), strict=True))
        singles: list[Right] = list(
            processes.map(own, [(order, seed, range(options.n_test)) for seed in options.seeds])
        )
        for i, seed in enumerate(options.seeds):
            given = [(order[:n], what, seed, targets[what, n], options.n_test) for what, n in units]
            for (what, n), (by_scale, _) in zip(units, processes.map(measure_merge, given), strict=True):
                single = {task: singles[i][task] for task in order[:n]}
                for scale, right in by_scale.items():
                    found[f"{what}, {scale}"][i] += normalised([right], [single])
                progress(f"seed {seed}, {n} adapters, {what}: {found[f'{what}, {AS_PUBLISHED}'][i][-1]:.3f}")
    figure, axes = panels(2, share_y=True)
    for ax, scale in zip(axes, (AS_PUBLISHED, CHOSEN), strict=True):
        curves(ax, counts, {what: found[f"{what}, {scale}"] for what in METHODS})
        ax.set_xlabel("adapters that are merged")
        ax.set_title(scale, loc="left", fontsize=10)
    axes[0].set_ylabel("normalised accuracy")
    legend_below(figure, axes[0], columns=4)
    picture = report.figure("lego_figure8.png")
    save(figure, picture)
    rows = [
        [name, *(mean_spread([seed[i] for seed in values]) for i in range(len(counts)))]
        for name, values in found.items()
    ]
    report.numbers["figure 8"] = {"counts": counts, "normalised": found, "order": order}
    caption = (
        "Figure 8, number of tasks: mean over the tasks merged of the accuracy over that of the task's own adapter, "
        f"{options.n_test} test texts a task, {seeds(options.seeds)}; the first tasks of {', '.join(order)}; as "
        "published, and at norms that validation texts chose with the adapters of the first seed. Of two adapters LEGO "
        "keeps all units: it is the ensemble but for the norm."
    )
    note = count_verdict(found, counts)
    return Table("lego-figure-8", ["method", *(f"{n} adapters" for n in counts)], rows, caption, note, picture)


def count_verdict(found: dict[str, list[list[float]]], counts: Sequence[int]) -> str:
    """Say who is ahead at how many of the numbers, and what each method loses."""
    sentences = []
    for scale in (AS_PUBLISHED, CHOSEN):
        means = {what: np.mean(found[f"{what}, {scale}"], axis=0) for what in METHODS}
        others = np.max([means[what] for what in METHODS if what != "LEGO"], axis=0)
        lost = ", ".join(f"{what} {100 * (values[-1] - values[0]):+.1f}" for what, values in means.items())
        sentences.append(
            f"{scale.capitalize()}, LEGO is ahead of the others at {int((means['LEGO'] > others).sum())} of "
            f"{len(counts)} numbers of adapters; from {counts[0]} to {counts[-1]}, in points: {lost}."
        )
    return " ".join([*sentences, "(The paper: all fall, LEGO least, and LEGO is ahead throughout.)"])
