"""Where the per-module work runs: device and dtype, the loop over modules, seeds, progress."""

from __future__ import annotations

import os
import sys
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from .adapter_set import AdapterSet
from .exceptions import OutputError, ParameterError
from .factors import LoraFactors, all_finite, promoted_dtype

Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # called with (done, total): numbers of modules, or of steps of a training
_PART = 16  # modules a worker whose results are held at one time, on engines that cannot stream results
_BLOCK = 2**25 - 2**16  # bytes; glibc takes its largest threshold, 32 MB, from a block just below
# What brings a library with threads of its own when it is imported
_WITH_THREADS = ("numpy", "torch", "scipy.linalg", "scipy.special", "sklearn", "sklearn.cluster", "cuml")
_progress: ContextVar[Progress | None] = ContextVar("lorakit_progress", default=None)
_may_fork: ContextVar[bool] = ContextVar("lorakit_may_fork", default=False)


@contextmanager
def report_progress(callback: Progress) -> Iterator[None]:
    """Call ``callback(done, total)`` from loops over modules, and over steps of a training, inside the block."""
    token = _progress.set(callback)
    try:
        yield
    finally:
        _progress.reset(token)


def report_done(done: int, total: int) -> None:
    """Tell the callback of :func:`report_progress`, if there is one, how much of a loop is done."""
    if (callback := _progress.get()) is not None:
        callback(done, total)


@contextmanager
def may_fork() -> Iterator[None]:
    """Let loops over modules in this block run in forked processes instead of threads, where the system allows it.

    Only for a program that lorakit owns, such as its command line. A forked process has none of the threads of its
    parent: where one of these held a lock of a library, nobody would ever release it.
    """
    token = _may_fork.set(sys.platform == "linux")
    try:
        yield
    finally:
        _may_fork.reset(token)


Task = Callable[[AdapterSet, str], Result]


def map_modules(task: Task[Result], X: AdapterSet, *, n_jobs: int | None, verbose: int) -> list[Result]:
    """Call ``task(X, module)`` for every module and return the results in the order of ``X.module_names``.

    The parameters are those of :func:`iter_modules`, with one task for all modules.
    """
    return list(iter_modules(lambda module: task, X, n_jobs=n_jobs, verbose=verbose))


def iter_modules(
    task_of: Callable[[str], Task[Result]],
    X: AdapterSet,
    *,
    n_jobs: int | None,
    verbose: int,
    leave: Callable[[str, Result], Result] | None = None,
) -> Generator[Result, None, None]:
    """Call ``task_of(module)(X, module)`` for every module, on the engine that joblib is configured with.

    Parameters
    ----------
    task_of : callable
        From a module's name to its task, which must pickle. A task receives the set with nothing but the module in it,
        still lazy: a worker in another process opens the files itself, and receives nothing that it does not need.
    X : AdapterSet
        The adapters.
    n_jobs : int or None
        As in joblib. Threads are preferred; ``joblib.parallel_config`` can choose another engine.
    verbose : int
        From 1, a progress bar is drawn, unless :func:`report_progress` has somebody watch already; above 1, joblib
        writes its messages too.
    leave : callable, optional
        Called with a module's name and its result in a forked process that made it. It returns what travels instead,
        such as the place in a file to which it wrote what is large.

    Yields
    ------
    object
        One result for each module, in the order of ``X.module_names``, as soon as it is ready. Results that the caller
        does not keep are not held.
    """
    modules, said = X.module_names, set[str]()
    config, caller = _sklearn_config(), os.getpid()

    def call_of(module: str) -> tuple[Any, ...]:
        return task_of(module), X.only(module), module, config, caller

    _keep_freed_memory()  # of this process, which reads the results
    with one_thread(), _drawn(verbose) as tell:
        if (forks := _forks(n_jobs, len(modules))) > 1:
            found = _by_forks(call_of, modules, forks, leave)
        else:
            found = _by_joblib(call_of, modules, n_jobs, verbose if verbose > 1 else 0)
        with closing(found):
            for done, (result, warned) in enumerate(found, start=1):
                _warn_again(warned, said)
                tell(done, len(modules))
                yield result


def _by_forks(
    call_of: Callable[[str], tuple[Any, ...]],
    modules: Sequence[str],
    workers: int,
    leave: Callable[[str, Any], Any] | None,
) -> Generator[tuple[Any, list[UserWarning]], None, None]:
    from ._forked import forked

    def call(i: int) -> tuple[Any, list[UserWarning]]:
        _may_fork.set(False)
        torch.set_num_threads(1)  # of MKL too, to which one_thread says nothing once this has been called for more
        result, warned = _run(*call_of(modules[i]))
        return (result if leave is None else leave(modules[i], result)), warned

    return forked(call, len(modules), workers)


def _by_joblib(
    call_of: Callable[[str], tuple[Any, ...]], modules: Sequence[str], n_jobs: int | None, verbose: int
) -> Generator[tuple[Any, list[UserWarning]], None, None]:
    from joblib import delayed  # here, as a command that reads one adapter needs none of it

    streams, parts = _parts(modules)
    parallel = _parallel(n_jobs=n_jobs, verbose=verbose, prefer="threads", return_as="generator" if streams else "list")
    # As a context, Parallel keeps its workers between parts: those of Ray take seconds to start.
    with nullcontext() if streams else parallel:
        for part in parts:
            found = parallel(delayed(_run)(*call_of(module)) for module in part)
            with closing(found) if streams else nullcontext():
                yield from found


def _forks(n_jobs: int | None, n_modules: int) -> int:
    """Return in how many forked processes to work; 1 for the engine that joblib is configured with."""
    if not _may_fork.get() or n_jobs == 1:
        return 1
    from joblib.parallel import ThreadingBackend, get_active_backend

    backend, configured = get_active_backend(prefer="threads")
    if not isinstance(backend, ThreadingBackend):
        return 1
    return min(int(backend.effective_n_jobs(n_jobs or configured or 1)), n_modules)


def _drawn(verbose: int) -> AbstractContextManager[Progress]:
    """Return the context of a bar over modules, if it is asked for and nobody else draws one; it gives whom to tell."""
    if not verbose or _progress.get() is not None:
        return nullcontext(report_done)
    from ._bars import bar

    return bar("modules")


def _parallel(**options: Any) -> Any:
    """Return joblib's loop, without its warning where it is left early: only an error does that."""
    from joblib import Parallel

    parallel = Parallel(**options)
    parallel._warn_exit_early = lambda: None
    return parallel


def _sklearn_config() -> dict[str, Any] | None:
    """Return what scikit-learn is configured with, for the workers; None where nothing has imported it."""
    if "sklearn" not in sys.modules:
        return None
    from sklearn import get_config

    config: dict[str, Any] = get_config()
    return config


def _configured(config: dict[str, Any] | None) -> AbstractContextManager[Any]:
    if config is None:
        return nullcontext()
    from sklearn import config_context

    context: AbstractContextManager[Any] = config_context(**config)
    return context


def _parts(modules: Sequence[str]) -> tuple[bool, list[Sequence[str]]]:
    """Return whether the engine streams results, and the modules in parts; one part holds all its results at a time."""
    from joblib.parallel import get_active_backend

    backend, n_workers = get_active_backend(prefer="threads")
    if backend.supports_return_generator:
        return True, [modules]
    size = _PART * max(1, backend.effective_n_jobs(n_workers or 1))
    return False, [modules[i : i + size] for i in range(0, len(modules), size)]


def _run(
    task: Task[Result], X: AdapterSet, module: str, config: dict[str, Any] | None, caller: int
) -> tuple[Result, list[UserWarning]]:
    """Return what a task returns, and its warnings if this is another process, whose warnings nobody would see."""
    _keep_freed_memory()
    elsewhere = os.getpid() != caller
    try:
        with (
            one_thread(),
            _configured(config),
            warnings.catch_warnings(record=True) if elsewhere else nullcontext(()) as found,
        ):
            if elsewhere:
                warnings.simplefilter("always")
            result = task(X, module)
            return result, [w.message for w in found if isinstance(w.message, UserWarning)]
    except torch.linalg.LinAlgError as error:
        raise OutputError(
            f"a decomposition of the updates fails ({str(error).partition(chr(10))[0]})",
            module=module,
            adapters=X.names,
            remedy="their numbers are too large, too small or too far apart for the method",
        ) from error
    except Exception as error:
        error.add_note(f"in module {module!r} of the adapters {list(X.names)}")
        raise


def _warn_again(warned: Sequence[Warning], said: set[str]) -> None:
    """Warn of what other processes warned of, once."""
    for warning in warned:
        if str(warning) not in said:
            said.add(str(warning))
            warnings.warn(warning, stacklevel=2)


@cache
def _keep_freed_memory() -> None:
    """Have glibc's allocator keep what a module frees for the next one; elsewhere this does nothing.

    The allocator returns large blocks to the system, and learns from freed blocks which ones are large. Until a block
    of 32 MB has been freed, each matrix of a module is fresh memory, which the system fills with zeros page by page.
    """
    torch.empty(_BLOCK, dtype=torch.uint8)  # freed at once, and never written to: it takes no memory


@cache
def _controller(_: tuple[str, ...]) -> ThreadpoolController:
    return ThreadpoolController()  # scans the loaded libraries: once is enough until another one is loaded


def one_thread() -> AbstractContextManager[Any]:
    """Limit linear algebra to one thread inside a ``with`` block.

    Engines then agree bit for bit, as the order of sums does not depend on thread counts, and ``n_jobs`` workers do not
    oversubscribe the cores. The loop sets it around itself as well as in each task, because some libraries keep one
    limit for the process and others one for each thread.
    """
    loaded = tuple(name for name in _WITH_THREADS if name in sys.modules)
    limit: AbstractContextManager[Any] = _controller(loaded).limit(limits=1)
    return limit


def base_seed(random_state: Any) -> int:
    """Draw the one number from which every module's seed is derived."""
    from sklearn.utils import check_random_state

    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def module_rng(seed: int, module: str) -> np.random.RandomState:
    """Random state of one module: a function of the drawn number and the module's name.

    It does not depend on ``n_jobs``, the engine, the order of the modules or which other modules there are.
    """
    return np.random.RandomState(np.random.SeedSequence([seed, zlib.crc32(module.encode())]).generate_state(4))


def read_module(X: AdapterSet, module: str, device: str | torch.device | None) -> list[LoraFactors]:
    """Read one module of every adapter, to the device, in one dtype: that of the adapters, but at least float32.

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    factors = X.factors(module)
    for adapter, update in zip(X, factors, strict=True):
        if not adapter.checked and not all(all_finite(factor) for factor in update):
            raise ValueError(
                f"{adapter.name}: module {module!r} has NaN or infinite values; expected finite weights: use an "
                "earlier checkpoint, or find out which step made them"
            )
    return to_compute(factors, device)


def to_compute(factors: Sequence[LoraFactors], device: str | torch.device | None) -> list[LoraFactors]:
    """Move one module's factors to the device, in one dtype: theirs, but at least float32."""
    if device is not None:
        _require_device(str(device))
    dtype = promoted_dtype([torch.float32, *(f.dtype for f in factors if f.rank)])
    return [f.to(dtype=dtype, device=device or "cpu") for f in factors]


@cache
def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises any of these
        raise ParameterError(
            f"device {device!r} cannot be used: {str(error).partition(chr(10))[0]}",
            expected="a device that this torch was built for and this machine has",
            remedy="leave the device out to compute on the CPU",
        ) from error


def to_output(factors: LoraFactors, dtype: torch.dtype, module: str) -> LoraFactors:
    """Bring a result back to the host in the dtype of the inputs.

    Raises
    ------
    OutputError
        If a value is not finite after the cast.
    """
    out = factors.to(dtype=dtype, device="cpu")
    if not (all_finite(out.A) and all_finite(out.B)):
        largest = max(factors.A.abs().max().item(), factors.B.abs().max().item())
        raise OutputError(
            f"the result has values that {str(dtype).removeprefix('torch.')} cannot hold (the largest "
            f"is {largest:.3g})",
            module=module,
            remedy="convert the adapters to bfloat16 or float32, or lower the scale",
        )
    return out


def gpu(device: str | torch.device | None) -> AbstractContextManager[Any] | None:
    """Return the context in which other libraries use the NVIDIA GPU that torch calls ``device``.

    None if it is another device, or if there is no such GPU.
    """
    if device is None or torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return None
    context: AbstractContextManager[Any] = torch.cuda.device(torch.device(device))
    return context
