"""What the benchmarks share: one thread, CPU time, interleaved repeats, tables for the terminal and for the docs."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table as RichTable
from threadpoolctl import threadpool_info, threadpool_limits

from lorakit import Adapter, AdapterSet, LoraFactors

PATIENCE = 15.0  # CPU seconds from which a job is not repeated
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Cost(NamedTuple):
    """What running something takes: the least of several runs, of each time by itself."""

    cpu: float  # user and system time of the process, seconds
    wall: float  # seconds
    runs: int = 1

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.cpu + other.cpu, self.wall + other.wall, min(self.runs, other.runs))


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one thread: in torch, in every BLAS that is loaded, and in the processes that are started."""
    before = torch.get_num_threads()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def cost(job: Callable[[], object]) -> Cost:
    """Run once."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def least(costs: Sequence[Cost]) -> Cost:
    """Take the least of several runs: what others do on the machine can only add."""
    return Cost(min(c.cpu for c in costs), min(c.wall for c in costs), len(costs))


def interleaved(jobs: Mapping[str, Callable[[], object]], *, repeat: int) -> dict[str, Cost]:
    """Run every job in turn, then all again: a busy minute hits all of them. Jobs of over PATIENCE run once."""
    found: dict[str, list[Cost]] = {name: [] for name in jobs}
    for _ in range(repeat):
        for name, job in jobs.items():
            if not found[name] or found[name][0].cpu < PATIENCE:
                found[name].append(cost(job))
                print(f"  {name}: CPU {found[name][-1].cpu:.2f} s", file=sys.stderr)
    return {name: least(costs) for name, costs in found.items()}


def made_adapters(
    n_adapters: int, shapes: Mapping[str, tuple[int, int]], *, rank: int = 16, dtype: torch.dtype = torch.bfloat16
) -> AdapterSet:
    """Make adapters in memory: half of a unit is shared by all, norms of units decay; shapes are (d_out, d_in)."""
    modules: list[dict[str, LoraFactors]] = [{} for _ in range(n_adapters)]
    for m, (name, (d_out, d_in)) in enumerate(shapes.items()):
        generator = torch.Generator().manual_seed(m)
        decay = 0.1 * torch.linspace(1, 0.1, rank)

        def units(generator=generator, d_in=d_in, d_out=d_out):
            a = torch.randn(rank, d_in, generator=generator) / d_in**0.5
            return a, torch.randn(d_out, rank, generator=generator)

        shared_a, shared_b = units()
        for own in modules:
            a, b = units()
            own[name] = LoraFactors((0.5 * shared_a + a).to(dtype), ((0.5 * shared_b + b) * decay).to(dtype))
    return AdapterSet(Adapter(own, name=f"task{t}") for t, own in enumerate(modules))


class Table(NamedTuple):
    """Rows of text under titles; ``name`` is where it goes on the docs page."""

    name: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self, console: Console) -> None:
        """Print it."""
        shown = RichTable(box=None, title=self.name, title_justify="left")
        for i, title in enumerate(self.titles):
            shown.add_column(title, justify="right" if i and self._is_numbers(i) else "left", overflow="fold")
        for row in self.rows:
            shown.add_row(*row)
        console.print(shown, markup=False)

    def _is_numbers(self, column: int) -> bool:
        return all(re.fullmatch(r"[<>~]?[\d.,e+\-x ]*%?", row[column]) for row in self.rows)

    def rst(self) -> str:
        """Return it as reStructuredText."""
        lines = [[cell or ("\\" if not i else "") for i, cell in enumerate(row)] for row in self.rows]
        widths = [max(len(row[i]) for row in [list(self.titles), *lines]) for i in range(len(self.titles))]
        rule = "  ".join("=" * width for width in widths)
        body = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in lines]
        head = "  ".join(title.ljust(w) for title, w in zip(self.titles, widths, strict=True)).rstrip()
        return "\n".join([rule, head, rule, *body, rule])

    def put(self, page: Path) -> None:
        """Write it into the docs page, between the comments ``begin NAME`` and ``end NAME``."""
        pattern = rf"(\.\. begin {re.escape(self.name)}\n\n).*?(\n*\.\. end {re.escape(self.name)}\n)"
        text, n = re.subn(
            pattern, lambda m: f"{m[1]}{self.rst()}\n\n{m[2].lstrip()}", page.read_text(encoding="utf-8"), flags=re.S
        )
        if n != 1:
            raise ValueError(f"{page}: has {n} places for a table {self.name!r}; expected one, between two comments")
        page.write_text(text, encoding="utf-8")


def publish(tables: Sequence[Table], page: Path | None) -> None:
    """Show tables, and write them into the docs page if there is one."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print()
        table.show(console)
        if page is not None:
            table.put(page)


def machine() -> dict[str, str]:
    """Say what was measured on, in general terms."""
    found = {"Python": platform.python_version(), "cores": str(os.cpu_count()), "processor": platform.machine()}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "safetensors"):
        found[name] = version(name)
    blas = {f"{lib['internal_api']} {lib['version']}" for lib in threadpool_info() if lib["user_api"] == "blas"}
    found["BLAS of NumPy and SciPy"] = ", ".join(sorted(blas))
    match = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    found["BLAS of torch"] = match[1] if match else "unknown"
    return found
