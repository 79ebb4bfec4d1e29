"""Merges inside searches: what an estimator merged, and a memory so that each merge is made only once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
from sklearn.base import clone
from sklearn.utils.validation import check_memory

from .._version import __version__
from ..adapter_set import AdapterSet
from ..adapters import Adapter


def merged_of(estimator: Any) -> Adapter:
    """Return what a fitted estimator merged.

    Parameters
    ----------
    estimator : object
        An estimator with ``merged_``, a pipeline that ends in one, or a search whose best estimator is one.

    Raises
    ------
    TypeError
        If ``estimator`` holds no merged adapter.
    """
    found = estimator
    while found is not None:
        merged = getattr(found, "merged_", None)
        if isinstance(merged, Adapter):
            return merged
        steps = getattr(found, "steps", None)
        found = steps[-1][1] if steps else getattr(found, "best_estimator_", None)
    raise TypeError(
        f"{type(estimator).__name__} has no merged adapter; expected a fitted merger, a pipeline that ends in one, or "
        "a search over them that keeps its best (refit)"
    )


def fit_merger(merger: Any, adapters: AdapterSet, memory: Any) -> Any:
    """Return a fitted clone of ``merger``; with a memory, a merge that is there already is not made again.

    Parameters
    ----------
    merger : estimator
        Not changed.
    adapters : AdapterSet
        What to merge.
    memory : None, path or joblib.Memory
        Where merges are kept. The version of lorakit, the merger's parameters and the adapters identify one.
    """
    memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
    location = getattr(memory, "location", None)
    merger = clone(merger)
    if isinstance(memory, joblib.Memory) and location is None:
        return merger.fit(adapters)
    key = joblib.hash((__version__, merger, adapters))
    with _alone(location, key):
        return memory.cache(_fit, ignore=["merger", "adapters"])(key, merger, adapters)


def _fit(key: str, merger: Any, adapters: AdapterSet) -> Any:
    return merger.fit(adapters)


@contextmanager
def _alone(location: Any, key: str) -> Iterator[None]:
    """Let one process or thread at a time make a merge: folds of one candidate start together, and joblib has no lock.

    The lock only saves work: where there are no file locks, each process makes the merge itself.
    """
    if not isinstance(location, (str, os.PathLike)):
        yield
        return
    folder = Path(location) / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / key).open("w") as file:
        with suppress(ImportError, OSError):  # Windows has no fcntl, some network file systems have no locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a process that is killed
        yield
