"""
Merge and prune real adapters, and measure what is left
=======================================================

Five LoRA adapters of one sentence encoder, each good at a task of its own, become one adapter, by several methods. Each
result is judged on all five tasks. Merging itself needs no base model; only the measuring does. Run it with::

    python examples/quickstart.py
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from textwrap import fill, indent

from minilm import ADAPTERS, TASKS, Task, accuracy, load_base, load_task
from torch import nn

from lorakit import (
    Adapter,
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    CtMMerger,
    LegoMerger,
    LegoPruner,
    SVDMerger,
    SVDPruner,
    TiesMerger,
    TSVMerger,
    applied,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit.base import BaseMerger
from lorakit.exceptions import IncompatibleAdaptersError

# The mean of five updates that hardly overlap is far weaker than each of them. scale="match" gives a merge the strength
# (Frobenius norm) of a single adapter, module by module, and needs no data to do so. More is not better: see x 1.5.
MERGERS = {
    "average of A and of B": AverageMerger(),
    "exact mean": ConcatMerger(),
    "SVD": SVDMerger(k=16),
    "SVD, matched": SVDMerger(k=16, scale="match"),
    "SVD, matched x 1.5": SVDMerger(k=16, scale="match", scale_target=1.5),
    "TIES": TiesMerger(k=16, density=0.5),
    "TIES, matched": TiesMerger(k=16, density=0.5, scale="match"),
    "TSV, matched": TSVMerger(k=16, scale="match"),
    "CtM with Iso, matched": CtMMerger(k=16, rule="iso", scale="match"),
    "LEGO": LegoMerger(k=16, random_state=0),
    "LEGO, matched": LegoMerger(k=16, random_state=0, scale="match"),
    "LEGO, aligned, matched": LegoMerger(k=16, align="svd", random_state=0, scale="match"),
}
MIXED_RANKS = ("icd10", "langid_r16", "wn_noun_r4", "wn_pos", "deb_section")  # in the order of TASKS
MIXED_MERGERS = {
    "average of A and of B": AverageMerger(),
    "SVD, matched": SVDMerger(k=16, scale="match"),
    "LEGO, aligned, matched": LegoMerger(k=16, align="svd", random_state=0, scale="match"),
}
PRUNERS = {"SVD": SVDPruner(k=4), "LEGO": LegoPruner(k=4, random_state=0)}

Scores = dict[str, float]  # accuracy by task


def main() -> None:
    """Merge, prune, measure, print a table, save the best merge."""
    options = parse_options()
    base = load_base()
    tasks = [load_task(name, base, options.texts) for name in TASKS]
    print(
        f"Accuracy on {options.texts} test texts a task. 'kept' is accuracy divided by that of the task's own adapter,"
    )
    print("mean over the tasks; 'seconds' is what merging or pruning took.\n")
    print_header()

    adapters = load_adapters([ADAPTERS / name for name in TASKS])
    single = own_scores(base, adapters, tasks)
    print_row("base model, no adapter", evaluate(base, None, tasks), single)
    print_row("five adapters, each on its task", single, single, rank="8")

    print("\nFive adapters of rank 8, merged")
    merged = merge_each(MERGERS, adapters, base, tasks, single)

    print("\nFive adapters of ranks 4, 8 and 16, merged")
    mixed = load_adapters([ADAPTERS / name for name in MIXED_RANKS])
    mixed_single = own_scores(base, mixed, tasks)
    print_row("each on its task", mixed_single, mixed_single, rank="4-16")
    merge_each(MIXED_MERGERS, mixed, base, tasks, mixed_single)

    print("\nOne adapter of rank 16, pruned to 4 without retraining")
    wide = mixed[["langid_r16"]]
    langid = [task for task in tasks if task.name == "langid"]
    unpruned = evaluate(base, wide[0], langid)
    print_row("langid_r16", unpruned, unpruned, rank="16")
    for what, pruner in PRUNERS.items():
        start = time.perf_counter()
        (pruned,) = pruner.fit_transform(wide)
        seconds = time.perf_counter() - start
        print_row(what, evaluate(base, pruned, langid), unpruned, rank=rank_of(pruned), seconds=seconds)

    best = max(merged, key=lambda what: mean(merged[what][1]))
    save_adapter(merged[best][0], options.output)
    again = evaluate(base, load_adapter(options.output), tasks)
    print(f"\nSaved '{best}' as a PEFT adapter in {options.output}; read back, its mean accuracy is {mean(again):.3f}.")
    print("It is the best on these texts; for work of your own, choose on texts that you do not report.")


def merge_each(
    mergers: Mapping[str, BaseMerger], adapters: AdapterSet, base: nn.Module, tasks: list[Task], single: Scores
) -> dict[str, tuple[Adapter, Scores]]:
    """Merge by each method and print what that gives; a method that cannot merge these adapters says why."""
    results = {}
    for what, merger in mergers.items():
        start = time.perf_counter()
        try:
            merged = merger.fit(adapters).merged_
        except IncompatibleAdaptersError as error:
            print(indent(fill(f"{what}: refused. {error}", width=116), "  "))
            continue
        seconds = time.perf_counter() - start
        scores = evaluate(base, merged, tasks)
        print_row(what, scores, single, rank=rank_of(merged), seconds=seconds)
        results[what] = merged, scores
    return results


def evaluate(base: nn.Module, adapter: Adapter | None, tasks: list[Task]) -> Scores:
    """Accuracy of the base model with an adapter, or without one, on each task."""
    with applied(base, adapter) if adapter is not None else nullcontext():
        return {task.name: accuracy(base, task) for task in tasks}


def own_scores(base: nn.Module, adapters: AdapterSet, tasks: list[Task]) -> Scores:
    """Accuracy of each adapter on the task that it was trained for."""
    scores: Scores = {}
    for adapter, task in zip(adapters, tasks, strict=True):
        scores |= evaluate(base, adapter, [task])
    return scores


def mean(scores: Mapping[str, float]) -> float:
    """Mean over the tasks."""
    return sum(scores.values()) / len(scores)


def rank_of(adapter: Adapter) -> str:
    """The adapter's rank, or its lowest and highest."""
    return "-".join(str(rank) for rank in sorted({adapter.ranks[0], adapter.ranks[-1]}))


def print_header() -> None:
    """Print the names of the columns."""
    names = "".join(f"{name:>13}" for name in TASKS)
    print(f"{'':34}{'rank':>6}{names}{'mean':>8}{'kept':>8}{'seconds':>9}")


def print_row(what: str, scores: Scores, single: Scores, rank: str = "", seconds: float | None = None) -> None:
    """Print one row as soon as it is known."""
    cells = "".join(f"{scores[name]:13.3f}" if name in scores else f"{'':13}" for name in TASKS)
    overall = f"{mean(scores):8.3f}" if len(scores) > 1 else f"{'':8}"
    kept = mean({name: scores[name] / single[name] for name in scores})
    took = "" if seconds is None else f"{seconds:9.1f}"
    print(f"  {what:32}{rank:>6}{cells}{overall}{kept:8.3f}{took}", flush=True)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Merge and prune real adapters, and measure what is left.")
    parser.add_argument("--texts", type=int, default=200, metavar="N", help="texts a task, 10 to 200 (default: 200)")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to save the best merge (default: a temporary folder)"
    )
    options = parser.parse_args()
    if not 10 <= options.texts <= 200:
        parser.error(f"--texts must be between 10 and 200, got {options.texts}")
    if options.output is None:
        options.output = Path(tempfile.mkdtemp(prefix="lorakit-")) / "merged"
    elif options.output.exists():
        parser.error(f"{options.output} exists already; name a new folder")  # now, not after all the work
    return options


if __name__ == "__main__":
    main()
