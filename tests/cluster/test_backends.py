"""Backends: which one runs, what a missing one says, and that all of them give one answer."""

import sys
from contextlib import nullcontext
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.datasets import make_blobs

from lorakit import LegoMerger, LegoPruner, MSUKMeans
from lorakit.cluster import _backends
from lorakit.cluster._backends import Backend, Problem, choose_backend, lloyd_cuml, solve
from lorakit.cluster._partition import Partition, best_of, problems_of, solved
from lorakit.testing import make_adapters


class StandInKMeans:
    """Stands in for ``cuml.cluster.KMeans``, for machines without a GPU: its arguments, its rules, its conventions.

    It computes with scikit-learn, stopping as cuML does: when the inertia falls by a share below ``tol``, or when the
    squared shift of the centres is below ``tol`` itself. Weights are scaled to sum to n.
    """

    calls: list = []

    def __init__(self, *, n_clusters, init, n_init, max_iter, tol, random_state, output_type):
        assert n_init == 1, "with an array of centres 'auto' means 10"
        assert output_type == "numpy"
        assert init.dtype == np.float64
        assert init.shape[0] == n_clusters
        assert tol > 0, "cuML refuses tol=0"
        self.init, self.tol, self.max_iter = init, tol, max_iter
        StandInKMeans.calls.append(self)

    def fit(self, X, sample_weight):
        assert X.dtype == sample_weight.dtype == np.float64
        assert X.flags.c_contiguous
        assert X.shape[1] == self.init.shape[1]
        weights = sample_weight * len(X) / sample_weight.sum()
        centers, before = self.init, None
        iteration = 0
        while (iteration := iteration + 1) <= self.max_iter:  # one more where it runs out, as cuML's loop
            step = KMeans(len(centers), init=centers, n_init=1, max_iter=1, tol=0).fit(X, sample_weight=weights)
            squared = ((X[:, None] - centers) ** 2).sum(axis=2)
            inertia = weights @ squared.min(axis=1)
            moved = step.cluster_centers_
            done = ((moved - centers) ** 2).sum() < self.tol
            done |= before is not None and inertia / before > 1 - self.tol
            centers, before = moved, inertia
            if done:
                break
        self.cluster_centers_, self.n_iter_ = centers, iteration
        self.labels_ = ((X[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1).astype(np.int32)
        self.inertia_ = weights @ ((X[:, None] - centers) ** 2).sum(axis=2).min(axis=1)
        return self


@pytest.fixture
def stand_in(monkeypatch):
    """A machine with a GPU and cuML, as far as lorakit can tell; the GPU is the CPU."""
    package, module = ModuleType("cuml"), ModuleType("cuml.cluster")
    module.KMeans = StandInKMeans
    monkeypatch.setitem(sys.modules, "cuml", package)
    monkeypatch.setitem(sys.modules, "cuml.cluster", module)
    monkeypatch.setattr(_backends, "gpu", lambda device: nullcontext() if device == "cpu" else None)
    monkeypatch.setattr(StandInKMeans, "calls", [])
    return StandInKMeans


@pytest.fixture
def no_cuml(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuml", None)
    monkeypatch.delitem(sys.modules, "cuml.cluster", raising=False)


def posed(seed, n=60, d=12, k=6, n_init=4, tol=1e-4, weighted=True, init="k-means++"):
    rng = np.random.RandomState(seed)
    rows = rng.standard_normal((n, d))
    weights = rng.uniform(0.1, 3, n) if weighted else np.ones(n)
    (problem,) = problems_of(rows, weights, [k], init=init, n_init=n_init, tol=tol, width=rows.shape[1], rng=rng)
    return problem


def same_runs(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x.labels, y.labels)
        assert x.inertia == pytest.approx(y.inertia, rel=1e-10)
        assert x.n_iter == y.n_iter


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(shapes=st.lists(st.tuples(st.integers(6, 40), st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=6))
def test_ours_agree_with_scikit_learn_whatever_the_shapes(backend, shapes):
    problems = [posed(i, n, d, k, n_init=1 + i % 3) for i, (n, d, k) in enumerate(shapes)]
    ours, theirs = (solve(problems, Backend(b), max_iter=300) for b in (backend, "sklearn"))
    for problem, x, y in zip(problems, ours, theirs, strict=True):
        assert len(x) == len(problem.seeds)
        if all(len(set(run.labels)) == problem.seeds.shape[1] for run in y):
            same_runs(x, y)


@pytest.mark.parametrize("limit", [1, 10_000, 100_000])
def test_memory_of_a_batch_is_bounded_and_does_not_matter(monkeypatch, limit):
    problems = [posed(i) for i in range(5)] + [posed(9, n=50)]
    whole = solve(problems, Backend("torch"), max_iter=300)
    sizes = []
    lloyd = _backends.lloyd_torch

    def spy(points, *args, **options):
        sizes.append(len(points))
        return lloyd(points, *args, **options)

    monkeypatch.setattr(_backends, "lloyd_torch", spy)
    monkeypatch.setitem(_backends._BATCH_BYTES, "cpu", limit)
    for x, y in zip(solve(problems, Backend("torch"), max_iter=300), whole, strict=True):
        same_runs(x, y)
    assert sum(sizes) == 24
    n, d, k = 60, 12, 6
    assert max(sizes) <= max(1, limit // (8 * (n * d + n * k)))  # the points and the distances alone


def test_numpy_goes_through_few_starts_at_a_time_where_they_are_large(monkeypatch):
    problems = [posed(i) for i in range(2)] + [posed(9, n=50)]
    whole = solve(problems, Backend("numpy"), max_iter=300)
    sizes = []
    lloyd = _backends.lloyd_numpy

    def spy(points, squared, weights, distances, **options):
        sizes.append(len(distances))
        return lloyd(points, squared, weights, distances, **options)

    monkeypatch.setattr(_backends, "lloyd_numpy", spy)
    monkeypatch.setattr(_backends, "_DISTANCES", 3 * 60 * 6)
    for x, y in zip(solve(problems, Backend("numpy"), max_iter=300), whole, strict=True):
        for one, other in zip(x, y, strict=True):
            assert one.inertia == other.inertia  # to the last bit
        same_runs(x, y)
    assert sizes == [3, 1, 3, 1, 3, 1]


@pytest.mark.parametrize(
    "options", [{"tol": 1e-4}, {"tol": 0.0}, {"tol": 0.3}, {"weighted": False}, {"d": 3, "n": 200}]
)
def test_cuml_is_called_as_it_wants_and_agrees(stand_in, options):
    for seed in range(5):
        problem = posed(seed, **options)
        ours, theirs = (solve([problem], Backend(b, "cpu"), max_iter=300)[0] for b in ("cuml", "sklearn"))
        same_runs(ours, theirs)
    assert len(stand_in.calls) == 5 * 4
    scaled = [call.inertia_ for call in stand_in.calls]
    assert not np.isclose(scaled[0], theirs[0].inertia)  # cuML's own inertia is of other weights and lengths


def test_cuml_starts_from_the_host_seeds(stand_in):
    problem = posed(0)
    lloyd_cuml(problem, 0, "cpu", max_iter=300)
    (call,) = stand_in.calls
    ratio = call.init / problem.points[problem.seeds[0]]
    np.testing.assert_allclose(ratio, ratio[0, 0])  # those points, at another length


@pytest.mark.parametrize("backend", ["sklearn", "cuml"])
def test_k_means_starts_once_from_the_means_of_wards_partition(stand_in, monkeypatch, backend):
    """Of a partition that is made afresh, by scikit-learn; the points are scaled on their way to cuML."""
    problem = posed(0, weighted=False, init="ward")
    labels = AgglomerativeClustering(n_clusters=6).fit_predict(problem.points)
    means = np.array([problem.points[labels == c].mean(axis=0) for c in range(6)])
    monkeypatch.setattr(
        "sklearn.cluster.KMeans", lambda *args, **options: calls.append(options) or KMeans(*args, **options)
    )
    calls = []
    (runs,) = solve([problem], Backend(backend, "cpu"), max_iter=300)
    assert len(runs) == 1
    init = calls[0]["init"] if backend == "sklearn" else stand_in.calls[0].init
    ratio = np.abs(init).max() / np.abs(means).max()
    np.testing.assert_allclose(init[np.argsort(init[:, 0])], ratio * means[np.argsort(means[:, 0])], rtol=1e-9)


@given(seed=st.integers(0, 2**31 - 1), shape=st.sampled_from([(30, 40), (40, 2)]), k=st.integers(1, 9))
def test_every_backend_moves_wards_partition_alike(seed, shape, k):
    problems = [posed(seed, *shape, k, init="ward"), posed(seed + 1, *shape, k)]
    results = [solve(problems, Backend(backend), max_iter=300) for backend in ("numpy", "torch", "sklearn")]
    for ours in results[:2]:
        for x, y in zip(ours, results[2], strict=True):
            if all(len(set(run.labels)) == k for run in y):  # an empty cluster is treated otherwise
                same_runs(x, y)


def test_cuml_counts_no_iteration_more_than_it_may(stand_in):
    problem = posed(0, n=200, d=2, k=12)
    assert lloyd_cuml(problem, 0, "cpu", max_iter=2).n_iter == 2


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_cuml_of_equal_points(stand_in):
    problem = Problem(np.zeros((5, 2)), np.ones(5), np.array([[0, 1]]), 1e-4)
    run = lloyd_cuml(problem, 0, "cpu", max_iter=10)
    assert run.inertia == 0


def test_auto(stand_in, monkeypatch):
    assert choose_backend("auto", None) == Backend("numpy", None)
    assert choose_backend("auto", "cpu") == Backend("cuml", "cpu")
    assert choose_backend("sklearn", "cpu") == Backend("sklearn", "cpu")
    monkeypatch.setitem(sys.modules, "cuml.cluster", None)
    assert choose_backend("auto", "cpu") == Backend("torch", "cpu")
    monkeypatch.undo()
    assert choose_backend("auto", "cpu") == Backend("numpy", "cpu")


@pytest.mark.parametrize("error", [ImportError("no libcuml"), RuntimeError("cudaErrorNoDevice"), OSError("libcudart")])
def test_any_error_of_importing_cuml_counts(stand_in, monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr(_backends, "import_module", broken)
    assert choose_backend("auto", "cpu").name == "torch"
    with pytest.raises(ImportError, match=r"pip install 'lorakit\[cuml\]', or take the backend 'torch'") as caught:
        choose_backend("cuml", "cpu")
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error


def test_without_cuml(no_cuml, monkeypatch):
    monkeypatch.setattr(_backends, "gpu", lambda device: nullcontext())
    with pytest.raises(ImportError, match=r"pip install 'lorakit\[cuml\]'"):
        MSUKMeans(2, backend="cuml", device="cpu").fit(np.eye(4))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_cuml_needs_a_gpu(device):
    with pytest.raises(ValueError, match=r"NVIDIA GPUs, got the device .*lorakit\[cuml\].*the backend 'torch'"):
        MSUKMeans(2, backend="cuml", device=device).fit(np.eye(4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["auto", "torch", "cuml"])
def test_a_missing_gpu_is_named(backend):
    with pytest.raises(ValueError, match=r"device 'cuda' cannot be used: .*leave the device out"):
        MSUKMeans(2, backend=backend, device="cuda").fit(np.eye(4))


@pytest.mark.parametrize("device", ["nope", "meta"])
def test_no_device(device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        MSUKMeans(2, device=device).fit(np.eye(4))


@pytest.mark.parametrize("parameter", [{"backend": "jax"}, {"backend": None}, {"device": 0}])
def test_parameters_are_checked(parameter):
    with pytest.raises(ValueError, match=f"'{next(iter(parameter))}' parameter"):
        MSUKMeans(2, **parameter).fit(np.eye(4))


@pytest.mark.parametrize("shape", [(96, 400), (150, 3)])
@pytest.mark.parametrize("init", ["k-means++", "ward"])
def test_msukmeans_on_every_backend(stand_in, init, shape):
    X = np.random.default_rng(0).standard_normal(shape)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X))
    fits = {
        backend: MSUKMeans(9, init=init, random_state=0, backend=backend, device="cpu").fit(X, sample_weight=weights)
        for backend in ("numpy", "sklearn", "torch", "cuml")
    }
    for backend, kmeans in fits.items():
        assert kmeans.backend_ == backend
        np.testing.assert_array_equal(kmeans.labels_, fits["sklearn"].labels_)
        assert kmeans.inertia_ == pytest.approx(fits["sklearn"].inertia_, rel=1e-12)
        assert kmeans.n_iter_ == fits["sklearn"].n_iter_


def test_blobs_are_found_by_every_backend(stand_in):
    X, truth = make_blobs(80, n_features=30, centers=5, cluster_std=0.1, random_state=0)
    for backend in ("numpy", "sklearn", "torch", "cuml"):
        labels = MSUKMeans(5, random_state=0, backend=backend, device="cpu").fit_predict(X)
        assert len(set(zip(labels, truth, strict=True))) == 5


@pytest.mark.parametrize("backend", ["numpy", "sklearn", "torch"])
def test_more_starts_are_used(backend):
    X = np.random.default_rng(0).standard_normal((80, 40))
    many = [MSUKMeans(10, n_init=20, random_state=s, backend=backend).fit(X).inertia_ for s in range(4)]
    one = [MSUKMeans(10, n_init=1, random_state=s, backend=backend).fit(X).inertia_ for s in range(4)]
    assert np.all(np.less_equal(many, one))  # the first start is the same one
    assert np.mean(many) < np.mean(one)


def test_empty_clusters_are_filled_whatever_the_backend(stand_in):
    rows = np.vstack([np.zeros(2), np.eye(2), 5 * np.ones(2), 5 * np.ones(2) + 1e-3])
    problem = Problem(rows - rows.mean(axis=0), np.ones(5), np.array([[0, 0, 3]]), 1e-4)  # two starts at one point
    for backend in ("numpy", "sklearn", "torch", "cuml"):
        labels, _ = best_of(problem, *solve([problem], Backend(backend, "cpu"), max_iter=300))
        assert set(labels) == {0, 1, 2}


def test_nothing_to_solve():
    problems = problems_of(np.eye(3), np.ones(3), [3], init="k-means++", n_init=2, tol=0, width=3, rng=None)
    (found,) = solved(problems, Backend("torch"), max_iter=9)
    assert isinstance(found, Partition)
    assert found.labels.tolist() == [0, 1, 2]
    assert solve([], Backend("torch"), max_iter=9) == []


@pytest.mark.parametrize("backend", ["auto", "cuml"])
def test_lego_with_cuml(stand_in, backend):
    X = make_adapters(ranks=(6, 8, 8), random_state=0)
    options = {"k": 5, "n_init": 2, "random_state": 0}
    merger = LegoMerger(**options, backend=backend, device="cpu").fit(X)
    assert merger.backend_ == "cuml"
    assert len(stand_in.calls) == 2 * 2  # modules times starts
    expected = LegoMerger(**options).fit(X)
    pruner = LegoPruner(**options | {"k": 3}, backend=backend, device="cpu").fit(X)
    assert pruner.backend_ == "cuml"
    for module in merger.merged_:
        np.testing.assert_array_equal(merger.labels_[module], expected.labels_[module])
    for ours, theirs in zip(pruner.transform(X), LegoPruner(**options | {"k": 3}).transform(X), strict=True):
        assert all(torch.equal(a, b) for m in ours for a, b in zip(ours[m], theirs[m], strict=True))
    assert len(stand_in.calls) == 2 * 2 + 3 * 2 * 2
