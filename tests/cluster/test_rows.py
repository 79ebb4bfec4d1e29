"""The order of rows has no say, and the reduction to n coordinates changes no distance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from lorakit import MSUKMeans, _execution
from lorakit.cluster import _backends, _partition
from lorakit.cluster._rows import argsort_rows, distinct_rows, isometric_coordinates, weighted_means


@st.composite
def pools(draw):
    n, d = draw(st.integers(3, 40)), draw(st.integers(1, 60))
    X = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal((n, d))
    kind = draw(st.sampled_from(["noise", "lattice", "offset"]))
    if kind == "lattice":  # duplicates, zeros of both signs, equal distances, starts that tie
        X = np.round(X) * draw(st.sampled_from([1.0, -1.0]))
    elif kind == "offset":
        X += 1e3
    return X.astype(draw(st.sampled_from([np.float32, np.float64])))


def same_fit(X, weights, shuffle, k, init):
    ours, theirs = (MSUKMeans(k, init=init, n_init=2, random_state=0) for _ in range(2))
    ours.fit(X, sample_weight=weights)
    theirs.fit(X[shuffle], sample_weight=weights[shuffle])
    assert_array_equal(ours.labels_[shuffle], theirs.labels_)
    assert_array_equal(ours.cluster_centers_, theirs.cluster_centers_)
    assert (ours.inertia_, ours.n_iter_) == (theirs.inertia_, theirs.n_iter_)


@settings(max_examples=40, deadline=None)
@given(X=pools(), seed=st.integers(0, 99), weighted=st.booleans(), init=st.sampled_from(["k-means++", "ward"]))
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_shuffling_rows_changes_nothing(X, seed, weighted, init):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 3, len(X)) if weighted else np.ones(len(X))
    same_fit(X, weights, rng.permutation(len(X)), k=1 + seed % len(X), init=init)


def test_lloyd_runs_on_one_thread(monkeypatch):
    # past 256 rows scikit-learn's Lloyd takes several, and adds their sums in the order in which they finish
    threads = []

    def spy(*args, **kwargs):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")
        return KMeans(*args, **kwargs)

    monkeypatch.setattr("sklearn.cluster.KMeans", spy)
    _execution._controller.cache_clear()  # other tests may have loaded libraries since that have threads of their own
    X = np.random.default_rng(0).standard_normal((600, 8))
    with threadpool_limits(2, user_api="openmp"):
        MSUKMeans(4, n_init=1, backend="sklearn").fit(X)
        assert max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp") == 2
    assert set(threads) == {1}


def test_clusters_are_numbered_by_their_smallest_rows():
    X = np.random.default_rng(0).standard_normal((60, 4))
    labels = MSUKMeans(9, random_state=0).fit_predict(X)
    smallest = [min(map(tuple, X[labels == c])) for c in range(9)]
    assert smallest == sorted(smallest)


def test_common_scale_keeps_the_labels():
    X = np.random.default_rng(0).standard_normal((60, 90))
    labels = MSUKMeans(9, random_state=0).fit_predict(X)
    assert_array_equal(MSUKMeans(9, random_state=0).fit_predict(X * 0.3), labels)


# subnormals, infinities' neighbours, both zeros
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324])


@settings(max_examples=200, deadline=None)
@given(X=arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=FLOATS))
def test_argsort_is_lexicographic_and_stable(X):
    expected = sorted(range(len(X)), key=lambda i: tuple(X[i]))  # Python's sort is stable, and -0.0 == 0.0
    assert_array_equal(argsort_rows(X), expected)


@settings(max_examples=50, deadline=None)
@given(X=arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.sampled_from([0.0, -0.0, 1])))
def test_distinct_rows_agree_with_numpy(X):
    weights = np.arange(1.0, len(X) + 1)
    chosen, totals, inverse = distinct_rows(X, weights)
    expected, expected_inverse = np.unique(X + 0.0, axis=0, return_inverse=True)
    assert_array_equal(X[chosen], expected)
    assert_array_equal(inverse, expected_inverse.ravel())
    assert_array_equal(totals, np.bincount(inverse, weights))


@pytest.mark.parametrize("width", [16, 17, 40])
def test_rows_that_begin_alike(width):
    rng = np.random.default_rng(0)
    X = np.repeat(rng.standard_normal((3, width)), 4, axis=0)  # three beginnings
    X[:, -1] = np.tile([3.0, 1.0, 2.0, 1.0], 3)  # four ends, two of them equal
    X = X[rng.permutation(12)]
    expected, inverse = np.unique(X, axis=0, return_inverse=True)
    found = distinct_rows(X, np.ones(12))
    assert len(expected) == 9
    assert_array_equal(X[found.chosen], expected)
    assert_array_equal(found.inverse, inverse.ravel())
    assert_array_equal(argsort_rows(X), sorted(range(12), key=lambda i: tuple(X[i])))


def test_totals_do_not_depend_on_the_order_of_the_weights():
    weights = np.random.default_rng(0).uniform(size=50) ** 8
    totals = {distinct_rows(np.ones((50, 2)), w)[1][0] for w in (weights, weights[::-1], np.roll(weights, 17))}
    assert len(totals) == 1


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_reduction_keeps_distances(offset):
    X = np.random.default_rng(0).standard_normal((30, 500)) + offset
    X[1] = X[0] + 1e-5  # a Gram matrix would lose the short distance
    points = isometric_coordinates(X)
    assert points.shape == (30, 30)
    assert_allclose(pdist(points), pdist(X), rtol=1e-9 if offset == 0 else 1e-6)


def test_reduction_only_where_it_reduces():
    X = np.random.default_rng(0).standard_normal((30, 10))
    assert_array_equal(isometric_coordinates(X), X - X.mean(axis=0))


@pytest.mark.parametrize("k", [2, 5, 11])
@pytest.mark.parametrize("tol", [1e-4, 10])
def test_reduced_fit_equals_direct_fit(monkeypatch, k, tol):
    rng = np.random.default_rng(k)
    X = rng.uniform(size=(100, 2)) @ rng.standard_normal((2, 800)) + 2  # in a plane, where Lloyd takes its time
    settings_ = {"n_init": 3, "tol": tol, "random_state": 0}  # a coarse tol ends starts early, at the same iteration
    reduced = MSUKMeans(k, **settings_).fit(X)
    monkeypatch.setattr(_partition, "isometric_coordinates", lambda rows: rows - rows.mean(axis=0))
    direct = MSUKMeans(k, **settings_).fit(X)
    assert reduced.inertia_ == pytest.approx(direct.inertia_, rel=1e-10)
    assert_array_equal(reduced.labels_, direct.labels_)
    assert reduced.n_iter_ == direct.n_iter_


def test_lloyd_sees_n_coordinates(monkeypatch):
    shapes = []
    lloyd = _backends.lloyd_sklearn

    def spy(problem, *args, **kwargs):
        shapes.append((problem.points.shape, problem.points.dtype))
        return lloyd(problem, *args, **kwargs)

    monkeypatch.setattr(_backends, "lloyd_sklearn", spy)
    X = np.random.default_rng(0).standard_normal((96, 8192)).astype(np.float32)
    kmeans = MSUKMeans(24, n_init=4, random_state=0, backend="sklearn").fit(X)
    assert shapes == [((96, 96), np.float64)] * 4
    assert kmeans.cluster_centers_.shape == (24, 8192)


def test_mean_of_a_row_alone_is_the_row():
    rows = np.random.default_rng(0).standard_normal((5, 7))
    assert_array_equal(weighted_means(rows, np.full(5, 0.3), np.arange(5)), rows)
