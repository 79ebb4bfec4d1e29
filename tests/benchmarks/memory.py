#!/usr/bin/env python
"""Peak memory of merging adapters of model scale, one process a measurement.

Prints the table of the documentation::

    python tests/benchmarks/memory.py FOLDER

FOLDER takes the adapters, 80 MB each, and the results; it should be on a disk and not in memory. What is counted is
anonymous memory (RssAnon of /proc/PID/status, looked at every few milliseconds): neither the code of libraries nor
files that the system caches are in it. Weights would be even if they were mapped and not read, as they are converted.
Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from model_scale import LAYERS, make

INTERVAL = 0.003  # seconds between two looks


class Peak(NamedTuple):
    """Largest anonymous and resident memory of a process, in MB, and how long it ran."""

    anonymous: float
    resident: float
    seconds: float


def peak_of(command: Sequence[str], env: dict[str, str] | None = None) -> Peak:
    """Run a command and watch its memory."""
    started = time.perf_counter()
    anonymous = resident = 0.0
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
            if "RssAnon" in fields:  # a process that has just ended has none
                anonymous = max(anonymous, _mb(fields["RssAnon"]))
                resident = max(resident, _mb(fields["VmHWM"]))
            time.sleep(INTERVAL)
        output = process.stdout.read() if process.stdout is not None else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
    return Peak(anonymous, resident, time.perf_counter() - started)


def _mb(field: str) -> float:
    return int(field.split()[0]) * 1024 / 1e6


def merge_command(method: str, paths: Sequence[Path], out: Path, *, k: int, jobs: int, how: str) -> list[str]:
    """Return the command that merges adapters to rank ``k`` in a process of its own.

    ``how`` is 'disk' (in Python, results on disk), 'memory' (in Python, results in memory) or 'cli'.
    """
    inputs = [str(path) for path in paths]
    if how == "cli":
        options = ["-o", str(out), "--method", method, "-k", str(k), "--jobs", str(jobs), "--overwrite", "--quiet"]
        return [sys.executable, "-m", "lorakit", "merge", *inputs, *options]
    options = ["--merge", method, "-k", str(k), "--jobs", str(jobs), "--how", how]
    return [sys.executable, __file__, *options, str(out), *inputs]


def merge(method: str, paths: Sequence[Path], out: Path, *, k: int, jobs: int, how: str) -> None:
    """Merge, in this process."""
    from contextlib import nullcontext

    from lorakit import load_adapters, results_on_disk, save_adapter
    from lorakit.discovery import all_estimators

    merger = all_estimators("merger")[method](k=k, n_jobs=jobs)
    merger.set_params(**{"random_state": 0} if "random_state" in merger.get_params() else {})
    with results_on_disk(out.parent) if how == "disk" else nullcontext():
        merger.fit(load_adapters(paths))
    save_adapter(merger.merged_, out, overwrite=True)


def measure(
    folder: Path,
    *,
    methods: Sequence[str],
    counts: Sequence[int],
    jobs: Sequence[int],
    layers: int,
    hows: Sequence[str],
) -> Iterator[tuple[tuple[str, str, int], float, dict[int, Peak]]]:
    """Yield for each case the interpreter's own peak, and the peak by number of adapters.

    The interpreter's own is that of the same merge of two adapters of one layer and rank 1: everything is imported, and
    next to nothing computed.
    """
    tiny = make(folder, adapters=2, rank=1, layers=1)
    paths = make(folder, adapters=max(counts), layers=layers)
    for method in methods:
        for how in hows:
            for n in jobs:
                own = peak_of(merge_command("svd", tiny, folder / "merged", k=2, jobs=n, how=how))
                peaks = {
                    count: peak_of(merge_command(method, paths[:count], folder / "merged", k=16, jobs=n, how=how))
                    for count in counts
                }
                yield (method, how, n), own.anonymous, peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=["svd", "lego"])
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 8, 32], help="how many adapters")
    parser.add_argument("--jobs", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--how", nargs="+", default=["disk", "cli", "memory"])
    options = parser.parse_args()
    print("method  how     jobs  adapters    own   peak  above  resident  seconds")
    for (method, how, jobs), own, peaks in measure(
        options.folder,
        methods=options.methods,
        counts=options.counts,
        jobs=options.jobs,
        layers=options.layers,
        hows=options.how,
    ):
        for count, peak in peaks.items():
            print(
                f"{method:6}  {how:6}  {jobs:4}  {count:8}  {own:5.0f}  {peak.anonymous:5.0f}  "
                f"{peak.anonymous - own:5.0f}  {peak.resident:8.0f}  {peak.seconds:7.1f}",
                flush=True,
            )


def _merge_here() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--merge")
    parser.add_argument("-k", type=int)
    parser.add_argument("--how")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+")
    options = parser.parse_args()
    merge(options.merge, options.inputs, options.out, k=options.k, jobs=options.jobs, how=options.how)


if __name__ == "__main__":
    _merge_here() if "--merge" in sys.argv else main()
