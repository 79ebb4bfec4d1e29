"""MSUKMeans as a scikit-learn clusterer: contract, quality, weights, duplicates, dtypes."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from lorakit import MSUKMeans
from lorakit.cluster import _backends, _partition


# some checks fit eight clusters to four distinct rows, as they do for KMeans
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@parametrize_with_checks([MSUKMeans(), MSUKMeans(init="ward")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def noise(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def inertia(X, labels, weights=None):
    weights = np.ones(len(X)) if weights is None else weights
    parts = [(X[labels == c], weights[labels == c]) for c in np.unique(labels)]
    return sum((w @ (rows - np.average(rows, axis=0, weights=w)) ** 2).sum() for rows, w in parts)


@pytest.mark.parametrize("shape", [(60, 5), (60, 300)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attributes_agree_with_the_labels(shape, dtype):
    X = noise(*shape).astype(dtype) + dtype(3)
    weights = np.random.default_rng(1).uniform(0.1, 2, len(X))
    kmeans = MSUKMeans(7, random_state=0).fit(X, sample_weight=weights)
    assert set(kmeans.labels_) == set(range(7))
    assert kmeans.labels_.dtype == np.int32
    assert kmeans.cluster_centers_.dtype == dtype
    expected = [
        np.average(X.astype(float)[kmeans.labels_ == c], axis=0, weights=weights[kmeans.labels_ == c]) for c in range(7)
    ]
    assert_allclose(kmeans.cluster_centers_, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)
    assert kmeans.inertia_ == pytest.approx(inertia(X.astype(float), kmeans.labels_, weights), rel=1e-12)
    assert_array_equal(kmeans.predict(X), kmeans.labels_)
    assert_array_equal(MSUKMeans(7, random_state=0).fit_predict(X, sample_weight=weights), kmeans.labels_)
    assert kmeans.score(X, sample_weight=weights) == pytest.approx(-kmeans.inertia_, rel=1e-6)
    distances = kmeans.transform(X)
    assert distances.dtype == dtype
    by_hand = np.linalg.norm(X[:, None].astype(float) - kmeans.cluster_centers_, axis=2)
    assert_allclose(distances, by_hand, rtol=1e-5, atol=1e-6)
    assert_array_equal(kmeans.get_feature_names_out(), [f"msukmeans{c}" for c in range(7)])


@pytest.mark.parametrize("shape", [(64, 200), (200, 12)])
def test_no_worse_than_plain_kmeans(shape):
    ratios = []
    for seed in range(6):
        X = noise(*shape, seed)
        plain = KMeans(10, n_init=10, random_state=seed).fit(X)
        ratios.append(MSUKMeans(10, random_state=seed).fit(X).inertia_ / plain.inertia_)
    # noise has many local optima; the luck of ten starts is about 1 % either way
    assert np.mean(ratios) < 1.005
    assert max(ratios) < 1.02


def test_more_starts_are_used():
    X = noise(80, 40)
    many = [MSUKMeans(10, n_init=20, random_state=seed).fit(X).inertia_ for seed in range(5)]
    one = [MSUKMeans(10, n_init=1, random_state=seed).fit(X).inertia_ for seed in range(5)]
    assert np.all(np.less_equal(many, one))  # the first start is the same one
    assert np.mean(many) < np.mean(one)


@pytest.mark.parametrize("d", [3, 50])
def test_weight_is_repetition(d):
    X, _ = make_blobs(24, n_features=d, centers=6, cluster_std=0.5, random_state=0)
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    weighted = MSUKMeans(4, random_state=0).fit(X, sample_weight=counts)
    repeated = MSUKMeans(4, random_state=0).fit(np.repeat(X, counts, axis=0))
    assert_array_equal(weighted.cluster_centers_, repeated.cluster_centers_)
    assert_array_equal(np.repeat(weighted.labels_, counts), repeated.labels_)
    assert weighted.inertia_ == repeated.inertia_
    assert_array_equal(weighted.predict(X[counts == 0]), weighted.labels_[counts == 0])


@pytest.mark.parametrize("weights", [np.zeros(9), [-1.0] + [1.0] * 8])
def test_refuses_weights(weights):
    with pytest.raises(ValueError, match=r"negative|zero"):
        MSUKMeans(2).fit(noise(9, 2), sample_weight=weights)


@pytest.mark.parametrize("aliases", [False, True])
def test_every_distinct_row_its_own_cluster(aliases):
    base = noise(12, 40)
    if aliases:  # rows that k-means++ cannot tell apart
        base[6:] = np.nextafter(base[:6], np.inf)
    assert len(np.unique(base, axis=0)) == 12
    X = np.repeat(base, [1, 2, 3] * 4, axis=0)
    weights = np.linspace(0.1, 0.7, len(X))
    kmeans = MSUKMeans(12, random_state=0).fit(X, sample_weight=weights)
    assert_array_equal(kmeans.cluster_centers_[kmeans.labels_], X)  # to the last bit
    assert kmeans.inertia_ == 0
    alone = MSUKMeans(12).fit(base)
    assert_array_equal(np.sort(alone.labels_), np.arange(12))


def test_weights_take_part_in_the_seeding(monkeypatch):
    first_seeds = []
    lloyd = _backends.lloyd_sklearn

    def spy(problem, start, **kwargs):
        first_seeds.append(problem.seeds[start][0] - problem.weights.argmax())
        return lloyd(problem, start, **kwargs)

    monkeypatch.setattr(_backends, "lloyd_sklearn", spy)
    kmeans = MSUKMeans(3, random_state=0, backend="sklearn")
    kmeans.fit(noise(30, 4), sample_weight=np.where(np.arange(30) == 7, 1e9, 1))
    assert len(first_seeds) == 10
    assert not np.any(first_seeds)


def test_a_common_offset_costs_no_digits():
    X = noise(40, 30) + 1e7
    kmeans = MSUKMeans(5, random_state=0).fit(X)
    assert_array_equal(kmeans.predict(X), kmeans.labels_)
    by_hand = np.linalg.norm(X[:, None] - kmeans.cluster_centers_, axis=2)
    assert_allclose(kmeans.transform(X), by_hand, rtol=1e-6, atol=1e-6)


def test_fewer_distinct_rows_than_clusters():
    X = np.repeat(noise(3, 20), 4, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(3\)"):
        kmeans = MSUKMeans(5).fit(X)
    assert kmeans.cluster_centers_.shape == (5, 20)
    assert kmeans.transform(X).shape == (12, 5)
    assert_array_equal(kmeans.cluster_centers_[kmeans.labels_], X)
    assert_array_equal(kmeans.predict(X), kmeans.labels_)
    assert set(kmeans.labels_) == {0, 1, 2}


def test_too_few_rows():
    with pytest.raises(ValueError, match="n_samples=3 should be >= n_clusters=4"):
        MSUKMeans(4).fit(noise(3, 2))


def test_zeros_of_both_signs_are_equal():
    X = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0], [-0.0, -1.0]])
    kmeans = MSUKMeans(2).fit(X)
    assert_array_equal(kmeans.labels_, [1, 1, 0, 0])
    assert not np.signbit(kmeans.cluster_centers_[:, 0]).any()


def test_empty_clusters_are_filled():
    points = np.array([[0.0], [1.0], [2.0], [10.0]])
    labels = _partition.fill_clusters(points, np.ones(4), np.array([2, 2, 2, 3]), 4)
    assert_array_equal(np.sort(labels), np.arange(4))
    labels = _partition.fill_clusters(points, np.array([1.0, 1.0, 9.0, 1.0]), np.array([0, 0, 0, 1]), 3)
    assert_array_equal(labels, [2, 0, 0, 1])  # the mean is near the heavy point at 2
    labels = _partition.fill_clusters(points * 1e-200, np.ones(4), np.array([0, 1, 1, 1]), 3)
    assert set(labels) == {0, 1, 2}  # all squared distances underflow to 0, and a lone point still stays


@pytest.mark.parametrize("backend", ["numpy", "sklearn"])
def test_round_off_duplicates_still_give_all_clusters(backend):
    X = np.repeat(noise(4, 30), 5, axis=0)
    X[1::5] *= 1 + 2e-16  # ten distinct rows and more, which to k-means++ are four
    X[2::5] *= 1 - 2e-16
    wanted = len(np.unique(X, axis=0)) - 1
    assert wanted > 4
    with pytest.warns(ConvergenceWarning) if backend == "sklearn" else nullcontext():
        kmeans = MSUKMeans(wanted, random_state=0, backend=backend).fit(X)
    assert set(kmeans.labels_) == set(range(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_tensors(dtype):
    X = torch.from_numpy(noise(30, 100)).to(dtype)
    ours, theirs = (MSUKMeans(4, random_state=0).fit(rows) for rows in (X, X.numpy()))
    assert_array_equal(ours.labels_, theirs.labels_)
    assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-6)  # scikit-learn reads tensors as float64
    assert_array_equal(ours.predict(X), ours.labels_)


def test_random_state():
    X = noise(60, 100)
    fits = [MSUKMeans(8, n_init=1, random_state=s).fit(X) for s in (3, 3, np.random.RandomState(3), 4)]
    for same in fits[1:3]:
        assert_array_equal(same.labels_, fits[0].labels_)
        assert_array_equal(same.cluster_centers_, fits[0].cluster_centers_)
    assert adjusted_rand_score(fits[3].labels_, fits[0].labels_) < 1
    shared = np.random.RandomState(3)
    first, second = (MSUKMeans(8, n_init=1, random_state=shared).fit(X).labels_ for _ in range(2))
    assert_array_equal(first, fits[0].labels_)
    assert adjusted_rand_score(first, second) < 1  # an instance moves on


@pytest.mark.parametrize(
    "parameter", [{"n_clusters": 0}, {"init": "random"}, {"n_init": 0}, {"max_iter": 0}, {"tol": -1.0}]
)
def test_refuses_parameters(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        MSUKMeans(**{"n_clusters": 2, **parameter}).fit(noise(9, 2))


def test_refuses_sparse():
    with pytest.raises(TypeError, match="Sparse data was passed"):
        MSUKMeans(2).fit(csr_array(np.eye(5)))


def test_leaves_the_input_alone():
    X, weights = noise(20, 50), np.arange(20.0)
    before = X.copy(), weights.copy()
    MSUKMeans(3).fit(X, sample_weight=weights)
    assert_array_equal(X, before[0])
    assert_array_equal(weights, before[1])
