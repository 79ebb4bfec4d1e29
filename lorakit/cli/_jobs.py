"""How many modules a command takes at a time, where ``--jobs`` does not say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import AdapterSet


@contextmanager
def modules_at_a_time(
    jobs: int | None, adapters: AdapterSet, *, device: str | None = None, whole_updates: bool = False
) -> Iterator[int]:
    """Let loops over modules in this block take as many modules at a time as ``--jobs`` says, or as may be.

    Yields
    ------
    int
        How many. An estimator whose ``n_jobs`` is None follows it.
    """
    from .._cores import usable_cores, usable_jobs
    from .._execution import may_fork

    with nullcontext() if device not in (None, "cpu") else may_fork():
        if jobs is not None:
            yield usable_cores() if jobs < 0 else jobs  # the estimator has it
            return
        workers = usable_jobs(adapters, device=device, whole_updates=whole_updates)
        if workers == 1:
            yield 1
            return
        from joblib import parallel_config

        with parallel_config("threading", n_jobs=workers):
            yield workers
