"""Which library runs Lloyd's algorithm, and Lloyd's algorithm from given centres in each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn import config_context
from sklearn.cluster import KMeans

from .._execution import gpu, one_thread
from ._lloyd import lloyd
from ._pairwise import lloyd as lloyd_numpy
from ._pairwise import squared_distances
from ._rows import Floats, Ints

Backend = Literal["auto", "numpy", "sklearn", "torch", "cuml"]
BACKENDS = ("auto", "numpy", "sklearn", "torch", "cuml")

_ROUND_OFF = 1e-12  # cuML's tolerance: an inertia that falls by less has stopped falling
# Most memory of one batch of torch's, unless a single start takes more. A CPU is fastest while a batch fits its cache.
_BATCH_BYTES = {"cpu": 2**24, "gpu": 2**28}
_DISTANCES = 2**18  # the same for NumPy: most distances from points to centres that it goes through at a time


class Engine(NamedTuple):
    """A library and the device it computes on."""

    backend: str  # 'numpy', 'sklearn', 'torch' or 'cuml'
    device: str | None = None  # as torch names it; None is the CPU


class Problem(NamedTuple):
    """Points to cluster, and the starts: all that Lloyd's algorithm needs."""

    points: Floats  # (n, d)
    weights: Floats  # (n,)
    seeds: Ints  # (n_init, k), the points that each start takes for its centres
    tol: float  # squared shift of the centres at which to stop, relative to the mean variance of the d coordinates
    squared: Floats | None = None  # (n, n), squared distances between the points, where they are known


class Run(NamedTuple):
    """What one start of Lloyd's algorithm gives."""

    labels: Ints  # (n,), index of the nearest centre
    inertia: float  # weighted sum of the squared distances to the centres
    n_iter: int


def choose_engine(backend: str, device: str | None) -> Engine:
    """Return the library that ``backend`` stands for on a device.

    Parameters
    ----------
    backend : {'auto', 'numpy', 'sklearn', 'torch', 'cuml'}
        'auto' is cuML on an NVIDIA GPU if it can be imported, torch on one if not, and NumPy elsewhere.
    device : str or None
        As torch names it; None is the CPU.

    Raises
    ------
    ValueError
        If the device cannot be used, or is not what the library computes on.
    ImportError
        If the library cannot be imported.
    """
    if device is not None:
        try:
            torch.zeros(1, device=device).item()
        except Exception as error:  # torch raises RuntimeError, AssertionError and others
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"device {device!r} cannot be used: {reason}; pass device=None for the CPU") from error
    on_gpu = gpu(device) is not None
    if backend == "auto":
        backend = ("torch" if isinstance(_cuml(), Exception) else "cuml") if on_gpu else "numpy"
    elif backend == "cuml":
        if not on_gpu:
            raise ValueError(
                f"backend='cuml' computes on NVIDIA GPUs, got device={device!r}; name the GPU as torch does (and "
                "pip install 'lorakit[cuml]'), or pass backend='torch', which computes on any device"
            )
        found = _cuml()
        if isinstance(found, Exception):
            raise ImportError(
                f"backend='cuml' needs cuML, which cannot be imported here ({type(found).__name__}: {found}); "
                "pip install 'lorakit[cuml]', or pass backend='torch'"
            ) from found
    return Engine(backend, device)


def _cuml() -> Any:
    """Return the module ``cuml.cluster``, or what came of importing it."""
    try:
        return import_module("cuml.cluster")
    except Exception as error:  # a missing driver or a library of another version raises all kinds of errors
        return error


def solve(problems: Sequence[Problem], engine: Engine, *, max_iter: int) -> list[list[Run]]:
    """Run Lloyd's algorithm from every start of every problem.

    Parameters
    ----------
    problems : sequence of Problem
        Of any shapes. torch takes those of one shape together.
    engine : Engine
        What computes.
    max_iter : int
        Most iterations of a start.

    Returns
    -------
    list of list of Run
        One list a problem, in it one run a start.
    """
    # Past 256 rows scikit-learn takes several OpenMP threads and adds their sums in the order in which they finish:
    # results would depend on the machine and, with three threads or more, on the run.
    with one_thread():
        if engine.backend == "numpy":
            return [_solve_numpy(problem, max_iter) for problem in problems]
        if engine.backend == "torch":
            return _solve_torch(problems, engine.device, max_iter)
        if engine.backend == "cuml":
            return [[lloyd_cuml(p, s, engine.device, max_iter=max_iter) for s in p.seeds] for p in problems]
        with config_context(assume_finite=True, skip_parameter_validation=True):  # checks take longer than small fits
            return [[lloyd_sklearn(p, s, max_iter=max_iter) for s in p.seeds] for p in problems]


def _solve_numpy(problem: Problem, max_iter: int) -> list[Run]:
    """All starts of a problem at once, as far as its distances fit the cache."""
    points, weights, seeds, tol, squared = problem
    size = max(1, _DISTANCES // (len(points) * seeds.shape[1]))
    options: dict[str, Any] = {"max_iter": max_iter, "tol": tol * points.var(axis=0).mean()}
    squared = squared_distances(points) if squared is None else squared
    solved = [
        lloyd_numpy(points, squared, weights, seeds[first : first + size], **options)
        for first in range(0, len(seeds), size)
    ]
    return [
        Run(labels, float(inertia), int(n_iter))
        for batch in solved
        for labels, inertia, n_iter in zip(*batch, strict=True)
    ]


def lloyd_sklearn(problem: Problem, seeds: Ints, *, max_iter: int) -> Run:
    """Run one start with :class:`sklearn.cluster.KMeans`."""
    points, weights, _, tol, _ = problem
    # Composed, not subclassed: cuml.accel swaps the class, and a subclass of its proxy would run on the CPU unseen
    kmeans = KMeans(len(seeds), init=points[seeds], n_init=1, algorithm="lloyd", max_iter=max_iter, tol=tol)
    kmeans.fit(points, sample_weight=weights)
    return Run(kmeans.labels_.astype(np.intp), float(kmeans.inertia_), int(kmeans.n_iter_))


def lloyd_cuml(problem: Problem, seeds: Ints, device: str | None, *, max_iter: int) -> Run:
    """Run one start with cuML's KMeans.

    cuML ends a start when the inertia falls by a share below its ``tol``, or when the squared shift of the centres is
    below that same number. The points are scaled so that the second test is scikit-learn's while the first one asks for
    round-off: starts then end where scikit-learn's do. Inertia is computed anew, because cuML's is of those points, and
    of weights that some versions scale.
    """
    points, weights, _, tol, _ = problem
    shift = max(tol, _ROUND_OFF) * points.var(axis=0).mean()  # cuML takes no tol of 0
    # float64, as the others: clusters are decided by small differences, and the points are few. NumPy arrays, since the
    # points were made on the host: cuML copies them itself, in order with its own work.
    length = np.sqrt(_ROUND_OFF / shift) if shift > 0 else 1.0
    scaled = points * length
    context = gpu(device)
    assert context is not None  # see choose_engine
    with context:
        kmeans = _cuml().KMeans(
            n_clusters=len(seeds),
            init=scaled[seeds],
            n_init=1,  # 'auto' would be ten times the same start
            max_iter=max_iter,
            tol=_ROUND_OFF,
            random_state=0,  # not used, but None would draw one from NumPy's global state
            output_type="numpy",
        )
        kmeans.fit(scaled, sample_weight=weights)
        labels = np.asarray(kmeans.labels_).astype(np.intp)
        centers = np.asarray(kmeans.cluster_centers_) / length
        n_iter = min(int(kmeans.n_iter_), max_iter)  # some versions count one more where they run out
    return Run(labels, float(weights @ np.square(points - centers[labels]).sum(axis=1)), n_iter)


def _solve_torch(problems: Sequence[Problem], device: str | None, max_iter: int) -> list[list[Run]]:
    """All starts of all problems of one shape at once, as far as memory allows."""
    limit = _BATCH_BYTES["cpu" if gpu(device) is None else "gpu"]
    runs: list[list[Run]] = [[] for _ in problems]
    alike: defaultdict[Any, list[tuple[int, Ints]]] = defaultdict(list)
    for i, problem in enumerate(problems):
        alike[problem.points.shape, problem.seeds.shape[1]] += [(i, seeds) for seeds in problem.seeds]
    for ((n, d), k), starts in alike.items():
        size = max(1, limit // (8 * (5 * n * d + 5 * n * k + 4 * k * d)))  # the tensors that lloyd holds at once
        for first in range(0, len(starts), size):
            batch = starts[first : first + size]
            for (i, _), run in zip(batch, _run_batch(problems, batch, device, max_iter), strict=True):
                runs[i].append(run)
    return runs


def _run_batch(
    problems: Sequence[Problem], starts: Sequence[tuple[int, Ints]], device: str | None, max_iter: int
) -> list[Run]:
    """Run starts, each given as a problem's position and its seeds."""
    owners = list(dict.fromkeys(i for i, _ in starts))
    own = torch.tensor([owners.index(i) for i, _ in starts], device=device)

    def on_device(arrays: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device or "cpu")

    points = on_device([problems[i].points for i in owners])[own]  # (M, n, d)
    seeds = on_device([seeds for _, seeds in starts])  # (M, k)
    solved = lloyd(
        points,
        on_device([problems[i].weights for i in owners])[own],
        points.gather(1, seeds[:, :, None].expand(-1, -1, points.shape[2])),
        max_iter=max_iter,
        tol=on_device([problems[i].tol * problems[i].points.var(axis=0).mean() for i in owners])[own],
    )
    labels, inertia, n_iter = (x.cpu().numpy() for x in solved)
    return [Run(*run) for run in zip(labels.astype(np.intp), inertia.tolist(), n_iter.tolist(), strict=True)]
