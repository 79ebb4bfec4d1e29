#!/usr/bin/env python
"""Time ``lorakit merge`` as it is called, from the start of the process to its exit, beside its parts and the floor.

    python tests/benchmarks/job.py FOLDER --page docs/results/performance.rst
    python tests/benchmarks/job.py FOLDER --layers 1 --runs 2      # a minute
    python tests/benchmarks/job.py FOLDER --only ceiling           # one of: start, job, ceiling, parts

FOLDER takes the adapters, as in ``speed.py``. Every command is a fresh process; runs are interleaved and their medians
count, because ratios of one run are what carries over. The floor reads, casts and writes the same files with
safetensors' own functions, in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from measuring import THREADS, Table, cost, machine, publish, single_thread
from model_scale import LAYERS, make
from safetensors.torch import save_file
from speed import WEIGHTS, read_with_safetensors, write_with_safetensors

from lorakit import load_adapters, results_on_disk, save_adapter
from lorakit._cores import usable_cores
from lorakit.discovery import all_estimators
from lorakit.files import digests
from lorakit.io.formats import record

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
SMALL = [EXAMPLES / name for name in ("langid", "icd10")]
METHODS: dict[str, dict[str, Any]] = {  # options of the command line beyond the default; the first is the default
    "tsv": {},
    "svd": {"k": 32},
    "lego": {"k": 32},
    "ties": {"k": 32, "space": "core"},
}
PARTS: dict[str, list[str]] = {  # what is timed for each part: attributes, by the module that looks them up
    "read, cast, scale": ["lorakit.base._merger.read_module"],
    "Gram matrices": [f"lorakit.linalg.{name}.gram_of" for name in ("frames", "svd", "spaces", "products")]
    + ["lorakit.cluster._pool.gram_of"],
    "decompositions": [f"torch.linalg.{name}" for name in ("eigh", "svd", "cholesky_ex", "solve_triangular", "qr")],
    "combining units": [f"lorakit.linalg.frames.{name}" for name in ("combine", "combine_rows")]
    + ["lorakit.linalg.svd.combine_rows", "lorakit.cluster.units._mixed"],
    "seeds, distances and k-means": ["lorakit.cluster.units.problems_of", "lorakit.cluster.units.solved"],
    "products for 'match' and the table": [
        "lorakit.base._results.overlap_of",
        "lorakit.base._results.frobenius_norm",
        "lorakit.merging._spectral.overlap_of",
        "lorakit.merging._elementwise.overlap_of",
        "lorakit.linalg.svd._overlap",
        "lorakit.cluster._overlaps.Mixture.overlap",
        "lorakit.base._merger.rounding_of",
    ],
    "cast to the dtype of the file, check": ["lorakit.base._merger.to_output"],
    "results on disk": ["lorakit.results._OnDisk.put"],
}


class Process(NamedTuple):
    """What a whole process took."""

    wall: float
    cpu: float


def run(command: Sequence[str], threads: int) -> Process:
    """Run a command to its end."""
    return run_together([command], threads)


def run_together(commands: Sequence[Sequence[str]], threads: int) -> Process:
    """Run commands at the same time, until the last one ends."""
    env = os.environ | dict.fromkeys(THREADS, str(threads))
    began, cpu = time.perf_counter(), 0.0
    started = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for command in commands]
    for process in started:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu += used.ru_utime + used.ru_stime
    wall = time.perf_counter() - began
    for process, command in zip(started, commands, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed")
    return Process(wall, cpu)


def medians(jobs: Mapping[str, Callable[[], Process]], runs: int) -> dict[str, Process]:
    """Run all jobs in turn, several times."""
    found: dict[str, list[Process]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            found[name].append(job())
            print(f"  {name}: wall {found[name][-1].wall:.2f} s, CPU {found[name][-1].cpu:.2f} s", file=sys.stderr)
    return {name: Process(median(r.wall for r in own), median(r.cpu for r in own)) for name, own in found.items()}


def start_up(out: Path, runs: int) -> Table:
    """What commands take on next to nothing, against importing torch."""
    python = [sys.executable]
    two = list(map(str, SMALL))
    commands = {
        'python -c "import torch"': [*python, "-c", "import torch"],
        "lorakit methods": [*python, "-m", "lorakit", "methods"],
        "lorakit inspect A": [*python, "-m", "lorakit", "inspect", two[0]],
        "lorakit inspect A B": [*python, "-m", "lorakit", "inspect", *two],
        "lorakit diff A A": [*python, "-m", "lorakit", "diff", two[0], two[0]],
        "lorakit merge A B": small_merge(out),
    }
    found = medians({name: lambda c=c: run(c, 1) for name, c in commands.items()}, runs)
    base = next(iter(found.values()))
    rows = [
        [name, f"{f.wall:.2f}", f"{f.cpu:.2f}", f"{f.wall / base.wall:.2f}", f"{f.cpu / base.cpu:.2f}"]
        for name, f in found.items()
    ]
    return Table("start", ("command", "wall s", "CPU s", "x torch, wall", "x torch, CPU"), rows)


def merge_command(method: str, paths: Sequence[Path], out: Path, jobs: int | None) -> list[str]:
    """The command line of one merge."""
    options = dict(METHODS[method])
    command = [sys.executable, "-m", "lorakit", "merge", *map(str, paths), "-o", str(out), "--overwrite", "-m", method]
    if "k" in options:
        command += ["-k", str(options.pop("k"))]
    for name, value in options.items():
        command += ["-p", f"{name}={value}"]
    return command + ([] if jobs is None else ["-j", str(jobs)])


def small_merge(out: Path) -> list[str]:
    """The command line of a merge of next to nothing."""
    return [sys.executable, "-m", "lorakit", "merge", *map(str, SMALL), "-o", str(out), "--overwrite"]


def floor(paths: Sequence[Path], ranks: Sequence[int], out: Path) -> dict[int, Process]:
    """Read and cast the inputs, write a result of each of these ranks: on one thread."""
    infos = load_adapters(paths[:1])[0].infos
    found = {}
    with single_thread():
        for rank in ranks:
            tensors = {
                f"{module}.{side}": torch.zeros(rank, width, dtype=torch.bfloat16)
                for module, info in infos.items()
                for side, width in (("A", info.d_in), ("B", info.d_out))
            }
            save_file(tensors, out)
            both = [
                cost(lambda: read_with_safetensors(paths)) + cost(lambda t=tensors: write_with_safetensors(t, out))
                for _ in range(3)
            ]
            found[rank] = Process(median(c.wall for c in both), median(c.cpu for c in both))
    return found


def whole_jobs(paths: Sequence[Path], out: Path, runs: int) -> Table:
    """Every method on the command line, on one core and on all, above what a small merge takes."""
    ranks = {m: METHODS[m].get("k") or sum(max(a.ranks) for a in load_adapters(paths)) for m in METHODS}
    least = floor(paths, sorted(set(ranks.values())), out.parent / "floor.safetensors")
    jobs = {
        f"{m}, {'-j 1' if j else 'default'}": lambda m=m, j=j: run(merge_command(m, paths, out, j), 1)
        for m in METHODS
        for j in (1, None)
    }
    found = medians({"small": lambda: run(small_merge(out), 1)} | jobs, runs)
    empty = found["small"]
    rows = []
    for m in METHODS:
        base = least[ranks[m]]
        one, many = found[f"{m}, -j 1"], found[f"{m}, default"]
        times = [base.wall, one.wall, one.cpu, many.wall, many.cpu]
        over = [(one.cpu - empty.cpu) / base.cpu, (many.wall - empty.wall) / base.wall]
        faster = [one.wall / many.wall, (one.wall - empty.wall) / (many.wall - empty.wall)]
        cells = [f"{x:.2f}" for x in times], [f"{x:.1f}" for x in over], [f"{x:.2f}" for x in faster]
        rows.append([m, str(ranks[m]), *chain(*cells)])
    titles = ("method", "rank", "floor, s", "-j 1: wall", "CPU", f"{usable_cores()} cores: wall", "CPU")
    ratios = ("x floor, -j 1, CPU", "x floor, all, wall", "speed-up", "above start-up")
    return Table("job", titles + ratios, rows)


def ceiling(paths: Sequence[Path], out: Path, runs: int) -> Table:
    """What the machine has to give: the default method in two processes that know nothing of one another."""
    first, second = out.with_name("first"), out.with_name("second")
    outs, method = (first, second), next(iter(METHODS))
    jobs = {
        "small": lambda: run(small_merge(first), 1),
        "two small": lambda: run_together([small_merge(own) for own in outs], 1),
        "-j 1": lambda: run(merge_command(method, paths, first, 1), 1),
        "-j 2": lambda: run(merge_command(method, paths, first, 2), 1),
        "two with -j 1": lambda: run_together([merge_command(method, paths, own, 1) for own in outs], 1),
    }
    found = medians(jobs, runs)
    one, start = found["-j 1"], found["small"].wall

    def row(name: str, of: str, n: int, empty: float) -> list[str]:
        took = found[of]
        ratios = n * one.wall / took.wall, n * (one.wall - start) / (took.wall - empty)
        return [name, f"{took.wall:.2f}", f"{took.cpu:.2f}", *(f"{ratio:.2f}" for ratio in ratios)]

    rows = [
        ["-j 1", f"{one.wall:.2f}", f"{one.cpu:.2f}", "", ""],
        row("-j 2", "-j 2", 1, start),
        row("two with -j 1 at a time", "two with -j 1", 2, found["two small"].wall),
    ]
    return Table("ceiling", ("jobs of the default method", "wall s", "CPU s", "speed-up", "above start-up"), rows)


class Clock:
    """Time of each part, without that of parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._stack.append(0.0)
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.process_time() - began
                inside = self._stack.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + took - inside
                if self._stack:
                    self._stack[-1] += took

        return wrapper


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """Time the parts inside the block."""
    replaced = []
    for part, names in PARTS.items():
        for name in names:
            where, _, attribute = name.rpartition(".")
            try:
                owner: Any = importlib.import_module(where)
            except ModuleNotFoundError:
                module, _, cls = where.rpartition(".")
                owner = getattr(importlib.import_module(module), cls)
            true = getattr(owner, attribute)
            replaced.append((owner, attribute, true))
            setattr(owner, attribute, clock.timed(part, true))
    try:
        yield
    finally:
        for owner, attribute, true in replaced:
            setattr(owner, attribute, true)


def merger_of(method: str, **given: Any) -> Any:
    """The merger of a row."""
    seed = {"random_state": 0} if method == "lego" else {}
    return all_estimators("merger")[method](**METHODS[method], **seed, **given)


def parts(paths: Sequence[Path], out: Path, runs: int) -> list[Table]:
    """Where the time of each method goes, and what the job takes over fit alone: in one process, on one thread."""
    columns, ratios = {}, []
    for method in METHODS:
        X = load_adapters(paths)
        clock, alone, job, hashed, saved = Clock(), [], [], [], []
        with single_thread(), results_on_disk(out.parent):
            merger_of(method).fit(X)
            for _ in range(runs):
                digests.digest.cache_clear()
                fitted = merger_of(method, scale="match")
                alone.append(cost(lambda m=method, X=X: merger_of(m).fit(X)).cpu)
                job.append(cost(lambda f=fitted, X=X: f.fit_compare(X)).cpu)
                hashed.append(cost(lambda: [record.file_digest(path / WEIGHTS) for path in paths]).cpu)
                saved.append(cost(lambda f=fitted: save_adapter(f.merged_, out, overwrite=True)).cpu)
            with clocked(clock):
                total = cost(lambda m=method, X=X: merger_of(m, scale="match").fit_compare(X)).cpu
        fit, compare, digest, save = map(median, (alone, job, hashed, saved))
        own = {part: clock.seconds.get(part, 0.0) for part in PARTS}
        own["the rest: small products, loop, checks"] = total - sum(own.values())
        columns[method] = own | {"all of fit and comparison": total, "hash of the inputs": digest, "save": save}
        whole = compare + digest + save
        ratios.append(
            [method, *(f"{x:.2f}" for x in (fit, compare, digest, save)), f"{compare / fit:.2f}", f"{whole / fit:.2f}"]
        )
    rows = [[part, *(f"{columns[m][part]:.2f}" for m in METHODS)] for part in next(iter(columns.values()))]
    titles = ("method", "fit", "with 'match' and table", "hash", "save", "match and table / fit", "all / fit")
    return [Table("jobparts", ("part, CPU s", *METHODS), rows), Table("python", titles, ratios)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--part-layers", type=int, default=4, help="layers on which the parts are timed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["start", "job", "ceiling", "parts"], help="measure this alone")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    paths = make(options.folder, adapters=8, layers=options.layers)
    few = make(options.folder, adapters=8, layers=min(options.part_layers, options.layers))
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        out = Path(scratch, "merged")
        measured: dict[str, Callable[[], list[Table]]] = {
            "start": lambda: [start_up(out, 2 * options.runs)],
            "job": lambda: [whole_jobs(paths, out, options.runs)],
            "ceiling": lambda: [ceiling(paths, out, options.runs)],
            "parts": lambda: parts(few, out, options.runs),
        }
        chosen = measured if options.only is None else [options.only]
        tables = list(chain.from_iterable(measured[name]() for name in chosen))
    rows = [["before", f"{before:.1f}"], ["after", f"{os.getloadavg()[0]:.1f}"]]
    publish([*tables, Table("load", ("", "processes that ran"), rows)], options.page)
    print(machine())


if __name__ == "__main__":
    main()
