"""
Rows of the leaderboard with today's defaults
=============================================

The leaderboard takes hours. Its methods whose defaults have changed since, those that came later and the space
'core_factors' are measured here as it measures, at one rank, beside some of its rows in the same run::

    python examples/reproduce/leaderboard_today.py --seeds 0
"""

from dataclasses import replace
from typing import Any

import numpy as np
from adapters import load_tasks
from entrants import Entrant, data_free
from evaluation import Evaluator
from leaderboard import N_HEATS, N_SCALES, choose, measure_all, own
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds
from standings import accuracies, difference, normalised, right_of

K = 16
REFERENCE = "tsv"
BESIDE = ("tsv", "iso", "ties core", "ties delta", "svd")
NEW = ("ctm", "breadcrumbs", "sce")  # methods
SPACE = "core_factors"


def main() -> None:
    """Choose the norms, measure, report."""
    command = parser("Rows of the leaderboard with today's defaults.")
    command.set_defaults(n_test=N_HEATS, n_validation=N_SCALES)
    everyone = {entrant.name: replace(entrant, cuts=(K,)) for entrant in data_free() if _wanted(entrant)}
    command.add_argument("--entrants", nargs="+", choices=everyone, default=list(everyone), help="some of them")
    options = parse(command)
    entrants = {name: everyone[name] for name in dict.fromkeys([REFERENCE, *options.entrants])}
    texts = range(options.n_test)
    with Processes(options.jobs) as processes:
        given = [(entrant, options.tasks, options.seeds[0], options.n_validation) for entrant in entrants.values()]
        walks: dict[str, Any] = {}
        for name, walk in zip(entrants, processes.map(choose, given), strict=True):
            walks[name] = walk
            progress(f"{name}: {walk['ranks']}")
        ranks = {name: list(walk["ranks"]) for name, walk in walks.items()}
        found = measure_all(entrants, ranks, walks, options, texts, processes)
    theirs = [own(options.tasks, seed, texts) for seed in options.seeds]
    base = [right_of(None, options.tasks, Evaluator("test", options.n_test))] * len(options.seeds)
    results = {name: next(iter(of.values())) for name, of in found.items()}
    rows = []
    for name in sorted(results, key=lambda name: -np.mean(accuracies(results[name]))):
        (about,) = walks[name]["ranks"].values()
        behind, error = difference(results[name], results[REFERENCE])
        cells = [mean_spread(accuracies(results[name])), mean_spread(normalised(results[name], theirs))]
        cells.append("" if name == REFERENCE else f"{100 * behind:+.1f} ± {100 * error:.1f}")
        rows.append([name, str(about["rank"]), f"{about['scale']:g}", *cells, f"{walks[name]['seconds']:.1f}"])
    for name, right in (("own adapters", theirs), ("base model", base)):
        rows.append([name, "", "", mean_spread(accuracies(right)), mean_spread(normalised(right, theirs)), "", ""])
    n = len(load_tasks(options.tasks, seed=options.seeds[0]))
    caption = (
        f"Merges of {n} adapters at rank {K}, or at the one rank that a method has, each at the norm chosen on "
        f"{options.n_validation} validation texts a task; {options.n_test} test texts a task, {seeds(options.seeds)}. "
        f"Points ahead of {REFERENCE} with the standard error over texts, two of which tell two methods apart."
    )
    titles = ["method", "rank", "norm", "accuracy", "normalised", "points", "seconds"]
    report = Report("leaderboard_today", options, numbers={name: accuracies(of) for name, of in results.items()})
    report.tables.append(Table("leaderboard-today", titles, rows, caption))
    report.publish()


def _wanted(entrant: Entrant) -> bool:
    method, *rest = entrant.name.split()
    return entrant.name in BESIDE or method in NEW or SPACE in rest


if __name__ == "__main__":
    main()
