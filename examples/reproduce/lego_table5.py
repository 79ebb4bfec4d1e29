"""
LEGO, table 5: merging adapters of different ranks
==================================================

The paper trains three of its seven adapters with rank 16 instead of 8, and merges all seven. Averages of A and B,
task arithmetic and TIES on A and B need one rank, so only the ensemble is left to compare LEGO with, and LEGO wins::

    python examples/reproduce/lego_table5.py --jobs 2

Here the same with seven tasks of ours, then with two more of them at rank 4, beside all of them at rank 8. Which
methods cannot do it is found by trying. Two that the paper does not have can: the mean of the updates cut by SVD, and
TIES on the updates, both to LEGO's rank, which is twice the mean of the adapters'.

As in table 3 each method is measured twice: as the paper has it, and at a scale chosen on validation texts for each
method and mix of ranks, with the adapters of the first seed.
"""

import argparse
from collections.abc import Mapping, Sequence

from evaluation import Evaluator
from lego_table3 import (
    ARITHMETIC,
    AS_PUBLISHED,
    AVERAGE,
    BASE,
    CHOSEN,
    LEGO,
    OWN,
    Found,
    Pool,
    accuracy,
    left_out,
    merge,
    numbers,
    run,
)
from processes import Processes
from report import Report, Table, mean_spread, parse, parser, progress, seeds, standing
from standings import Right, difference, right_of, right_of_own

from lorakit import AdapterSet
from lorakit.exceptions import IncompatibleAdaptersError

TASKS = ("icd10", "wn_pos", "wn_noun", "tweets", "langid", "proglang", "wn_verb")
WIDE = {"langid": 16, "proglang": 16, "wn_verb": 16}
MIXES: dict[str, dict[str, int]] = {
    "8": {},
    "8 and 16": WIDE,
    "4, 8 and 16": WIDE | {"wn_noun": 4, "tweets": 4},
}
METHODS = (AVERAGE, ARITHMETIC, "TIES", "ensemble", "SVD", "TIES on B A", LEGO)
REFUSED = "refused"

Mixes = dict[str, tuple[dict[str, float], Found]]  # chosen norms, and what was right, by mix of ranks


def main() -> None:
    """Merge what can be merged, choose the scales, report."""
    options = parse(parser("LEGO's table 5: adapters of different ranks in one merge."), TASKS)
    tasks, others = options.tasks, left_out(options.tasks, options.quick)
    mixes = mixes_of(tasks, options.quick)
    found: Mixes = {}
    references: dict[str, list[Right]] = {}
    test = Evaluator("test", options.n_test)
    with Processes(options.jobs) as processes:
        for mix, ranks in mixes.items():
            pools = [Pool(tuple(tasks), seed, ranks) for seed in options.seeds]
            able = mergeable(pools[0].load())
            progress(f"ranks {mix}: {len(able)} of {len(METHODS)} methods take them")
            targets, right, _ = run(pools, able, others, options, processes)
            found[mix] = targets, right
            references[mix] = [right_of_own(pool.load(), test) for pool in pools]
    base = right_of(None, [*tasks, *others], test)
    report = Report("lego_table5", options)
    report.numbers = {mix: {"targets": targets, "scores": numbers(right)} for mix, (targets, right) in found.items()}
    report.tables.append(table(found, references, base, tasks, others, options))
    report.publish()


def mixes_of(tasks: Sequence[str], quick: bool) -> dict[str, dict[str, int]]:
    """The mixes of ranks that these tasks have, each once; of a quick run the paper's alone."""
    found: dict[str, dict[str, int]] = {}
    for mix, ranks in MIXES.items():
        there = {task: rank for task, rank in ranks.items() if task in tasks}
        if there not in found.values() and (there or not quick):
            found[mix] = there
    return dict(list(found.items())[:1]) if quick else found


def mergeable(adapters: AdapterSet) -> list[str]:
    """The methods that take these adapters; those that refuse their ranks are left out."""
    small = adapters.only(adapters.module_names[0])
    found = []
    for what in METHODS:
        try:
            merge(what, small)
        except IncompatibleAdaptersError:
            continue
        found.append(what)
    return found


def table(
    found: Mixes,
    references: Mapping[str, list[Right]],
    base: Right,
    tasks: Sequence[str],
    others: Sequence[str],
    options: argparse.Namespace,
) -> Table:
    """One row a mix of ranks and method, at both scales: means over seen tasks, left-out tasks and all."""
    groups = {"seen": tasks, "left out": others, "all": [*tasks, *others]}

    def cells(right: list[Right], which: Sequence[str] = tuple(groups)) -> list[str]:
        return [mean_spread([accuracy(r, groups[group]) for r in right]) if group in which else "" for group in groups]

    rows = [["", BASE, "", *cells([base]), "", ""]]
    for mix, (targets, right) in found.items():
        rows.append([mix, OWN, "", *cells(references[mix], ["seen"]), "", ""])
        for scale in (AS_PUBLISHED, CHOSEN):
            for what in METHODS:
                if scale == CHOSEN and what == AVERAGE:
                    continue  # at a chosen scale it is task arithmetic
                if what not in targets:
                    rows.append(["", what, scale, REFUSED, REFUSED, REFUSED, "", ""])
                    continue
                behind, error = difference(right[scale][what], right[scale][LEGO])
                against = "" if what == LEGO else f"{100 * behind:+.1f} ± {100 * error:.1f}"
                size = f"{targets[what]:g}" if scale == CHOSEN or what == ARITHMETIC else ""
                rows.append(["", what, scale, *cells(right[scale][what]), against, size])
    caption = (
        f"Mean accuracy of merges of {len(tasks)} adapters of different ranks on their tasks and on {len(others)} "
        f"that are left out, {options.n_test} test texts each, {seeds(options.seeds)}; points more than LEGO, mean of "
        f"all, with the standard error over texts; and the norm chosen on {options.n_validation} validation texts a "
        "seen task, in mean norms of the adapters."
    )
    titles = ["ranks", "method", "scale", *groups, "against LEGO", "norm"]
    return Table("lego-table-5", titles, rows, caption, verdict(found, tasks, others))


def verdict(found: Mixes, tasks: Sequence[str], others: Sequence[str]) -> str:
    """Say which methods refuse, and whether LEGO is ahead of the ensemble, and how often."""
    sentences = []
    for mix, (targets, right) in found.items():
        refused = [what for what in METHODS if what not in targets]
        if refused:
            sentences.append(f"Ranks {mix}: {', '.join(refused)} (on A and B) cannot merge these.")
        for scale in (AS_PUBLISHED, CHOSEN):
            scores = {what: [accuracy(r, [*tasks, *others]) for r in by_seed] for what, by_seed in right[scale].items()}
            sentences.append(f"Ranks {mix}, {scale}, all tasks: {standing(scores, LEGO, 'ensemble')}")
    return " ".join([*sentences, "(The paper, ranks 8 and 16, all tasks: LEGO ahead of the ensemble by 0.5 points.)"])


if __name__ == "__main__":
    main()
