"""
Merging with the base model at hand
===================================

How much of twelve adapters that began apart is kept by a merge whose factors were trained on all their heads
(:class:`lorakit.DistillMerger`), without a text of any task or with a few, beside merges of weights alone and RegMean::

    python examples/reproduce/distill.py                     # the methods at rank 16
    python examples/reproduce/distill.py --parts longer      # longer trainings
    python examples/reproduce/distill.py --parts limits      # ranks, numbers of adapters, kinds and numbers of texts
    python examples/reproduce/distill.py --parts agreement   # how well the score without labels chooses

It can be stopped at any time: a merge in training goes on after its last epoch. Nine of the adapters are those of the
tests, the others are trained. Norms are chosen on validation texts; every table is of test texts that nothing was
chosen by. The texts of tasks that merges are trained on come from the tasks' training texts, without labels.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from adapters import SCALES, at_norm, best_scale
from backbones import MINILM
from drawing import panels, save, tidy
from entrants import batches_of, grams_of
from evaluation import Evaluator
from multi_head import OWN_ONLY, Recipe, adapters_of, agreement_scorer, merge, once
from peft_merges import peft_merge
from report import Report, Table, mean_spread, parse, parser, progress, seeds
from scipy.stats import spearmanr
from standings import Right, right_of, right_of_own

from lorakit import Adapter, IsoMerger, LegoMerger, RegMeanMerger, RegMeanPlusMerger, SVDMerger, TiesMerger, TSVMerger
from lorakit.base import BaseMerger

N_TEXTS = 50  # unlabelled training texts of each task
START = "tsv, match"
FREE = Recipe("multi-head, generic and pseudo-texts", generic=700, pseudo=60)
OWN = Recipe("own head only, task texts", own=N_TEXTS, own_weight=OWN_ONLY)
TASKS = Recipe("multi-head, task texts", own=N_TEXTS, own_weight=4.0)
ALL = Recipe("multi-head, all three", generic=700, pseudo=60, own=N_TEXTS)
LONGER = {
    "free": replace(FREE, epochs=16, learning_rate=2e-3),
    "all": Recipe(
        "multi-head, all three and fragments of task texts",
        generic=350,
        pseudo=30,
        own=N_TEXTS,
        fragments=60,
        epochs=12,
        learning_rate=2e-3,
    ),
}
RECIPES = {"free": FREE, "all": ALL, "own": OWN, "tasks": TASKS}
LIMITS = {
    "free-8": replace(FREE, k=8),
    "free-32": replace(FREE, k=32),
    "all-8": replace(ALL, k=8),
    "all-32": replace(ALL, k=32),
    "pseudo": replace(FREE, generic=0, name="pseudo-texts only"),
    "generic": replace(FREE, pseudo=0, name="generic texts only"),
    "pseudo-x3": replace(FREE, pseudo=180, name="three times the pseudo-texts"),
    "faster": replace(FREE, learning_rate=2e-3, name="twice the learning rate"),
    **{f"own-{n}": replace(ALL, own=n, name=f"all three, {n} texts a task") for n in (8, 25, 100)},
    **{
        f"start-{start}": replace(FREE, start=start, name=f"start: {start}")
        for start in ("tsv 1.4", "regmean++", "whole")
    },
    "fragments": replace(ALL, fragments=N_TEXTS, name="all three, and fragments of the task texts"),
    "two": FREE,
    "four": FREE,
}
FEW = {"two": 2, "four": 4}  # numbers of adapters; all for the others
CHOSEN_BY = Recipe("", generic=150, pseudo=15)  # texts of the score without labels
LABELLED = 20  # texts to choose by instead
FIRST = 100  # test text that the methods are judged from: those before it were looked at when the trainer was mended
METHODS: dict[str, BaseMerger] = {
    "svd": SVDMerger(),
    "tsv": TSVMerger(),
    "iso": IsoMerger(),
    "ties core": TiesMerger(space="core"),
    "lego": LegoMerger(random_state=0),
}
NORMS = (0.7, 1.0, 1.4, 1.8)
CHOSEN_RANKS = (8, 16)


class Bench:
    """Adapters, and what their merges get right of the test texts.

    Parameters
    ----------
    options : Namespace
        Of the command line.
    first : int
        The first of the test texts to judge by.
    """

    def __init__(self, options: argparse.Namespace, first: int) -> None:
        self.tasks: list[str] = options.tasks
        self.adapters = adapters_of(self.tasks)
        self.first = first
        self.test = Evaluator("test", first + options.n_test)
        self.validation = Evaluator("validation", options.n_validation)
        self.own = right_of_own(self.adapters, self.test, first)

    def right(self, adapter: Adapter | None) -> Right:
        """Which test texts of each task get their label."""
        return right_of(adapter, self.tasks, self.test, self.first)

    def kept(self, right: Right) -> tuple[float, float]:
        """Mean over tasks of accuracy divided by the own adapter's; its standard error over texts."""
        return _mean([right[task] / self.own[task].mean() for task in right])

    def difference(self, right: Right, other: Right) -> tuple[float, float]:
        """Difference of what is kept, on the same texts; its standard error."""
        return _mean([(right[t].astype(float) - other[t]) / self.own[t].mean() for t in right])

    def chosen(self, merged: Adapter) -> Adapter:
        """The merge at the norm that is best on validation texts."""
        return at_norm(merged, self.adapters, best_scale(merged, self.adapters, self.validation, self.tasks, SCALES))


def main() -> None:
    """Run the parts that are asked for."""
    command = parser("A merge whose factors are trained on all heads, beside others.")
    command.set_defaults(n_test=100, n_validation=20, seeds=[0])
    parts: dict[str, Callable[[Bench, Report], None]] = {
        "methods": methods,
        "longer": longer,
        "limits": limits,
        "agreement": agreement,
    }
    command.add_argument("--parts", nargs="+", choices=parts, default=["methods"], help="what to run")
    command.add_argument("--merges", nargs="+", metavar="MERGE", help="of the others some, such as regmean++")
    command.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES), help="trained merges")
    command.add_argument("--longer", nargs="+", choices=LONGER, default=list(LONGER), help="rows of the part longer")
    command.add_argument("--limits", nargs="+", choices=LIMITS, default=list(LIMITS), help="rows of the part limits")
    command.add_argument("-k", type=int, default=16, help="rank of the methods (default: %(default)s)")
    options = parse(command)
    report = Report("distill", options)
    for part in options.parts:
        parts[part](Bench(options, 0 if part == "agreement" else FIRST), report)
    report.publish()


def methods(bench: Bench, report: Report) -> None:
    """All ways to merge at one rank."""
    adapters, k = bench.adapters, report.options.k
    weights: dict[str, Callable[[], Adapter]] = {
        "svd, match": lambda: SVDMerger(k, scale="match").fit(adapters).merged_,
        START: lambda: TSVMerger(k, scale="match").fit(adapters).merged_,
        "tsv, norm chosen": lambda: bench.chosen(TSVMerger(k).fit(adapters).merged_),
        "PEFT svd, norm chosen": lambda: bench.chosen(peft_merge(adapters, "svd", svd_rank=k)),
        f"regmean, {N_TEXTS} texts a task, norm chosen": lambda: bench.chosen(
            RegMeanMerger(k, grams=grams_of(adapters, N_TEXTS)).fit(adapters).merged_
        ),
        f"regmean++, {N_TEXTS} texts a task, norm chosen": lambda: bench.chosen(
            RegMeanPlusMerger(k, model=MINILM.load(), batches=batches_of(adapters, N_TEXTS)).fit(adapters).merged_
        ),
    }
    if report.options.merges:
        weights = {name: made for name, made in weights.items() if name.split(",")[0] in report.options.merges}
    found: dict[str, tuple[Right, float]] = {}
    for name, make in weights.items():
        made = once((name, k, report.options.n_validation), name, adapters, make)
        found[name] = (bench.right(made.adapter), made.about["seconds"])
        progress(f"{name}: {bench.kept(found[name][0])[0]:.3f}")
    for name in report.options.recipes:
        recipe = replace(RECIPES[name], k=k, seed=report.options.seeds[0])
        found[_label(recipe)] = _trained(bench, recipe)
    report.numbers["methods"] = {name: bench.kept(right) for name, (right, _) in found.items()}
    reference = bench.right(TSVMerger(k, scale="match").fit(adapters).merged_)
    rows = []
    for name, (right, seconds) in found.items():
        gained = "" if name == START else _signed(bench.difference(right, reference))
        rows.append([name, _shown(bench.kept(right)), gained, f"{seconds:.0f}"])
    n = report.options.n_test
    caption = (
        f"{len(adapters)} adapters of rank 8 that began apart, merged into one of rank {k}. Kept: accuracy divided by "
        f"that of the task's own adapter, mean over tasks, {n} test texts each (after the first {FIRST}), with its "
        "standard error over texts; the difference to the start in points, on the same texts. Seconds of one thread, "
        "with the measuring of norms where they are chosen, and with the texts and teachers of merges that are trained."
    )
    titles = ["merge", "kept", f"against {START}", "seconds"]
    every = not report.options.merges and set(report.options.recipes) == set(RECIPES)
    picture = _picture(found, bench, report) if every else None
    name = "distill-methods" if every else "distill-some"
    report.tables.append(Table(name, titles, rows, caption, picture=picture))


def longer(bench: Bench, report: Report) -> None:
    """More epochs at a higher rate, by the seed of the texts and of the training."""
    start = bench.right(TSVMerger(report.options.k, scale="match").fit(bench.adapters).merged_)
    kept = _shown(bench.kept(start))
    rows = [[START, "", "", "", kept if len(report.options.seeds) == 1 else kept[:5], "", ""]]
    for name in report.options.longer:
        recipe = replace(LONGER[name], k=report.options.k)
        found = [_trained(bench, replace(recipe, seed=seed)) for seed in report.options.seeds]
        values = [bench.kept(right)[0] for right, _ in found]
        report.numbers[f"longer, {name}"] = values
        means = {task: np.mean([right[task] for right, _ in found], axis=0) for task in start}
        n = recipe.generic + (recipe.pseudo + recipe.own + recipe.fragments) * len(bench.adapters)
        about = [_label(recipe), str(n), str(recipe.epochs), f"{recipe.learning_rate:g}"]
        kept = _shown(bench.kept(found[0][0])) if len(values) == 1 else mean_spread(values)
        seconds = np.mean([seconds for _, seconds in found])
        rows.append([*about, kept, _signed(bench.difference(means, start)), f"{seconds:.0f}"])
    spread = "its standard error over texts" if len(report.options.seeds) == 1 else seeds(report.options.seeds)
    caption = (
        f"As above, rank {report.options.k}, with the numbers of epochs and the learning rates that were set before "
        f"anything was measured. Kept with {spread}; points against {START} with their standard error over texts."
    )
    titles = ["merge", "number of texts", "epochs", "learning rate", "kept", f"against {START}", "seconds"]
    report.tables.append(Table("distill-longer", titles, rows, caption))


def limits(bench: Bench, report: Report) -> None:
    """Ranks, texts, numbers of adapters."""
    rows = []
    for name in report.options.limits:
        tasks = bench.tasks[: FEW.get(name, len(bench.tasks))]
        few = Bench(argparse.Namespace(**vars(report.options) | {"tasks": tasks}), FIRST)
        rows.append(_compared(few, LIMITS[name]))
    caption = "As above, of other ranks, texts and numbers of adapters, each beside tsv with scale='match' at its rank."
    titles = ["texts", "adapters", "k", "number of texts", "tsv, match", "kept", "gained", "seconds"]
    report.tables.append(Table("distill-limits", titles, rows, caption))


def agreement(bench: Bench, report: Report) -> None:
    """How well agreement orders merges, and what is lost by choosing with it."""
    scorer = agreement_scorer(CHOSEN_BY, bench.adapters)
    few = Evaluator("validation", LABELLED)
    scores: dict[str, tuple[float, float, float]] = {}  # agreement, accuracy on few labelled texts, kept of test texts
    norms = []
    for name, merger in METHODS.items():
        for k in CHOSEN_RANKS:
            merged = merger.set_params(k=k).fit(bench.adapters).merged_
            found = []
            for target in NORMS:
                at = at_norm(merged, bench.adapters, target)
                kept = bench.kept(bench.right(at))[0]
                found.append((scorer.evaluate(at), few.mean(at, bench.tasks), kept))
                scores[f"{name}, k = {k}, norm {target}"] = found[-1]
            progress(f"{name}, k = {k}: {found}")
            norms.append([name, str(k), *(f"{agreed:.3f} / {kept:.3f}" for agreed, _, kept in found)])
    agreed, labelled, kept = np.array(list(scores.values())).T
    report.numbers["agreement"] = scores
    titles = ["method", "k", *(f"norm {target:g}" for target in NORMS)]
    caption = "Agreement without labels / what is kept on test texts; norms are in mean norms of the adapters."
    report.tables.append(Table("distill-norms", titles, norms, caption))
    rows = []
    for what, score in (("agreement, no labels", agreed), (f"accuracy on {LABELLED} labelled texts a task", labelled)):
        regret = 100 * (kept.max() - kept[score.argmax()])
        rows.append([what, f"{spearmanr(score, kept)[0]:.2f}", list(scores)[score.argmax()], f"{regret:.1f}"])
    n = CHOSEN_BY.generic + CHOSEN_BY.pseudo * len(bench.adapters)
    caption = (
        f"{len(scores)} merges, ordered by a score and by what they keep on test texts: rank correlation, the merge "
        "that the score chooses, and how many points the best merge keeps more. Agreement is on "
        f"{n} generic and pseudo-texts."
    )
    report.tables.append(Table("distill-agreement", ["chosen by", "Spearman", "choice", "regret"], rows, caption))


def _trained(bench: Bench, recipe: Recipe) -> tuple[Right, float]:
    found = merge(recipe, bench.adapters)
    right = bench.right(found.adapter)
    seconds = found.about["seconds"]
    progress(
        f"{recipe.name}, k = {recipe.k}: {bench.kept(right)[0]:.3f}, {found.about['texts']} texts, {seconds:.0f} s"
    )
    return right, seconds


def _compared(bench: Bench, recipe: Recipe) -> list[str]:
    start = bench.right(TSVMerger(recipe.k, scale="match").fit(bench.adapters).merged_)
    right, seconds = _trained(bench, recipe)
    n = recipe.generic + (recipe.pseudo + recipe.own + recipe.fragments) * len(bench.adapters)
    kept, gained = _shown(bench.kept(right)), _signed(bench.difference(right, start))
    about = [recipe.name, str(len(bench.adapters)), str(recipe.k), str(n)]
    return [*about, _shown(bench.kept(start)), kept, gained, f"{seconds:.0f}"]


def _label(recipe: Recipe) -> str:
    return f"{recipe.name}, {recipe.own} a task" if recipe.own else recipe.name


def _mean(by_task: list[np.ndarray]) -> tuple[float, float]:
    squares = [values.var(ddof=1) / len(values) for values in by_task]
    return float(np.mean([v.mean() for v in by_task])), float(np.sqrt(np.sum(squares)) / len(by_task))


def _shown(found: tuple[float, float]) -> str:
    return f"{found[0]:.3f} ± {found[1]:.3f}"


def _signed(found: tuple[float, float]) -> str:
    return f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}"


def _picture(found: Mapping[str, tuple[Right, float]], bench: Bench, report: Report) -> Any:
    """Draw what is kept against seconds."""
    figure, (ax,) = panels(1, size=(6.4, 4.0))
    for name, (right, seconds) in found.items():
        kept, error = bench.kept(right)
        ax.errorbar([max(seconds, 0.1)], [kept], [error], fmt="o", label=name)
    ax.set_xscale("log")
    ax.set_xlabel("seconds of one thread")
    ax.set_ylabel("accuracy kept")
    tidy(ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    path = report.figure("distill.png")
    save(figure, path)
    return path


if __name__ == "__main__":
    main()
