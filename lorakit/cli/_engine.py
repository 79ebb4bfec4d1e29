"""Where modules are worked on: threads of this process, processes, or a cluster of Dask or Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ._jobs import modules_at_a_time
from ._options import together

if TYPE_CHECKING:
    from .. import AdapterSet

_PACKAGES = {"loky": None, "dask": "distributed", "ray": "ray"}
_WAIT = "30s"  # for a scheduler to answer

engine_options = together(
    click.option("--engine", type=click.Choice(list(_PACKAGES)),
                 help="Work on modules in other processes: loky, on this machine; dask or ray, on a cluster of these, "
                      "or on processes that they start here. Never changes the result.  "
                      "[default: processes that this one forks, or threads where the system forks none]"),
    click.option("--address", metavar="ADDRESS",
                 help="Where the cluster runs: tcp://HOST:8786 of a Dask scheduler; HOST:6379, ray://HOST:10001 or "
                      "auto of Ray. Its machines open the adapters under the same paths."),
)  # fmt: skip


def check_engine(engine: str | None, address: str | None) -> None:
    """Refuse options that do not go together, before any work is done.

    Raises
    ------
    click.UsageError
        If there is an address that no engine takes.
    ImportError
        If the engine is not installed.
    """
    if address is not None and engine not in ("dask", "ray"):
        raise click.UsageError("--address is for --engine dask or --engine ray")
    package = None if engine is None else _PACKAGES[engine]
    if package is not None and find_spec(package) is None:
        raise ImportError(f"--engine {engine} needs a package: pip install 'lorakit[{engine}]'")


@contextmanager
def on_engine(
    engine: str | None,
    address: str | None,
    jobs: int | None,
    adapters: AdapterSet,
    *,
    device: str | None = None,
    whole_updates: bool = False,
) -> Iterator[int]:
    """Let loops over modules in this block run on an engine; estimators must have ``n_jobs=None`` then.

    Yields
    ------
    int
        How many modules are worked on at a time.
    """
    if engine is None:
        with modules_at_a_time(jobs, adapters, device=device, whole_updates=whole_updates) as workers:
            yield workers
        return
    from .._cores import usable_cores

    workers = usable_cores() if jobs is None or jobs < 0 else max(jobs, 1)
    entered: Callable[..., AbstractContextManager[int]] = {"loky": _loky, "dask": _dask, "ray": _ray}[engine]
    with entered(address, workers, own=jobs is not None) as n:
        yield n


@contextmanager
def _loky(_: str | None, workers: int, *, own: bool) -> Iterator[int]:
    from joblib import parallel_config

    with parallel_config("loky", n_jobs=workers):
        yield workers


@contextmanager
def _dask(address: str | None, workers: int, *, own: bool) -> Iterator[int]:
    from distributed import Client, LocalCluster
    from joblib import parallel_config

    if address is None:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
            parallel_config("dask", n_jobs=workers),
        ):
            yield workers
        return
    try:
        client = Client(address, timeout=_WAIT)
    except (OSError, TimeoutError, ValueError) as error:
        raise _unreachable("Dask scheduler", address, error) from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise click.UsageError(f"--address {address}: the Dask scheduler has no workers; start some: dask worker")
        # -1 would be the threads of all workers at this moment; a cluster may still grow
        with parallel_config("dask", n_jobs=workers if own else -1):
            yield workers if own else threads


@contextmanager
def _ray(address: str | None, workers: int, *, own: bool) -> Iterator[int]:
    import ray
    from joblib import parallel_config
    from ray.util.joblib import register_ray

    register_ray()
    how: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": workers}
    try:
        ray.init(
            **({"address": address} if address is not None else how), log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise _unreachable("Ray cluster", address or "local", error) from error
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        n = workers if own or address is None else cores
        with parallel_config("ray", n_jobs=n):
            yield n
    finally:
        ray.shutdown()


def _unreachable(what: str, address: str, error: Exception) -> click.UsageError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return click.UsageError(f"--address {address}: there is no {what} that answers: {reason}")
