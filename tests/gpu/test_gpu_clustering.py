"""torch and cuML on a GPU cluster as scikit-learn does on the CPU.

pytest tests/gpu -m gpu -n0
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs

from lorakit import LegoMerger, MSUKMeans, load_adapters
from lorakit.cluster._backends import Backend, choose_backend, solve
from lorakit.cluster._partition import problems_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(params=["torch", "cuml"])
def backend(request):
    if request.param == "cuml":
        pytest.importorskip("cuml", exc_type=ImportError)
    return request.param


def posed(seed, n, d, k, **options):
    rng = np.random.RandomState(seed)
    weights = rng.uniform(0.1, 3, n)
    options = {"init": "k-means++", "n_init": 5, "tol": 1e-4, **options}
    (problem,) = problems_of(rng.standard_normal((n, d)), weights, [k], width=d, rng=rng, **options)
    return problem


@pytest.mark.parametrize("shape", [(128, 400, 32), (128, 40, 8), (300, 3, 12)])
@pytest.mark.parametrize("tol", [1e-4, 0.0, 0.3])
def test_starts_agree(backend, shape, tol):
    problems = [posed(seed, *shape, tol=tol) for seed in range(8)]
    ours = solve(problems, Backend(backend, "cuda"), max_iter=300)
    for x, y in zip(ours, solve(problems, Backend("sklearn"), max_iter=300), strict=True):
        for run, expected in zip(x, y, strict=True):
            assert run.inertia == pytest.approx(expected.inertia, rel=1e-9)
            np.testing.assert_array_equal(run.labels, expected.labels)


def test_other_problems_never_matter():
    problems = [posed(seed, 64, 100, 16) for seed in range(12)]
    together = solve(problems, Backend("torch", "cuda"), max_iter=300)
    for problem, expected in zip(problems, together, strict=True):
        (alone,) = solve([problem], Backend("torch", "cuda"), max_iter=300)
        for x, y in zip(alone, expected, strict=True):
            np.testing.assert_array_equal(x.labels, y.labels)
            assert x.n_iter == y.n_iter


def test_blobs(backend):
    X, truth = make_blobs(120, n_features=50, centers=7, cluster_std=0.3, random_state=0)
    kmeans = MSUKMeans(7, random_state=0, backend=backend, device="cuda").fit(X)
    assert kmeans.backend_ == backend
    assert len(set(zip(kmeans.labels_, truth, strict=True))) == 7


@pytest.mark.parametrize("options", [{}, {"k": 16}, {"k": 16, "align": "balance"}], ids=str)
def test_lego_on_real_adapters(backend, options, real_adapter_paths):
    X = load_adapters(list(real_adapter_paths.values()))
    ours = LegoMerger(**options, random_state=0, backend=backend, device="cuda").fit(X)
    theirs = LegoMerger(**options, random_state=0).fit(X)
    inertia = {module: ours.inertia_[module] / theirs.inertia_[module] for module in theirs.inertia_}
    assert max(inertia.values()) < 1 + 1e-4  # float32 units can be a bit apart after `align` on another device
    same = [np.array_equal(ours.labels_[module], theirs.labels_[module]) for module in theirs.labels_]
    assert np.mean(same) > 0.9


def test_auto_takes_cuml_where_there_is_one():
    try:
        import cuml.cluster  # noqa: F401
    except Exception:
        expected = "torch"
    else:
        expected = "cuml"
    assert choose_backend("auto", "cuda").name == expected
    assert choose_backend("auto", None).name == "numpy"
    assert MSUKMeans(2, device="cuda").fit(np.eye(4)).backend_ == expected


def test_the_second_gpu(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    problem = posed(0, 64, 100, 16)
    (ours,) = solve([problem], Backend(backend, "cuda:1"), max_iter=300)
    (theirs,) = solve([problem], Backend("sklearn"), max_iter=300)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x.labels, y.labels)
    assert torch.cuda.current_device() == 0
