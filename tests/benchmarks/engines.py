#!/usr/bin/env python
"""What joblib's engines cost: seconds of a merge of adapters of model scale, and the bytes that workers are sent.

Prints the tables of the documentation::

    python tests/benchmarks/engines.py FOLDER

FOLDER takes the adapters. Each time is the median of three; the first merge on an engine, in which its workers start
and import, stands by itself.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib
from model_scale import make

from lorakit import AdapterSet, LegoMerger, SVDMerger, TiesMerger, load_adapters

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from on_engine import engine
from pickling_engine import pickled

MERGERS = {
    "svd": SVDMerger(k=16),
    "lego": LegoMerger(k=16, random_state=0),
    "ties": TiesMerger(k=16),
}


def print_bytes(adapters: AdapterSet) -> None:
    """Print bytes a module of the task and of the result, and what it takes to open them."""
    print("method  adapters  task bytes  result bytes")
    for name, merger in MERGERS.items():
        for count in (1, 2, 8):
            with pickled() as sent:
                merger.fit(adapters[:count])
            task, result = (statistics.mean(column) for column in zip(*sent, strict=True))
            print(f"{name:6}  {count:8}  {task:10.0f}  {result:12.0f}")
    whole, one = pickle.dumps(adapters), pickle.dumps(adapters.only(adapters.module_names[0]))
    print(f"unpickling {len(adapters)} adapters: whole {_ms(whole):.1f} ms, with one module {_ms(one):.2f} ms")


def _ms(pickled_set: bytes) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        pickle.loads(pickled_set)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def print_seconds(adapters: AdapterSet) -> None:
    """Print seconds of a merge by engine."""
    print("engine     jobs  method    first  median")
    for name, jobs in (("sequential", 1), ("threading", 2), ("loky", 2), ("dask", 2), ("ray", 2)):
        with _one() if name == "sequential" else engine(name, jobs):
            for method in ("svd", "lego"):
                times = []
                for _ in range(4):
                    started = time.perf_counter()
                    MERGERS[method].fit(adapters)
                    times.append(time.perf_counter() - started)
                median = statistics.median(times[1:])
                print(f"{name:9}  {jobs:4}  {method:6}  {times[0]:7.2f}  {median:6.2f}", flush=True)


@contextmanager
def _one() -> Iterator[None]:
    with joblib.parallel_config(n_jobs=1):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    adapters = load_adapters(make(options.folder, adapters=8, layers=options.layers))
    print_bytes(adapters)
    print_seconds(adapters)


if __name__ == "__main__":
    main()
