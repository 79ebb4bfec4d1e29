"""Calls in processes that are forked from this one: they have what it has imported, and no lock in common with it."""

from __future__ import annotations

import mmap
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, TypeVar

from .exceptions import OutputError, Words

Result = TypeVar("Result")
_QUEUED = 2  # calls that a worker has been sent: it need not wait for the next one
_AHEAD = 4  # results for each worker that may be ready before the one that is wanted
_AREA = 2**26  # bytes that a worker shares with its parent for one result; only what is used of them takes memory


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
    from multiprocessing.connection import wait

    ready: dict[int, tuple[bool, Any]] = {}
    sent = 0
    workers: list[_Worker] = []
    try:
        for _ in range(min(n_workers, n_calls)):
            workers.append(_Worker(call))
        for wanted in range(n_calls):
            while wanted not in ready:
                for depth in range(_QUEUED):
                    for worker in workers:
                        # the last calls go to who has nothing else to do
                        room = depth == 0 or n_calls - sent > len(workers)
                        if worker.waiting == depth and room and sent < min(n_calls, wanted + _AHEAD * len(workers)):
                            worker.send(sent)
                            sent += 1
                answered = wait([w.answers for w in workers] + [w.process.sentinel for w in workers])
                for worker in workers:
                    if worker.answers in answered:
                        index, fine, result = worker.receive()
                        ready[index] = fine, result
                    elif worker.process.sentinel in answered:
                        raise worker.died()
            fine, result = ready.pop(wanted)
            if not fine:
                raise result
            yield result
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """The parent's end of one process."""

    def __init__(self, call: Callable[[int], Any]) -> None:
        from multiprocessing import get_context

        context = get_context("fork")
        self._areas = [mmap.mmap(-1, _AREA) for _ in range(_QUEUED)]
        self.answers, its = context.Pipe()
        self.process = context.Process(target=_work, args=(its, self._areas, call), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on
            self.process.start()
        its.close()
        self.waiting = self._taken = 0

    def send(self, index: int) -> None:
        """Ask for a call."""
        with suppress(BrokenPipeError):  # its end is seen when it is waited for
            self.answers.send(index)
        self.waiting += 1

    def receive(self) -> tuple[int, bool, Any]:
        """Return which call was made, whether it returned, and what it returned or raised."""
        try:
            index, fine, head, sizes = self.answers.recv()
        except (EOFError, ConnectionResetError):
            raise self.died() from None
        area, end, parts = self._areas[self._taken % _QUEUED], 0, []
        for size in sizes:  # copies, as the area is written to again, and NumPy can write to what pickle makes of them
            parts.append(bytearray(memoryview(area)[end : end + size]))
            end += size
        self.waiting -= 1
        self._taken += 1
        return index, fine, pickle.loads(head, buffers=parts)

    def died(self) -> OutputError:
        """Return the error that says how the process ended."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by the signal {signal.Signals(-code).name}" if code < 0 else f"ended with the code {code}"
        return OutputError(
            f"a process that worked on some of the modules {how}",
            remedy=(
                "if memory ran out, work on one module at a time: ",
                Words("pass n_jobs=1", "pass --jobs 1"),
            ),
        )

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        self.process.join()
        self.answers.close()
        for area in self._areas:
            area.close()


class _InWorker(Exception):
    """The traceback of an error in another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _work(answers: Any, areas: list[mmap.mmap], call: Callable[[int], Any]) -> None:
    """Make the calls that are asked for, until the parent has no more, or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of it too, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    done = 0
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            index = answers.recv()
            fine, head, parts = _pickled(call, index)
            memory, end = memoryview(areas[done % _QUEUED]), 0
            for part in parts:
                memory[end : end + part.nbytes] = part
                end += part.nbytes
            answers.send((index, fine, head, [part.nbytes for part in parts]))
            done += 1


def _pickled(call: Callable[[int], Any], index: int) -> tuple[bool, bytes, list[memoryview]]:
    """Return whether a call returned, and what it returned or raised: pickled, but for arrays, which are apart."""
    try:
        result = call(index)
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        if sum(part.nbytes for part in parts) > _AREA:
            return True, pickle.dumps(result, protocol=5), []
        return True, head, parts
    except Exception as error:
        return False, _pickled_error(error), []


def _pickled_error(error: Exception) -> bytes:
    text = traceback.format_exc()
    try:
        return pickle.dumps(_Raised(error, text))
    except Exception:  # a library's own, which does not pickle
        return pickle.dumps(_Raised(RuntimeError(f"{type(error).__name__}: {error}"), text))


class _Raised:
    """An error that pickles with where it was raised."""

    def __init__(self, error: Exception, text: str) -> None:
        self.error, self.text = error, text

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_cause, (self.error, self.text)


def _with_cause(error: Exception, text: str) -> Exception:
    error.__cause__ = _InWorker(text)
    return error
