"""Which library runs Lloyd's algorithm, and Lloyd's algorithm from given centres in each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from .._execution import gpu, one_thread
from ._lloyd_blocks import lloyd as lloyd_blocks
from ._lloyd_numpy import lloyd as lloyd_numpy
from ._lloyd_torch import lloyd as lloyd_torch
from ._rows import Floats, Ints, weighted_means

BackendName = Literal["auto", "numpy", "sklearn", "torch", "cuml"]
Init = Literal["k-means++", "ward"]
BACKENDS = ("auto", "numpy", "sklearn", "torch", "cuml")

_ROUND_OFF = 1e-12  # cuML's tolerance: an inertia that falls by less has stopped falling
# Most memory of one batch of torch's, unless a single start takes more. A CPU is fastest while a batch fits its cache.
_BATCH_BYTES = {"cpu": 2**24, "gpu": 2**28}
_DISTANCES = 2**18  # the same for NumPy: most distances from points to centres that it goes through at a time


class Backend(NamedTuple):
    """A library that runs Lloyd's algorithm, and the device that it computes on."""

    name: str  # 'numpy', 'sklearn', 'torch' or 'cuml'
    device: str | None = None  # as torch names it; None is the CPU


class Problem(NamedTuple):
    """Points to cluster, and the starts: all that Lloyd's algorithm needs."""

    points: Floats  # (n, d)
    weights: Floats  # (n,)
    seeds: Ints  # (s, k), the points that each start takes for its centres
    tol: float  # squared shift of the centres at which to stop, relative to the mean variance of the d coordinates
    squared: Floats | None = None  # (n, n), squared distances between the points, where they are held
    partition: Ints | None = None  # (n,), clusters whose means are the centres of one more start

    @property
    def starts(self) -> range:
        """The numbers of the starts."""
        return range(len(self.seeds) + (self.partition is not None))

    def centers(self, start: int) -> Floats:
        """Centres that a start begins with: (k, d)."""
        if start < len(self.seeds):
            return self.points[self.seeds[start]]
        assert self.partition is not None  # it is the one more start
        return weighted_means(self.points, self.weights, self.partition)


class Run(NamedTuple):
    """What one start of Lloyd's algorithm gives."""

    labels: Ints  # (n,), index of the nearest centre
    inertia: float  # weighted sum of the squared distances to the centres
    n_iter: int


def choose_backend(name: str, device: str | None) -> Backend:
    """Return the library that ``name`` stands for on a device.

    Parameters
    ----------
    name : {'auto', 'numpy', 'sklearn', 'torch', 'cuml'}
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
            raise ValueError(f"device {device!r} cannot be used: {reason}; leave the device out for the CPU") from error
    on_gpu = gpu(device) is not None
    if name == "auto":
        name = ("torch" if isinstance(_cuml(), Exception) else "cuml") if on_gpu else "numpy"
    elif name == "cuml":
        if not on_gpu:
            raise ValueError(
                f"the backend 'cuml' computes on NVIDIA GPUs, got the device {device!r}; name the GPU as torch does "
                "(and pip install 'lorakit[cuml]'), or take the backend 'torch', which computes on any device"
            )
        found = _cuml()
        if isinstance(found, Exception):
            raise ImportError(
                f"the backend 'cuml' needs cuML, which cannot be imported here ({type(found).__name__}: {found}); "
                "pip install 'lorakit[cuml]', or take the backend 'torch'"
            ) from found
    return Backend(name, device)


def _cuml() -> Any:
    """Return the module ``cuml.cluster``, or what came of importing it."""
    try:
        return import_module("cuml.cluster")
    except Exception as error:  # a missing driver or a library of another version raises all kinds of errors
        return error


def solve(problems: Sequence[Problem], backend: Backend, *, max_iter: int) -> list[list[Run]]:
    """Run Lloyd's algorithm from every start of every problem.

    Parameters
    ----------
    problems : sequence of Problem
        Of any shapes. torch takes those of one shape together.
    backend : Backend
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
    if backend.name == "sklearn":
        import sklearn.cluster  # noqa: F401  # before threads are limited: a library loaded later would have its own
    with one_thread():
        if backend.name == "numpy":
            return [_solve_numpy(problem, max_iter) for problem in problems]
        if backend.name == "torch":
            return _solve_torch(problems, backend.device, max_iter)
        if backend.name == "cuml":
            return [[lloyd_cuml(p, s, backend.device, max_iter=max_iter) for s in p.starts] for p in problems]
        from sklearn import config_context

        with config_context(assume_finite=True, skip_parameter_validation=True):  # checks take longer than small fits
            return [[lloyd_sklearn(p, s, max_iter=max_iter) for s in p.starts] for p in problems]


def _solve_numpy(problem: Problem, max_iter: int) -> list[Run]:
    """All starts of a problem at once, as far as the cache allows; one by one where no distances are held."""
    points, weights, seeds = problem.points, problem.weights, problem.seeds
    size = max(1, _DISTANCES // (len(points) * seeds.shape[1]))
    options: dict[str, Any] = {"max_iter": max_iter, "tol": problem.tol * points.var(axis=0).mean()}
    if problem.squared is None:
        return [Run(*lloyd_blocks(points, weights, problem.centers(start), **options)) for start in problem.starts]
    squared = problem.squared
    # (s, k, n) each, and made one after another
    begins: Iterable[Floats] = (squared[seeds[first : first + size]] for first in range(0, len(seeds), size))
    if problem.partition is not None:
        to_members = weighted_means(squared, weights, problem.partition)  # (k, n), mean squared distances
        spread = np.diag(weighted_means(to_members.T, weights, problem.partition)) / 2
        begins = chain(begins, [(to_members - spread[:, None])[None]])
    return [
        Run(labels, float(inertia), int(n_iter))
        for distances in begins
        for labels, inertia, n_iter in zip(*lloyd_numpy(points, squared, weights, distances, **options), strict=True)
    ]


def lloyd_sklearn(problem: Problem, start: int, *, max_iter: int) -> Run:
    """Run one start with :class:`sklearn.cluster.KMeans`."""
    from sklearn.cluster import KMeans  # here, as the other backends need none of it, and it takes long

    centers = problem.centers(start)
    # Composed, not subclassed: cuml.accel swaps the class, and a subclass of its proxy would run on the CPU unseen
    kmeans = KMeans(len(centers), init=centers, n_init=1, algorithm="lloyd", max_iter=max_iter, tol=problem.tol)
    kmeans.fit(problem.points, sample_weight=problem.weights)
    return Run(kmeans.labels_.astype(np.intp), float(kmeans.inertia_), int(kmeans.n_iter_))


def lloyd_cuml(problem: Problem, start: int, device: str | None, *, max_iter: int) -> Run:
    """Run one start with cuML's KMeans.

    cuML ends a start when the inertia falls by a share below its ``tol``, or when the squared shift of the centres is
    below that same number. The points are scaled so that the second test is scikit-learn's while the first one asks for
    round-off: starts then end where scikit-learn's do. Inertia is computed anew, because cuML's is of those points, and
    of weights that some versions scale.
    """
    points, weights, centers = problem.points, problem.weights, problem.centers(start)
    shift = max(problem.tol, _ROUND_OFF) * points.var(axis=0).mean()  # cuML takes no tol of 0
    # float64, as the others: clusters are decided by small differences, and the points are few. NumPy arrays, since the
    # points were made on the host: cuML copies them itself, in order with its own work.
    length = np.sqrt(_ROUND_OFF / shift) if shift > 0 else 1.0
    scaled = points * length
    context = gpu(device)
    assert context is not None  # see choose_backend
    with context:
        kmeans = _cuml().KMeans(
            n_clusters=len(centers),
            init=centers * length,
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
    alike: defaultdict[Any, list[tuple[int, int]]] = defaultdict(list)
    for i, problem in enumerate(problems):
        alike[problem.points.shape, problem.seeds.shape[1]] += [(i, start) for start in problem.starts]
    for ((n, d), k), starts in alike.items():
        size = max(1, limit // (8 * (5 * n * d + 5 * n * k + 4 * k * d)))  # the tensors that lloyd_torch holds at once
        for first in range(0, len(starts), size):
            batch = starts[first : first + size]
            for (i, _), run in zip(batch, _run_batch(problems, batch, device, max_iter), strict=True):
                runs[i].append(run)
    return runs


def _run_batch(
    problems: Sequence[Problem], starts: Sequence[tuple[int, int]], device: str | None, max_iter: int
) -> list[Run]:
    """Run starts, each given as a problem's position and its own number there."""
    owners = list(dict.fromkeys(i for i, _ in starts))
    own = torch.tensor([owners.index(i) for i, _ in starts], device=device)

    def on_device(arrays: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device or "cpu")

    solved = lloyd_torch(
        on_device([problems[i].points for i in owners])[own],  # (M, n, d)
        on_device([problems[i].weights for i in owners])[own],
        on_device([problems[i].centers(start) for i, start in starts]),
        max_iter=max_iter,
        tol=on_device([problems[i].tol * problems[i].points.var(axis=0).mean() for i in owners])[own],
    )
    labels, inertia, n_iter = (x.cpu().numpy() for x in solved)
    return [Run(*run) for run in zip(labels.astype(np.intp), inertia.tolist(), n_iter.tolist(), strict=True)]
