"""
LoRA Merging with SVD, table 1: direct, multiplied, multiplied plus noise
=========================================================================

A direct merge works on A and B, a multiplied one on the updates B A. What the direct one has more are the cross terms
of different adapters, M of the paper's equation 3. The paper replaces M by Gaussian noise of the same mean and standard
deviation, and finds that noise hurts no more than M does. Pairs of tasks and all tasks together::

    python examples/reproduce/svd_table1.py

The scale of a merge counts as much as the method. It is one factor for the model that gives the merge a multiple of the
adapters' mean norm, chosen on validation texts with all adapters of the first seed and then fixed, as in the paper.

Equation 3 adds M to the sum of the updates: the direct merge has the whole multiplied merge in it, and M comes on top.
The columns "MM + M" and "MM + noise" do the same with the multiplied merge at its chosen norm. M and the noise are
scaled as it is, by its norm over that of the sum of the updates. M is that of the adapters themselves, whatever the
method; for averaging and task arithmetic "MM + M" is the direct merge, at the multiplied merge's factor. Direct merges
are also shown as they are used: at the multiplied merge's norm, and at a norm of their own.

Independent entries spread noise over all directions of a module. "MM + thin noise" draws noise of the same mean and
standard deviation at the rank that M has. ``--draws`` draws noise several times for each seed of adapters, and
``--noise-only`` leaves the direct merges out.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from adapters import at_norm, best_scale, joined, load_tasks, norm, scaled
from evaluation import Evaluator
from report import Report, Table, mean_spread, parse, parser, progress, seeds

from lorakit import Adapter, AdapterSet, AverageMerger, ConcatMerger, DareMerger, TiesMerger
from lorakit.base import BaseMerger
from lorakit.metrics import cross_term_noise, cross_terms

FULL = 384  # the narrower side of every adapted module: no rank is cut
AS_IT_IS = 0.0  # a multiple of 0 stands for: not scaled

MULTIPLIED: dict[str, BaseMerger] = {
    "averaging": ConcatMerger(),
    "task arithmetic": ConcatMerger(),  # the sum is the mean but for a scale, which is chosen
    "TIES": TiesMerger(FULL, space="delta", density=0.2),
    "DARE": DareMerger(FULL, space="delta", density=0.5, random_state=0),
}
DIRECT: dict[str, BaseMerger] = {
    "averaging": AverageMerger(),
    "task arithmetic": AverageMerger(),
    "TIES": TiesMerger(space="factors", density=0.2),
    "DARE": DareMerger(space="factors", density=0.5, random_state=0),
}
METHODS = tuple(DIRECT)
MERGES = ("MM", "DM", "DM, own scale")
NOISES = ("noise", "thin noise")
ADDED = ("MM", "MM + M", *(f"MM + {noise}" for noise in NOISES))

Scores = dict[str, dict[str, dict[str, float]]]  # accuracy by group of tasks, method and column


def main() -> None:
    """Choose the scales, run, report."""
    command = parser("Table 1 of LoRA Merging with SVD: direct merge, multiplied merge, noise.")
    command.add_argument("--draws", type=int, default=1, metavar="N", help="of noise, for each seed (default: 1)")
    command.add_argument("--noise-only", action="store_true", help="no direct merges: only the table of the noise")
    command.add_argument("--all-only", action="store_true", help="no pairs: only the merge of all tasks")
    options = parse(command)
    test, validation = Evaluator("test", options.n_test), Evaluator("validation", options.n_validation)
    merges = ("MM",) if options.noise_only else ("MM", "DM")
    targets = choose_targets(load_tasks(options.tasks, seed=options.seeds[0]), validation, merges)
    runs = [(seed, draw) for seed in options.seeds for draw in range(options.draws)]
    groups = groups_of(options.tasks, pairs=not options.all_only)
    by_run = [one_run(groups, seed, draw, targets, test) for seed, draw in runs]
    report = Report("svd_table1", options)
    report.numbers = {"targets": targets, "runs": [*zip(runs, by_run, strict=True)]}
    if not options.noise_only:
        report.tables += [table(by_run[:: options.draws], options), scale_table(targets, options)]
    report.tables.append(noise_table(by_run, options))
    report.publish()


def groups_of(tasks: list[str], *, pairs: bool = True) -> dict[str, list[str]]:
    """Four pairs of neighbours in the list, or as many as there are, and all."""
    found = {f"{a}, {b}": [a, b] for a, b in zip(tasks[0:8:2], tasks[1:8:2], strict=False)} if pairs else {}
    return found | {f"all {len(tasks)}": tasks}


def choose_targets(
    adapters: AdapterSet, validation: Evaluator, merges: Sequence[str] = ("MM", "DM")
) -> dict[str, dict[str, float]]:
    """Choose the norm of each method's merge of all adapters, multiplied and direct; averaging stays as it is."""
    targets = {"averaging": dict.fromkeys(merges, AS_IT_IS)}
    for method in METHODS[1:]:
        mergers = {"MM": MULTIPLIED[method], "DM": DIRECT[method]}
        targets[method] = {
            how: best_scale(mergers[how].fit(adapters).merged_, adapters, validation, adapters.names) for how in merges
        }
        progress(f"{method}: chosen norms {targets[method]}")
    return targets


def one_run(
    groups: dict[str, list[str]], seed: int, draw: int, targets: dict[str, dict[str, float]], test: Evaluator
) -> Scores:
    """Merge and measure every group by every method."""
    found: Scores = {}
    for group, names in groups.items():
        adapters = load_tasks(names, seed=seed)
        found[group] = {}
        for method in METHODS:
            merged = variants(adapters, method, targets[method], seed if not draw else 1000 * draw + seed)
            found[group][method] = {what: test.mean(adapter, names) for what, adapter in merged.items()}
            progress(f"seed {seed}, draw {draw}, {group}, {method}: " + _shown(found[group][method]))
    return found


def variants(adapters: AdapterSet, method: str, targets: dict[str, float], seed: int) -> dict[str, Adapter]:
    """The merges of one row: multiplied, the same plus M or plus noise, direct, direct at a scale of its own."""

    def at(adapter: Adapter, target: float) -> Adapter:
        return adapter if target == AS_IT_IS else at_norm(adapter, adapters, target)

    mm = at(MULTIPLIED[method].fit(adapters).merged_, targets["MM"])
    scale = norm(mm) / norm(ConcatMerger().fit(adapters).merged_) * len(adapters)
    m = cross_terms(adapters)
    added = {
        "M": m,
        "noise": cross_term_noise(adapters, random_state=seed),
        "thin noise": cross_term_noise(adapters, rank=max(m.ranks), random_state=seed),
    }
    found = {"MM": mm} | {f"MM + {x}": joined(mm, scaled(y, scale), name=f"MM + {x}") for x, y in added.items()}
    if "DM" in targets:
        direct = DIRECT[method].fit(adapters).merged_
        found |= {"DM": at(direct, targets["MM"]), "DM, own scale": at(direct, targets["DM"])}
    return found


def table(by_seed: list[Scores], options: argparse.Namespace) -> Table:
    """The accuracies of the merges."""
    caption = _caption(by_seed, options, "MM: multiplied, DM: direct, at the norm of MM.")
    return Table("svd-table-1", ["tasks", "method", *MERGES], rows_of(by_seed, MERGES), caption, verdict(by_seed))


def noise_table(by_seed: list[Scores], options: argparse.Namespace) -> Table:
    """The accuracies with the cross terms, or noise in their place, on top of the multiplied merge."""
    about = (
        "MM: multiplied. M: the cross terms of equation 3. Noise: of the mean and standard deviation of M; thin noise: "
        "of its rank too."
    )
    caption = _caption(by_seed, options, about)
    name = "svd-table-1-noise-all" if options.all_only else "svd-table-1-noise"
    return Table(name, ["tasks", "method", *ADDED], rows_of(by_seed, ADDED), caption, noise_verdict(by_seed))


def _caption(by_seed: list[Scores], options: argparse.Namespace, about: str) -> str:
    over = seeds(options.seeds)
    if len(by_seed) > len(options.seeds):
        over = f"mean ± standard deviation over {options.draws} draws of the noise, {over} of the adapters"
    return f"Mean accuracy of merges on the tasks of their adapters, {options.n_test} test texts each, {over}. {about}"


def rows_of(by_seed: list[Scores], columns: Sequence[str]) -> list[list[str]]:
    """One row a group and method, and the mean over methods below each group."""
    rows = []
    for group in by_seed[0]:
        for method in (*METHODS, "mean"):
            values = [
                [mean_of(seed[group], column) if method == "mean" else seed[group][method][column] for seed in by_seed]
                for column in columns
            ]
            rows.append([group if method == METHODS[0] else "", method, *map(mean_spread, values)])
    return rows


def verdict(by_seed: list[Scores]) -> str:
    """Say how often and how far the multiplied merge is ahead."""
    sentences = []
    for what, found in _pairs_and_all(by_seed):
        for column in ("DM", "DM, own scale"):
            ahead = np.array([scores["MM"] - scores[column] for scores in found])
            sentences.append(
                f"MM against {column}, {what}: {100 * ahead.mean():+.1f} points, ahead in {(ahead > 0).sum()} of "
                f"{len(ahead)} merges."
            )
    return " ".join([*sentences, "(The paper: MM ahead by 3.0 points on pairs and 50.2 on all eight.)"])


def noise_verdict(by_seed: list[Scores]) -> str:
    """Say what M, and noise in its place, take from the multiplied merge."""
    sentences = []
    for what, found in _pairs_and_all(by_seed):
        m, *noises = (np.array([scores[f"MM + {x}"] - scores["MM"] for scores in found]) for x in ("M", *NOISES))
        sentences.append(f"M on top of MM, {what}: {100 * m.mean():+.1f} points.")
        for name, noise in zip(NOISES, noises, strict=True):
            sentences.append(
                f"{name.capitalize()} in the place of M: {100 * noise.mean():+.1f} points, and M hurts at least as "
                f"much in {(m <= noise).sum()} of {len(m)} merges."
            )
    return " ".join([*sentences, "(The paper: noise changes nothing, 0.0 points on pairs and +0.1 on all eight.)"])


def _pairs_and_all(by_seed: list[Scores]) -> list[tuple[str, list[dict[str, float]]]]:
    """Scores of all merges of pairs, if there are pairs, and of all tasks together."""
    *pairs, everything = by_seed[0]
    groups = [("pairs", pairs), (everything, [everything])]
    return [
        (what, [seed[group][method] for seed in by_seed for group in names for method in METHODS])
        for what, names in groups
        if names
    ]


def scale_table(targets: dict[str, dict[str, float]], options: argparse.Namespace) -> Table:
    """The norms that were chosen."""
    rows = [[method, *(_multiple(targets[method][how]) for how in ("MM", "DM"))] for method in METHODS]
    caption = (
        f"Norms of the merges, in mean norms of the adapters, chosen on {options.n_validation} validation texts a task."
    )
    return Table("svd-table-1-scales", ["method", "multiplied", "direct"], rows, caption)


def mean_of(by_method: dict[str, dict[str, float]], column: str) -> float:
    """Mean over methods."""
    return float(np.mean([by_method[method][column] for method in METHODS]))


def _multiple(target: float) -> str:
    return "not scaled" if target == AS_IT_IS else f"{target:g}"


def _shown(scores: dict[str, float]) -> str:
    return ", ".join(f"{what} {score:.3f}" for what, score in scores.items())


if __name__ == "__main__":
    main()
