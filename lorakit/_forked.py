"""Calls in processes that are forked from this one: they have what it has imported, and start at once."""

from __future__ import annotations

import ctypes
import pickle
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from .exceptions import OutputError, Words

Result = TypeVar("Result")
_AHEAD = 4  # results for each worker that may be ready before the one that is wanted
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>

_call: Callable[[int], Any]  # in a worker: what it does


def forked(call: Callable[[int], Result], n_calls: int, n_workers: int) -> Generator[Result, None, None]:
    """Yield ``call(0), call(1), ...`` in this order, from calls in processes.

    Parameters
    ----------
    call : callable
        What to do. It need not pickle; what it returns or raises must.
    n_calls : int
        How many times.
    n_workers : int
        Number of processes.

    Raises
    ------
    Exception
        What a call raises, in the order of the calls.
    OutputError
        If a process ends before it has done its work.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import active_children, get_context

    others = set(active_children())
    pool = ProcessPoolExecutor(min(n_workers, n_calls), get_context("fork"), initializer=_begin, initargs=(call,))
    waiting: deque[Future[bytes]] = deque()
    workers: set[Any] = set()
    sent = 0
    try:
        for _ in range(n_calls):
            while sent < n_calls and len(waiting) < _AHEAD * n_workers:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on
                    waiting.append(pool.submit(_answer, sent))
                workers |= set(active_children()) - others
                sent += 1
            try:
                answer = waiting.popleft().result()
            except BrokenProcessPool:
                pool.shutdown()  # its thread waits for the workers, and only one can be told how they ended
                raise _died(workers) from None
            yield pickle.loads(answer)
    finally:
        for worker in workers:
            worker.terminate()
        pool.shutdown(cancel_futures=True)


def _died(workers: set[Any]) -> OutputError:
    """Return the error that says how a process ended; the pool ends the others by SIGTERM then."""
    codes = sorted({worker.exitcode for worker in workers} - {0, -signal.SIGTERM, None})
    code = codes[0] if codes else -signal.SIGTERM
    how = f"was ended by the signal {signal.Signals(-code).name}" if code < 0 else f"ended with the code {code}"
    return OutputError(
        f"a process that worked on some of the modules {how}",
        remedy=(
            "if memory ran out, work on one module at a time: ",
            Words("pass n_jobs=1", "pass --jobs 1"),
        ),
    )


def _begin(call: Callable[[int], Any]) -> None:
    """Get a worker ready."""
    global _call
    _call = call
    for number in (signal.SIGINT, signal.SIGTERM):  # the handlers are the parent's
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # or it would wait for a parent that was killed


def _answer(index: int) -> bytes:
    """Make a call; what it returns is pickled here, as torch's tensors would go through shared files otherwise."""
    try:
        return pickle.dumps(_call(index), protocol=5)
    except Exception as error:
        told = _that_pickles(error)
    raise told  # here, with no other error in its context: libraries such as tblib pickle that too


def _that_pickles(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a library's own
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
        return told
    return error
