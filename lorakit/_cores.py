"""How many modules to take at a time, where nobody says: the cores that may be used, as far as memory goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command asks for the cores before torch is imported
    from .adapter_set import AdapterSet

# Fewer numbers than these in all modules are done before a second worker helps
_SMALL = 2**23
# What a worker holds of one module: copies of its units in float32, and R x R matrices in float64
_COPIES, _SQUARES = 6, 8
_SHARE = 0.5  # of the memory that is free, for the work on modules
_LIMITS = (  # what a container may use, and what it uses: cgroup version 2, version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by the limits of its container."""
    from joblib import cpu_count

    return int(cpu_count())


def usable_jobs(X: AdapterSet, *, whole_updates: bool = False, device: str | None = None) -> int:
    """Return how many modules of these adapters to take at a time.

    Parameters
    ----------
    X : AdapterSet
        The adapters.
    whole_updates : bool, default=False
        Whether the work forms whole updates, (d_out, d_in).
    device : str or None, default=None
        Where it is done. Threads would share a GPU, and its memory.

    Returns
    -------
    int
        The cores that this process may use, but no more modules than fit in half of the memory that is free, and 1
        for adapters that are so small that a second thread does not help.
    """
    if device not in (None, "cpu"):
        return 1
    numbers = sum(adapter.n_parameters for adapter in X)
    jobs = min(usable_cores(), len(X.module_names), numbers // _SMALL + 1)
    free = free_memory() if jobs > 1 else None
    if free is None:
        return max(jobs, 1)
    largest = max(bytes_of_module(X, module, whole_updates=whole_updates) for module in X.module_names)
    return max(1, min(jobs, int(_SHARE * free / largest)))


def bytes_of_module(X: AdapterSet, module: str, *, whole_updates: bool) -> int:
    """Return about how many bytes the work on one module takes."""
    infos = [info for info in X.infos(module) if info is not None]
    d_in, d_out, rank = infos[0].d_in, infos[0].d_out, sum(info.rank for info in infos)
    size = max(4, X.dtype.itemsize)
    n = min(rank, d_in + d_out)  # beyond the width, frames have no more directions
    thin = _COPIES * rank * (d_in + d_out) * size + _SQUARES * 8 * n * n
    return thin + (3 * d_in * d_out * size if whole_updates else 0)


def free_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes are free for this process, in the system and in its container; None if nothing says it."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in _LIMITS:
        with suppress(OSError, ValueError):  # "max" where there is none
            folder = root / "sys/fs/cgroup"
            found.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    if not found and hasattr(os, "sysconf"):
        asked: Callable[[str], int] = os.sysconf
        with suppress(OSError, ValueError):
            found.append(asked("SC_AVPHYS_PAGES") * asked("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None
