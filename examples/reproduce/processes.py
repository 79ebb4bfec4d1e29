"""
Several measurements at a time
==============================

::

    with Processes(options.jobs) as processes:
        for found in processes.map(measure, [("icd10", 0), ("langid", 0)]):
            ...
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap
from multiprocessing import get_context
from typing import Any, Self


class Processes:
    """Processes that stay, each with a base model of its own; of one, this process.

    They are started anew and not forked, which torch does not survive once it has run. joblib's would be replaced when
    the models and texts that they keep look like a leak.
    """

    def __init__(self, n: int) -> None:
        self._pool = ProcessPoolExecutor(n, mp_context=get_context("spawn")) if n > 1 else None

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield ``function(*arguments)`` for each of the arguments, in their order."""
        if self._pool is None:
            return starmap(function, arguments)
        return (future.result() for future in [self._pool.submit(function, *given) for given in arguments])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
