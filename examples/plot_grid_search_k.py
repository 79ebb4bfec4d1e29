"""
Choose the rank of a merge by its accuracy on real tasks
========================================================

One grid sweeps the rank ``k``, LEGO's two reweightings and the class of the merger. Each merge is put on the base model
and measured on half of the texts of five tasks; what is chosen there is reported on the other half. A second search
asks for the best rank for one task alone, by cross-validation over its texts. Run it with::

    python examples/plot_grid_search_k.py
"""

# sphinx_gallery_thumbnail_path = "user_guide/grid_search_k.png"
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib import Memory
from minilm import ADAPTERS, TASKS, Task, load_base, load_task
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline

from lorakit import (
    AdapterClassifier,
    AdapterSet,
    AllAdapters,
    LegoMerger,
    MultiTaskScorer,
    SVDMerger,
    TSVMerger,
    load_adapters,
)

ONE_TASK = "wn_pos"

# Merges by name: the parameters that a candidate of the grid must have to belong to one. All but k is fixed.
LEGO = {
    "LEGO": {"norm": "inf", "output_scale": "sqrt"},
    "no output reweighting": {"norm": "inf", "output_scale": None},
    "no parameter reweighting": {"norm": None, "output_scale": "sqrt"},
    "neither": {"norm": None, "output_scale": None},
}
OTHERS = {"SVD, matched": SVDMerger, "TSV, matched": TSVMerger}
METHODS = (*LEGO, *OTHERS)

# Of Okabe and Ito's palette, which colour-blind readers can tell apart; markers and dashes serve print without colour.
STYLES = {
    "LEGO": ("#0072B2", "o", "-"),
    "no output reweighting": ("#E69F00", "v", "--"),
    "no parameter reweighting": ("#CC79A7", "D", "-."),
    "neither": ("#555555", "P", ":"),
    "SVD, matched": ("#D55E00", "s", "--"),
    "TSV, matched": ("#009E73", "^", "-."),
}


def main() -> None:
    """Search, report, draw."""
    options = parse_options()
    start = time.perf_counter()
    base = load_base()
    adapters = load_adapters([ADAPTERS / name for name in TASKS])
    choosing, reporting = halves([load_task(name, base, options.texts) for name in TASKS])

    search = search_all_tasks(adapters, choosing, options)
    curves = {method: curve(search, method) for method in METHODS}
    print_curves(curves, options.ks)
    best = {
        "LEGO, best reweightings": max((curves[method] for method in LEGO), key=lambda points: points["mean"].max()),
        **{method: curves[method] for method in OTHERS},
    }
    report(best, search, adapters, reporting)
    search_one_task(adapters, next(task for task in choosing if task.name == ONE_TASK), options)

    draw(curves, options)
    print(f"\nDrawn in {options.output}. All of it took {time.perf_counter() - start:.0f} seconds.")


def halves(tasks: list[Task]) -> tuple[list[Task], list[Task]]:
    """Split the texts of each task: the first half to choose by, the second to report on."""
    n = len(tasks[0].texts) // 2
    return (
        [Task(task.name, task.texts[:n], task.y[:n], task.head) for task in tasks],
        [Task(task.name, task.texts[n:], task.y[n:], task.head) for task in tasks],
    )


def scorer(tasks: list[Task]) -> MultiTaskScorer:
    """Accuracy on the tasks. It is given the function that loads the model: worker processes call it themselves."""
    data = {task.name: (task.texts, task.y.numpy()) for task in tasks}
    return MultiTaskScorer(load_base, data, {task.name: task.head for task in tasks})


def search_all_tasks(adapters: AdapterSet, tasks: list[Task], options: argparse.Namespace) -> GridSearchCV:
    """Merge and measure every candidate."""
    pipeline = Pipeline([("merge", LegoMerger())])
    grids = [
        {
            "merge": [LegoMerger(random_state=0)],
            "merge__norm": ["inf", None],
            "merge__output_scale": ["sqrt", None],
            "merge__k": options.ks,
        },
        {"merge": [cls(scale="match") for cls in OTHERS.values()], "merge__k": options.ks},
    ]
    # Mergers see no texts, so nothing is to be cross-validated: all adapters are merged, the scorer has the texts
    search = GridSearchCV(
        pipeline, grids, scoring=scorer(tasks), refit="mean", cv=AllAdapters(), n_jobs=options.jobs, error_score="raise"
    )
    return search.fit(adapters)


def curve(search: GridSearchCV, method: str) -> dict[str, np.ndarray]:
    """The candidates of one method in order of k: their rows in the results, means and standard errors."""
    results = search.cv_results_
    rows = [i for i, params in enumerate(results["params"]) if name_of(params["merge"], params) == method]
    rows.sort(key=lambda i: results["params"][i]["merge__k"])
    accuracies = np.array([[results[f"mean_test_{task}"][i] for task in TASKS] for i in rows])
    n_texts = len(search.scoring.tasks[TASKS[0]][1])
    # of the mean over tasks, from the binomial variance of each task's accuracy
    errors = np.sqrt((accuracies * (1 - accuracies) / n_texts).sum(axis=1)) / len(TASKS)
    return {"row": np.array(rows), "mean": accuracies.mean(axis=1), "error": errors}


def name_of(merger: object, params: dict) -> str:
    """The method that a candidate belongs to."""
    for name, cls in OTHERS.items():
        if isinstance(merger, cls):
            return name
    reweightings = {"norm": params["merge__norm"], "output_scale": params["merge__output_scale"]}
    return next(name for name, given in LEGO.items() if given == reweightings)


def print_curves(curves: dict[str, dict[str, np.ndarray]], ks: list[int]) -> None:
    """Print mean accuracies on the texts to choose by."""
    print("Mean accuracy over the tasks, on the texts to choose by\n")
    print(f"{'':34}" + "".join(f"{f'k={k}':>8}" for k in ks))
    for method, points in curves.items():
        label = f"LEGO, {method}" if method in LEGO and method != "LEGO" else method
        print(f"  {label:32}" + "".join(f"{mean:8.3f}" for mean in points["mean"]))
    print(f"\nThe standard error of each is about {np.mean([p['error'].mean() for p in curves.values()]):.3f}.")


def report(
    best: dict[str, dict[str, np.ndarray]], search: GridSearchCV, adapters: AdapterSet, tasks: list[Task]
) -> None:
    """Measure what was chosen on texts that had no part in the choice."""
    measure = scorer(tasks)
    print("\nWhat was chosen, on the other texts. 'kept' is accuracy divided by that of the task's own adapter\n")
    print(f"{'':34}{'k':>4}" + "".join(f"{name:>13}" for name in TASKS) + f"{'mean':>8}{'kept':>8}")
    own = {name: measure.evaluate(adapters[name], [name])[name] for name in TASKS}

    def row(what: str, k: str, scores: dict[str, float]) -> None:
        kept = np.mean([scores[name] / own[name] for name in TASKS])
        cells = "".join(f"{scores[name]:13.3f}" for name in TASKS)
        print(f"  {what:32}{k:>4}{cells}{np.mean(list(scores.values())):8.3f}{kept:8.3f}", flush=True)

    row("base model, no adapter", "", measure.evaluate())
    row("each task's own adapter", "8", own)
    for what, points in best.items():
        params = search.cv_results_["params"][points["row"][points["mean"].argmax()]]
        merged = clone(search.estimator).set_params(**params).fit(adapters)[-1].merged_
        row(what, str(params["merge__k"]), measure.evaluate(merged))
    print(f"\nThe best of all is {search.best_params_}.")


def search_one_task(adapters: AdapterSet, task: Task, options: argparse.Namespace) -> None:
    """Cross-validate over the texts of one task; its folds share every merge through a cache."""
    folder = Path(tempfile.mkdtemp(prefix="lorakit-"))
    labels = range(len(task.head.anchors))
    merger = SVDMerger(scale="match")
    classifier = AdapterClassifier(
        load_base, adapters, merger, task.head, classes=labels, memory=Memory(folder, verbose=0)
    )
    folds = StratifiedKFold(4)
    search = GridSearchCV(classifier, {"merger__k": options.ks}, cv=folds, n_jobs=options.jobs, error_score="raise")
    search.fit(np.array(task.texts), task.y.numpy())
    merges = len(list(folder.rglob("output.pkl")))
    print(f"\nSVD, matched, for {task.name} alone: accuracy over {folds.get_n_splits()} folds of its texts, and spread")
    results = search.cv_results_
    for k, mean, std in zip(options.ks, results["mean_test_score"], results["std_test_score"], strict=True):
        print(f"  k={k:<3}{mean:8.3f} +- {std:.3f}{'   chosen' if k == search.best_params_['merger__k'] else ''}")
    print(f"{len(options.ks) * folds.get_n_splits() + 1} fits made {merges} merges.")


def draw(curves: dict[str, dict[str, np.ndarray]], options: argparse.Namespace) -> None:
    """Draw accuracy against k: methods to the left, LEGO's reweightings to the right."""
    import matplotlib

    matplotlib.use("Agg")  # into a file, with or without a screen
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    figure.suptitle("Bars: one standard error. Rings: the best k of each.", x=0.99, ha="right", fontsize=9)
    panels = {"Methods": ("LEGO", *OTHERS), "LEGO's two reweightings": tuple(LEGO)}
    for ax, (title, methods) in zip(axes, panels.items(), strict=True):
        for i, method in enumerate(methods):
            draw_curve(ax, options.ks, curves[method], method, shift=0.07 * (i - (len(methods) - 1) / 2))
        ax.set_xscale("log", base=2)
        ax.set_xticks(options.ks, [str(k) for k in options.ks])
        ax.minorticks_off()
        ax.set_xlabel("rank of the merge, k")
        ax.set_title(title, loc="left", fontsize=11)
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="lower right", handlelength=3.2)
    axes[0].set_ylabel("mean accuracy over five tasks")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=150)
    plt.close(figure)


def draw_curve(ax, ks: list[int], points: dict[str, np.ndarray], method: str, shift: float) -> None:
    """Draw one method, a little to the side so that bars do not hide one another, with a ring around its best k."""
    colour, marker, dashes = STYLES[method]
    x = np.array(ks) * 2**shift
    ax.errorbar(x, points["mean"], points["error"], color=colour, linestyle="none", elinewidth=0.8, alpha=0.7)
    ax.plot(x, points["mean"], color=colour, marker=marker, linestyle=dashes, label=method, linewidth=1.6, markersize=6)
    best = points["mean"].argmax()
    ax.plot(x[best], points["mean"][best], marker="o", markersize=13, color=colour, fillstyle="none")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Choose the rank of a merge by its accuracy on real tasks.")
    parser.add_argument("--texts", type=int, default=200, metavar="N", help="texts a task, 40 to 200 (default: 200)")
    parser.add_argument(
        "--ks", type=int, nargs="+", default=[4, 8, 16, 32], metavar="K", help="ranks to try, ascending"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the picture (default: in a temporary folder)")
    options = parser.parse_args()
    if not 40 <= options.texts <= 200:
        parser.error(f"--texts must be between 40 and 200, got {options.texts}")
    if options.ks != sorted(set(options.ks)) or not 1 <= options.ks[0] <= options.ks[-1] <= 40:
        parser.error(f"--ks must be ascending ranks from 1 to 40, the sum of the adapters' ranks; got {options.ks}")
    if options.output is None:
        options.output = Path(tempfile.mkdtemp(prefix="lorakit-")) / "grid_search_k.png"
    return options


if __name__ == "__main__":
    main()
