"""
Train every adapter that the experiments use
============================================

::

    python examples/reproduce/train_all.py            # one thread; see --list for what there is
    python examples/reproduce/train_all.py --quick    # seed 0 of rank 8 only

Adapters that are there already are kept, so that a run that was stopped goes on where it was. The order lets every
experiment run on one seed as early as possible.
"""

import argparse
import time
from collections.abc import Iterator

from tasks import TRAINED, USUAL, available
from training import Training, folder_of, metrics_of, trained

SEEDS = (0, 1, 2)
SHARED = "icd10"  # LEGO's table 2: the task of the adapter that the others add a unit to
ADDED = ("wn_pos", "deb_section", "langid", "wn_noun", "proglang", "movie")  # those that do
WIDE, NARROW = ("langid", "proglang", "wn_verb"), ("wn_noun", "tweets")  # of the merges of mixed ranks


def trainings(tasks: list[str]) -> Iterator[Training]:
    """Yield what is to be trained on the tasks that there are, each once, the most wanted first."""
    yield from dict.fromkeys(training for training in _wanted() if training.task in tasks)


def _wanted() -> Iterator[Training]:
    yield from (Training(task) for task in TRAINED)
    yield from (added(task) for task in ADDED)
    yield from (Training(task, rank=16) for task in WIDE)
    yield from (Training(task, rank=4) for task in NARROW)
    for seed in SEEDS[1:]:
        yield from (Training(task, seed=seed) for task in TRAINED)
    yield from (Training(task, shared_start=True) for task in USUAL)
    yield from (Training(task, rank=16) for task in USUAL)
    for seed in SEEDS[1:]:
        yield from (added(task, seed) for task in ADDED)
        yield from (Training(task, rank=16, seed=seed) for task in WIDE)
        yield from (Training(task, rank=4, seed=seed) for task in NARROW)


def added(task: str, seed: int = 0) -> Training:
    """The one unit that a task adds to the shared adapter of a seed."""
    return Training(task, rank=1, seed=seed, on=Training(SHARED, seed=seed))


def main() -> None:
    """Train what is missing and say how far it is."""
    options = parse_options()
    wanted = list(trainings(available()))
    if options.quick:
        wanted = [training for training in wanted if training == Training(training.task)]
    if options.list:
        for training in wanted:
            print(f"{'there' if folder_of(training).exists() else 'missing':9}{training}")
        return
    missing = [training for training in wanted if not folder_of(training).exists()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} adapters are there already.", flush=True)
    start = time.perf_counter()
    for done, training in enumerate(missing, 1):
        trained(training)
        metrics = metrics_of(training)
        assert metrics is not None
        left = (time.perf_counter() - start) / done * (len(missing) - done) / 60
        print(
            f"{done:3}/{len(missing)}  {training!s:42} validation {metrics['base_validation']:.3f} -> "
            f"{metrics['validation']:.3f}  {metrics['seconds']:5.0f} s, about {left:.0f} min left",
            flush=True,
        )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train every adapter that the experiments use.")
    parser.add_argument("--quick", action="store_true", help="only rank 8, seed 0")
    parser.add_argument("--list", action="store_true", help="say what there is, and train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
