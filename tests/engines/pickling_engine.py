"""A joblib engine of threads that sends tasks and results through pickles, as engines of processes do, and counts."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import joblib
from joblib._parallel_backends import ThreadingBackend


class Sent(NamedTuple):
    """Bytes of one task, with what it works on, and of its result."""

    task: int
    result: int


class PickleBackend(ThreadingBackend):
    """Sends every task by itself; streams its results unless told otherwise."""

    supports_return_generator = True

    def __init__(self, sent: list[Sent] | None = None, streams: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.sent = [] if sent is None else sent
        self.supports_return_generator = streams

    def compute_batch_size(self) -> int:
        """Return 1."""
        return 1

    def submit(self, func: Callable[[], Any], callback: Any = None) -> Future[Any]:
        """Run a task in a thread, from its pickle."""
        return super().submit(_Pickled(pickle.dumps(func), self.sent), callback)


class _Pickled:
    def __init__(self, task: bytes, sent: list[Sent]) -> None:
        self.task, self.sent = task, sent

    def __call__(self) -> Any:
        result = pickle.dumps(pickle.loads(self.task)())
        self.sent.append(Sent(len(self.task), len(result)))
        return pickle.loads(result)


@contextmanager
def pickled(*, streams: bool = True, n_jobs: int = 2) -> Iterator[list[Sent]]:
    """Have joblib use this engine; gives the list to which it adds what it sends."""
    sent: list[Sent] = []
    joblib.register_parallel_backend("lorakit-pickle", PickleBackend)
    with joblib.parallel_config("lorakit-pickle", n_jobs=n_jobs, sent=sent, streams=streams):
        yield sent
