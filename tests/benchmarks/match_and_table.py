#!/usr/bin/env python
"""CPU time of ``scale='match'`` with the comparison of the closing table, over that of ``fit`` alone, by method.

    python tests/benchmarks/match_and_table.py              # in two checkouts, one after the other

Adapters are in memory, so that nothing is read. Runs of the two are interleaved, and the median of their ratios counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from measuring import single_thread

from lorakit.discovery import all_estimators
from lorakit.testing import make_adapters


def cpu(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=["tsv", "svd", "lego", "ties"])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--modules", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    sizes = {"d_in": given.width, "d_out": given.width, "n_modules": given.modules}
    adapters = make_adapters(8, ranks=(32,), random_state=0, **sizes)
    estimators = all_estimators("merger")
    with single_thread():
        for method in given.methods:
            own = {"random_state": 0} if "random_state" in estimators[method]().get_params() else {}
            alone = estimators[method](n_jobs=1, **own)
            whole = estimators[method](n_jobs=1, scale="match", **own)
            alone.fit(adapters), whole.fit_compare(adapters)  # imports and first calls
            times = [
                (cpu(lambda m=alone: m.fit(adapters)), cpu(lambda m=whole: m.fit_compare(adapters)))
                for _ in range(given.runs)
            ]
            ratio = median(both / fit for fit, both in times)
            print(f"{method:8} fit {min(t for t, _ in times):.3f} s, with match and table {ratio:.2f} times as much")


if __name__ == "__main__":
    main()
