#!/usr/bin/env python
"""Merge a thousand adapters: time and memory of ``partial_fit`` as their number grows, and what groups give away.

    python tests/benchmarks/many.py --page docs/results/many.rst     # ten minutes
    python tests/benchmarks/many.py --most 125 --width 1024          # half a minute

The adapters, of rank 16 on one square module, are made when they are read: no table counts their files. Half of each
unit is shared by all, and the norms of units decay, as in the other benchmarks. One thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Table, cost, machine, publish, single_thread
from memory import peak_of

from lorakit import (
    AdapterSet,
    LegoMerger,
    LoraFactors,
    SVDMerger,
    TaskArithmeticMerger,
    TiesMerger,
    TSVMerger,
    merge_in_groups,
)
from lorakit.adapters import Adapter, ModuleInfo
from lorakit.linalg import frobenius_norm, residual_norm
from lorakit.metrics import compare_to_each, relative_error
from lorakit.provenance import Provenance

RANK, K, KEEP, CALL = 16, 16, 64, 25
EXACT = 125  # most adapters whose sum is formed to compare with
NAME = "layer"


class Made:
    """One made-up adapter: its factors are drawn whenever they are read."""

    checked = True
    dtype = torch.bfloat16

    def __init__(self, seed: int, width: int) -> None:
        self.seed, self.width = seed, width
        self.infos = {NAME: ModuleInfo(RANK, width, width)}

    def read(self, module: str) -> LoraFactors:
        """Draw the factors: the same ones each time."""
        shared, own = (self._units(seed) for seed in (0, 1 + self.seed))
        a, b = (0.5 * x + y for x, y in zip(shared, own, strict=True))
        return LoraFactors(a, b * (0.1 * torch.linspace(1, 0.1, RANK)))

    def _units(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(RANK, self.width, generator=generator) / self.width**0.5
        return a, torch.randn(self.width, RANK, generator=generator)


def adapters(n: int, width: int, first: int = 0) -> AdapterSet:
    """Some made-up adapters."""
    return AdapterSet(
        Adapter.from_reader(Made(i, width), name=f"client{i}", provenance=Provenance()) for i in range(first, first + n)
    )


def merged_as_they_come(merger: Any, n: int, width: int) -> Any:
    """Merge n adapters, some in each call."""
    for first in range(0, n, CALL):
        merger = merger.partial_fit(adapters(min(CALL, n - first), width, first), keep=KEEP)
    return merger


def true_error(n: int, width: int) -> float:
    """Distance of the running sum to the sum of all, over the norm of the running sum."""
    with single_thread():
        total = merged_as_they_come(SVDMerger(k=K), n, width).running_sum_.modules[NAME].factors
        updates = [x[NAME] for x in adapters(n, width)]
        return residual_norm(total, updates, [1.0] * n).item() / frobenius_norm(total).item()


def growth(counts: Sequence[int], width: int) -> list[Table]:
    """CPU time and peak memory of partial_fit, each number of adapters in a process of its own."""
    rows, seconds = [], []
    for n in counts:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "found.json")
            found = peak_of([sys.executable, __file__, "--one", str(n), str(width), str(out)])
            own = json.loads(out.read_text())
        seconds.append(own["cpu"])
        # of more, all units at once would need the memory that this saves
        error = f"{true_error(n, width):.4f}" if n <= EXACT else "-"
        rows.append([str(n), str(n * RANK), f"{own['cpu']:.1f}", f"{found.anonymous:.0f}", error, *own["errors"]])
        print(rows[-1], file=sys.stderr)
    exponent = np.polyfit(np.log(counts), np.log(seconds), 1)[0]
    rows.append(["exponent", "", f"{exponent:.2f}", "", "", "", ""])
    titles = ("adapters", "R", "CPU s", "peak MB", "error / norm", "bound / norm", "cut to k / norm")
    return [Table("running", titles, rows)]


def one(n: int, width: int, out: str) -> None:
    """Measure partial_fit in this process."""
    with single_thread():
        made: list[Any] = []
        reading = cost(lambda: sum(x[NAME].rank for x in adapters(n, width)))  # none is kept
        took = cost(lambda: made.append(merged_as_they_come(SVDMerger(k=K), n, width)))
    merger = made[0]
    own = merger.running_sum_.modules[NAME]
    norm = frobenius_norm(own.factors).item()
    errors = [f"{own.lost / norm:.4f}", f"{merger.truncation_error_[NAME] * n / norm:.4f}"]
    Path(out).write_text(json.dumps({"cpu": took.cpu - reading.cpu, "errors": errors}))


def groups(n: int, width: int, size: int) -> Table:
    """What merging in groups gives away: against one merge, and against the mean of all."""
    X = adapters(n, width)
    rows = []
    for name, merger in {
        "svd": SVDMerger(k=K),
        "tsv": TSVMerger(k=K, scale="match"),
        "lego": LegoMerger(k=K, random_state=0),
        "ties, core": TiesMerger(k=K, space="core"),
        "task_arithmetic": TaskArithmeticMerger(k=K, space="core"),
    }.items():
        made: dict[str, Any] = {}
        with single_thread():
            whole = cost(lambda m=merger, made=made: made.update(whole=m.fit(X).merged_))
            parts = cost(lambda m=merger, made=made: made.update(parts=merge_in_groups(m, X, size=size)))
        cosines = [np.mean([c.cosine for c in compare_to_each(made[way], X)]) for way in ("whole", "parts")]
        differs = relative_error(made["parts"], made["whole"])
        rows.append([name, f"{whole.cpu:.1f}", f"{parts.cpu:.1f}", f"{differs:.3f}", *(f"{c:.4f}" for c in cosines)])
    titles = ("method", "one merge, CPU s", "groups, CPU s", "differs by", "mean cosine, one", "mean cosine, groups")
    return Table("groups", titles, rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--grouped", type=int, default=64, help="adapters that are merged in groups and at once")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    counts = [options.most // 8, options.most // 4, options.most // 2, options.most]
    tables = growth(counts, options.width)
    tables.append(groups(options.grouped, options.width, options.group))
    publish(tables, options.page)
    print(machine())


if __name__ == "__main__":
    one(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]) if sys.argv[1:2] == ["--one"] else main()
