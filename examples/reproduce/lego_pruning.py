"""
LEGO, figure 6: pruning one adapter
===================================

LEGO on one adapter clusters its own units and leaves fewer. The paper finds that half of the parameters keep 92 % of
the accuracy and a third 79 %, and compares with nothing. Here with the two that anybody has at hand: the truncated SVD
of the update, than which nothing of that rank is nearer to it, and dropping the units of smallest norm::

    python examples/reproduce/lego_pruning.py --jobs 2

Adapters of rank 8 with every seed; of rank 16, which have more to lose, with the first. Each is judged on its own task.
The three tasks of the longest texts are left out, which halves the time.

As LEGO rescales what it leaves, every method is measured twice: as it is, and times a factor chosen on validation texts
for each rank, method and cut, one for all tasks, with the adapters of the first seed. "Of the gain" is what is left of
that which the adapters have over the base model; the base model has much of the accuracy already.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapters import changed, load_tasks, scaled
from evaluation import Evaluator
from leaderboard import walk
from lego_tables67 import SCALES
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds
from standings import Right, accuracies, by_task, difference, normalised, right_of, right_of_own

from lorakit import Adapter, LegoPruner, LoraFactors, SVDPruner
from lorakit.metrics import relative_error

CUTS = {8: (4, 2, 1), 16: (8, 5, 4, 2)}  # ranks that are left, by rank
METHODS = ("LEGO", "SVD", "smallest dropped")
AS_IT_IS, CHOSEN = "as it is", "chosen factor"
PAPER = {0.5: 0.92, 0.33: 0.79}  # share of the accuracy kept, by share of the parameters

Cell = tuple[int, str, int]  # rank, method, rank that is left
Results = dict[Cell, dict[str, list[Right]]]  # by scale, one a seed: what is right


def main() -> None:
    """Choose the factors, run, report, draw."""
    arguments = parser("LEGO's figure 6: pruning one adapter.")
    arguments.add_argument("--ranks", type=int, nargs="+", choices=CUTS, help="of the adapters (default: 8 16)")
    options = parse(arguments)
    options.ranks = options.ranks or ([8] if options.quick else list(CUTS))
    cells = [(rank, what, k) for rank in options.ranks for what in METHODS for k in CUTS[rank]]
    results: Results = {cell: {AS_IT_IS: [], CHOSEN: []} for cell in cells}
    errors: dict[Cell, list[float]] = {cell: [] for cell in cells}
    own: dict[int, list[Right]] = {}
    with Processes(options.jobs) as processes:
        given = [(options.tasks, cell, options.seeds[0], options.n_validation) for cell in cells]
        factors: dict[Cell, float] = {}
        for cell, factor in zip(cells, processes.map(choose, given), strict=True):
            factors[cell] = factor
            progress(f"rank {cell[0]} to {cell[2]}, {cell[1]}: times {factor:g} is chosen")
        units = [(cell, seed) for cell in cells for seed in seeds_of(cell[0], options.seeds)]
        given = [(options.tasks, cell, seed, factors[cell], options.n_test) for cell, seed in units]
        for (cell, seed), (found, error) in zip(units, processes.map(measure, given), strict=True):
            for scale, right in found.items():
                results[cell][scale].append(right)
            errors[cell].append(error)
            shown = ", ".join(f"{scale} {accuracies([right])[0]:.3f}" for scale, right in found.items())
            progress(f"seed {seed}, rank {cell[0]} to {cell[2]}, {cell[1]}: {shown}")
        for rank in options.ranks:
            given = [(options.tasks, rank, seed, options.n_test) for seed in seeds_of(rank, options.seeds)]
            own[rank] = list(processes.map(whole, given))
    base = right_of(None, options.tasks, Evaluator("test", options.n_test))
    report = Report("lego_pruning", options, numbers=_numbers(results, errors, factors, own, base))
    picture = report.figure("lego_pruning.png")
    draw(results, own, base, picture)
    for rank in options.ranks:
        shown_below = picture if rank == options.ranks[-1] else None
        report.tables.append(table(rank, results, errors, factors, own[rank], base, options, shown_below))
    report.publish()


def seeds_of(rank: int, given: Sequence[int]) -> Sequence[int]:
    """Rank 8 is trained with every seed, others with one."""
    return given if rank == 8 else given[:1]


def prune(adapter: Adapter, what: str, k: int, seed: int) -> Adapter:
    """Prune by one method."""
    if what == "smallest dropped":
        return drop_smallest(adapter, k)
    pruner = LegoPruner(k=k, random_state=seed) if what == "LEGO" else SVDPruner(k=k)
    return pruner.fit_transform([adapter])[0]


def drop_smallest(adapter: Adapter, k: int) -> Adapter:
    """Keep the k units of each module whose own updates, b a, have the largest norms."""

    def keep(factors: LoraFactors) -> LoraFactors:
        norms = torch.linalg.vector_norm(factors.A, dim=1) * torch.linalg.vector_norm(factors.B, dim=0)
        kept = norms.argsort(descending=True)[:k].sort().values
        return LoraFactors(factors.A[kept], factors.B[:, kept])

    return changed(adapter, keep)


def pruned(tasks: Sequence[str], cell: Cell, seed: int) -> dict[str, tuple[Adapter, float]]:
    """Prune the adapters of all tasks; by task, with their relative errors."""
    rank, what, k = cell
    found = {}
    for adapter in load_tasks(tasks, seed=seed, ranks=rank):
        cut = prune(adapter, what, k, seed)
        found[adapter.name] = cut, relative_error(cut, adapter)
    return found


def choose(tasks: Sequence[str], cell: Cell, seed: int, n: int) -> float:
    """Choose the factor of one method and cut on validation texts, one for all tasks."""
    validation, cut = Evaluator("validation", n), pruned(tasks, cell, seed)

    def score(factor: float) -> float:
        found = {task: adapter if factor == 1 else scaled(adapter, factor) for task, (adapter, _) in cut.items()}
        return float(np.mean([validation.accuracy(adapter, task) for task, adapter in found.items()]))

    return walk(score, 1.0, SCALES)[0]


def measure(tasks: Sequence[str], cell: Cell, seed: int, factor: float, n: int) -> tuple[dict[str, Right], float]:
    """Which test texts of their own tasks the pruned adapters get right, as they are and scaled; their mean error."""
    cut, test = pruned(tasks, cell, seed), Evaluator("test", n)
    found: dict[str, dict[str, np.ndarray]] = {AS_IT_IS: {}, CHOSEN: {}}
    for task, (adapter, _) in cut.items():
        for scale, variant in ((AS_IT_IS, adapter), (CHOSEN, adapter if factor == 1 else scaled(adapter, factor))):
            found[scale][task] = right_of(variant, [task], test)[task]
    return dict(found), float(np.mean([error for _, error in cut.values()]))


def whole(tasks: Sequence[str], rank: int, seed: int, n: int) -> Right:
    """The same of the adapters before pruning."""
    return right_of_own(load_tasks(tasks, seed=seed, ranks=rank), Evaluator("test", n))


def gain_kept(found: Sequence[Right], own: Sequence[Right], base: Right) -> list[float]:
    """Share of the gain over the base model that is kept, of each seed."""
    (floor,) = accuracies([base])
    return [(a - floor) / (b - floor) for a, b in zip(accuracies(found), accuracies(own), strict=True)]


def table(
    rank: int,
    results: Results,
    errors: Mapping[Cell, Sequence[float]],
    factors: Mapping[Cell, float],
    own: Sequence[Right],
    base: Right,
    options: argparse.Namespace,
    picture: Path | None,
) -> Table:
    """One row a method and cut."""
    rows = [[f"{rank} (100 %)", "not pruned", mean_spread(accuracies(own)), "1.000", "1.000"] + [""] * 5]
    for k in CUTS[rank]:
        for what in METHODS:
            cell = rank, what, k
            found, best = results[cell][AS_IT_IS], results[cell][CHOSEN]
            row = [f"{k} ({100 * k / rank:.3g} %)" if what == METHODS[0] else "", what, mean_spread(accuracies(found))]
            row += [mean_spread(normalised(found, own)), mean_spread(gain_kept(found, own, base))]
            row += [_against_svd(results, cell, AS_IT_IS), mean_spread(errors[cell])]
            rows.append(
                [*row, f"{factors[cell]:g}", mean_spread(accuracies(best)), _against_svd(results, cell, CHOSEN)]
            )
    titles = ["rank left", "method", "accuracy", "kept", "of the gain", "against SVD", "error"]
    titles += ["factor", "accuracy so", "against SVD so"]
    (floor,) = accuracies([base])
    caption = (
        f"Pruning adapters of rank {rank}: mean accuracy on {options.n_test} test texts of their own tasks, "
        f"{len(options.tasks)} of them, {seeds(own)} (base model: {floor:.3f}); the share of the adapters' accuracy "
        "that is kept, mean over tasks, and of their gain over the base model; points ahead of SVD with the standard "
        "error over texts; relative Frobenius error to the adapter, mean over tasks; and the same times the factor "
        f"that {options.n_validation} validation texts a task chose."
    )
    return Table(f"lego-pruning-r{rank}", titles, rows, caption, verdict(rank, results, own), picture)


def _against_svd(results: Results, cell: Cell, scale: str) -> str:
    rank, what, k = cell
    if what == "SVD":
        return ""
    points, error = difference(results[cell][scale], results[rank, "SVD", k][scale])
    return f"{100 * points:+.1f} ± {100 * error:.1f}"


def verdict(rank: int, results: Results, own: Sequence[Right]) -> str:
    """Say what each method keeps, and where LEGO is told apart from the others."""
    sentences = []
    for k in CUTS[rank]:
        shares = {what: float(np.mean(normalised(results[rank, what, k][AS_IT_IS], own))) for what in METHODS}
        paper = next((f", in the paper {p:.0%} with {s:.0%}" for s, p in PAPER.items() if abs(s - k / rank) < 0.03), "")
        others = ", ".join(f"{what} {shares[what]:.1%}" for what in METHODS[1:])
        sentences.append(f"With {k / rank:.3g} of the parameters LEGO keeps {shares['LEGO']:.1%}{paper}; {others}.")
    for what in METHODS[1:]:
        for scale in (AS_IT_IS, CHOSEN):
            places: dict[str, list[str]] = {"ahead of": [], "behind": [], "not told apart from": []}
            for k in CUTS[rank]:
                points, error = difference(results[rank, "LEGO", k][scale], results[rank, what, k][scale])
                apart = "ahead of" if points > 0 else "behind"
                places[apart if abs(points) >= 2 * error and points else "not told apart from"].append(str(k))
            shown = "; ".join(f"{how} it at rank {', '.join(ks)}" for how, ks in places.items() if ks)
            sentences.append(f"LEGO and {what}, {scale}: LEGO is {shown}.")
    return " ".join([*sentences, "(Told apart: by two standard errors over texts.)"])


def draw(results: Results, own: Mapping[int, Sequence[Right]], base: Right, path: Path) -> None:
    """Draw the accuracy against the share of the parameters that is left, one panel a rank."""
    from drawing import GREY, curves, legend_below, panels, save

    figure, axes = panels(len(own), size=(4.4 if len(own) > 1 else 6.4, 4.0), share_y=True)
    (floor,) = accuracies([base])
    for ax, rank in zip(axes, own, strict=True):
        ks = CUTS[rank]
        shares = [100 * k / rank for k in reversed(ks)] + [100]
        shown = {
            f"{what}, {scale}": np.transpose(
                [*(accuracies(results[rank, what, k][scale]) for k in reversed(ks)), accuracies(own[rank])]
            )
            for what in METHODS
            for scale in (AS_IT_IS, CHOSEN)
        }
        curves(ax, shares, shown, variants=2, log=True)
        ax.axhline(floor, color=GREY, linewidth=1, linestyle=":", zorder=0, label="base model")
        ax.set_xlabel("share of the parameters left, %")
        ax.set_title(f"adapters of rank {rank}", loc="left", fontsize=10)
    axes[0].set_ylabel("accuracy on the own task")
    legend_below(figure, axes[0], columns=2)
    save(figure, path)


def _numbers(
    results: Results,
    errors: Mapping[Cell, Sequence[float]],
    factors: Mapping[Cell, float],
    own: Mapping[int, Sequence[Right]],
    base: Right,
) -> dict[str, Any]:
    return {
        "base": by_task([base])[0],
        "own": {str(rank): by_task(found) for rank, found in own.items()},
        "pruned": [
            {"rank": rank, "method": what, "k": k, "factor": factors[rank, what, k], "error": errors[rank, what, k]}
            | {scale: by_task(found) for scale, found in by_scale.items()}
            for (rank, what, k), by_scale in results.items()
        ],
    }


if __name__ == "__main__":
    main()
