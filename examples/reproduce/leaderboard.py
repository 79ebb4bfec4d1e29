"""
Every method, in every space, at every rank
===========================================

All mergers that lorakit has and that need no data, in each space that they can act in, cut to ranks 8, 16 and 32 and
whole; PEFT's own merges of the same adapters in the same run; and apart from them RegMean, which needs texts::

    python examples/reproduce/leaderboard.py --jobs 2

How it is made affordable, and why so:

- *Tasks.* Three fewer than there are: the texts of the three left out are the longest, and cost as much as those of
  seven others.
- *Scale.* The global scale of each entry (a method, a space, a rank) is the norm of its merge in mean norms of the
  adapters. It is chosen on validation texts with the adapters of the first seed, and fixed. Accuracy rises and then
  falls with it, so a walk along a coarse grid that stops at a top is enough, four measurements instead of ten; the next
  rank's walk begins where the last one ended.
- *Halving.* All entries are measured on the first of the test texts, with all seeds: the heats. Of each rank the best
  go on to a final on the other texts; on the same ones the winner of a hundred entries would be the luckiest.
- *Sharing.* A method is fitted once for all ranks. Merges that differ by a factor only (task arithmetic and the mean,
  in all spaces but A and B) are recognised as one by their cosine, and measured once.

Settings other than rank and scale are the defaults, and PEFT gets the same densities. What merges on A and B has the
adapters' rank and enters at no other. Seconds are of one thread's processor time, for one merge at rank 16 or the one
rank that there is; PEFT's include what it must do first, putting the adapters on a base model.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapters import at_norm, load_tasks, mean_norm, norm
from entrants import Entrant, data_free, shared
from evaluation import Evaluator
from processes import Processes
from report import Report, parse, parser, progress
from standings import (
    COLUMNS,
    Right,
    accuracies,
    best,
    chosen_table,
    final_table,
    heats_table,
    regmean_table,
    right_of,
    right_of_own,
)

from lorakit import RegMeanMerger

SCALES = (0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.8, 2.2, 2.7, 3.3, 4.0)
FIRST_SCALE = 1.25  # where the first walk begins
N_HEATS, N_SCALES = 30, 20  # texts a task: test texts of the heats, validation texts of the walks
N_TEST = 150  # test texts a task, those of the heats and of the final
N_TEXTS = 25  # training texts a task that RegMean gets
FINALISTS = 4  # of each rank
BASE, OWN, REGMEAN = "base model", "own adapters", "regmean"

Results = dict[str, dict[int, list[Right]]]  # by entrant and rank, one a seed


def main() -> None:
    """Choose the scales, run the heats and the final, report."""
    command = parser("All methods in all spaces at all ranks, and PEFT's.")
    command.set_defaults(n_test=N_TEST)
    options = parse(command)
    n_heats, n_scales = min(N_HEATS, options.n_test // 2), min(N_SCALES, options.n_validation)
    heats, final = range(n_heats), range(n_heats, options.n_test)
    seeds, tasks = options.seeds, options.tasks
    first = load_tasks(tasks, seed=seeds[0])
    # --quick is to see that everything works
    entrants, aliases = shared(data_free()[:: 4 if options.quick else 1], first)
    regmean = Entrant(REGMEAN, RegMeanMerger(), n_texts=min(N_TEXTS, options.n_validation))
    everyone = {entrant.name: entrant for entrant in (*entrants, regmean)}
    progress(f"{len(everyone)} entrants; the same as others but for a factor: {aliases}")
    with Processes(options.jobs) as processes:
        walks: dict[str, Any] = {}
        given = [(entrant, tasks, seeds[0], n_scales) for entrant in everyone.values()]
        for name, walk in zip(everyone, processes.map(choose, given), strict=True):
            walks[name] = walk
            progress(f"{name}: {_walked(walk)}")
        ranks = {name: list(walk["ranks"]) for name, walk in walks.items()}
        results = measure_all(everyone, ranks, walks, options, heats, processes)
        free = {name: found for name, found in results.items() if name != REGMEAN}
        wanted = {k: best(free, k, FINALISTS) for k in COLUMNS}
        ranks = {name: [k for k in COLUMNS if name in wanted[k]] for name in free}
        finals = measure_all(everyone, ranks, walks, options, final, processes)
    base = right_of(None, tasks, Evaluator("test", n_heats))
    references = {OWN: [own(tasks, seed, heats) for seed in seeds], BASE: [base] * len(seeds)}
    leading = leaders({name: walk for name, walk in walks.items() if name != REGMEAN})
    report = Report("leaderboard", options, numbers=_numbers(results, finals, walks))
    report.tables += [
        final_table(finals, [own(tasks, seed, final) for seed in seeds]),
        heats_table(free, walks, references, aliases),
        chosen_table({name: walk for name, walk in walks.items() if name != REGMEAN}, n_scales),
        regmean_table(results, walks, leading, regmean.n_texts),
    ]
    report.publish()


def walk(score: Callable[[float], float], start: float, scales: Sequence[float] = SCALES) -> tuple[float, float]:
    """Go along the scales while the score rises; return the top and its score."""
    at = scales.index(start)
    found = {at: score(start)}
    for step in (1, -1):
        while 0 <= at + step < len(scales):
            if at + step not in found:
                found[at + step] = score(scales[at + step])
            if found[at + step] <= found[at]:
                break
            at += step
    return scales[at], found[at]


def choose(entrant: Entrant, tasks: list[str], seed: int, n: int) -> dict[str, Any]:
    """Merge at all ranks and choose the scale of each; and measure what one merge costs."""
    adapters, validation = load_tasks(tasks, seed=seed), Evaluator("validation", n)
    ks = entrant.ranks(adapters)
    if entrant.peft:
        import peft  # noqa: F401  # or the first of PEFT's merges would pay for it
    start = time.process_time()
    # of RegMean it is the texts that cost, whatever the ranks: it is not fitted twice
    merged = entrant.merge(adapters, ks if entrant.n_texts else [16 if 16 in ks else ks[0]], seed)
    seconds = time.process_time() - start
    if set(merged) != set(ks):
        merged = entrant.merge(adapters, ks, seed)
    one = mean_norm(adapters)
    found: dict[int, dict[str, float]] = {}
    at = FIRST_SCALE
    for k in ks:

        def score(scale: float, k: int = k) -> float:
            return validation.mean(at_norm(merged[k], adapters, scale), tasks)

        at, reached = walk(score, at)
        found[k] = {"scale": at, "validation": reached, "rank": max(merged[k].ranks), "norm": norm(merged[k]) / one}
    return {"seconds": seconds, "ranks": found}


def leaders(walks: Mapping[str, Any]) -> dict[int, str]:
    """Who did best in validation at each rank that anybody has."""
    found = {}
    for k in COLUMNS:
        if there := [name for name in walks if k in walks[name]["ranks"]]:
            found[k] = max(there, key=lambda name: walks[name]["ranks"][k]["validation"])
    return found


def measure_all(
    entrants: Mapping[str, Entrant],
    ranks: Mapping[str, Sequence[int]],
    walks: Mapping[str, Any],
    options: argparse.Namespace,
    texts: range,
    processes: Processes,
) -> Results:
    """Measure entrants at some of their ranks, with the adapters of every seed."""
    units = [(name, seed) for seed in options.seeds for name in ranks if ranks[name]]
    given = []
    for name, seed in units:
        scales = {k: walks[name]["ranks"][k]["scale"] for k in ranks[name]}
        given.append((entrants[name], scales, options.tasks, seed, texts))
    results: Results = {}
    for (name, seed), found in zip(units, processes.map(measure, given), strict=True):
        for k, right in found.items():
            results.setdefault(name, {}).setdefault(k, []).append(right)
        shown = ", ".join(f"{accuracies([right])[0]:.3f} at rank {k or 'whole'}" for k, right in found.items())
        progress(f"texts {texts.start} to {texts.stop}, seed {seed}, {name}: {shown}")
    return results


def measure(
    entrant: Entrant, scales: Mapping[int, float], tasks: list[str], seed: int, texts: range
) -> dict[int, Right]:
    """Merge at some ranks, and see which texts each merge gets right."""
    adapters = load_tasks(tasks, seed=seed)
    merged, test = entrant.merge(adapters, list(scales), seed), Evaluator("test", texts.stop)
    return {k: right_of(at_norm(merged[k], adapters, scale), tasks, test, texts.start) for k, scale in scales.items()}


def own(tasks: list[str], seed: int, texts: range) -> Right:
    """Which of these texts each task's own adapter gets right."""
    return right_of_own(load_tasks(tasks, seed=seed), Evaluator("test", texts.stop), texts.start)


def _walked(walk: Mapping[str, Any]) -> str:
    ranks = walk["ranks"].items()
    chosen = ", ".join(f"{v['validation']:.3f} at norm {v['scale']:g}, rank {v['rank']}" for _, v in ranks)
    return f"{walk['seconds']:.1f} s; in validation {chosen}"


def _numbers(results: Results, finals: Results, walks: Mapping[str, Any]) -> dict[str, Any]:
    def means(found: Results) -> dict[str, Any]:
        return {name: {str(k): accuracies(v) for k, v in of.items()} for name, of in found.items()}

    return {"heats": means(results), "final": means(finals), "walks": walks}


if __name__ == "__main__":
    main()
