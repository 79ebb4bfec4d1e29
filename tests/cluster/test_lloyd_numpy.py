"""Lloyd's algorithm on distances between points: as with centres, and each start as if it were alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from lorakit.cluster import _lloyd_numpy, _lloyd_torch
from lorakit.cluster._lloyd_numpy import lloyd
from lorakit.cluster._rows import squared_distances

SEED = st.integers(0, 2**32 - 1)
# (n, d, k): by the matrix of distances, and by the points, where they are many and of few coordinates
SHAPES = {"long": (40, 39, 6), "narrow": (150, 3, 6)}


def problem(seed, shape, n_init=4, kind="noise"):
    """Points about the origin, weights, and the points to start from."""
    n, d, k = SHAPES[shape]
    rng = np.random.default_rng(seed)
    if kind == "lattice":  # many points are equally far from two centres
        points = rng.integers(-2, 3, (n, d)).astype(float)
    else:
        points = rng.standard_normal((n, d)) + (rng.standard_normal((k, d)) * 3)[rng.integers(k, size=n)]
    seeds = np.array([rng.choice(n, k, replace=False) for _ in range(n_init)])
    return points - points.mean(axis=0), rng.uniform(0.1, 3, n), seeds


def solved(points, weights, seeds, tol=0.0, max_iter=300):
    squared = squared_distances(points)
    return lloyd(points, squared, weights, squared[seeds], max_iter=max_iter, tol=tol)


def by_sklearn(points, weights, seeds, tol=0.0, max_iter=300):
    kmeans = KMeans(len(seeds), init=points[seeds], n_init=1, algorithm="lloyd", tol=tol, max_iter=max_iter)
    return kmeans.fit(points, sample_weight=weights)


def by_centers(points, weights, seeds, tol=0.0, max_iter=300):
    """The backend that forms the centres."""
    points, weights = (torch.from_numpy(x).expand(len(seeds), *x.shape) for x in (points, weights))
    centers = points.gather(1, torch.from_numpy(seeds)[:, :, None].expand(-1, -1, points.shape[2]))
    tol = torch.full((len(seeds),), tol, dtype=torch.float64)
    return [x.numpy() for x in _lloyd_torch.lloyd(points, weights, centers, max_iter=max_iter, tol=tol)]


def test_the_two_ways_are_both_taken(monkeypatch):
    """What the shapes of these tests are for."""
    taken = []
    product = _lloyd_numpy.csc_array.__matmul__
    monkeypatch.setattr(
        _lloyd_numpy.csc_array, "__matmul__", lambda shares, x: taken.append(x.shape) or product(shares, x)
    )
    for shape, (n, d, _) in SHAPES.items():
        taken.clear()
        solved(*problem(0, shape))
        assert set(taken) == ({(n, n)} if shape == "long" else {(n,), (n, d)})


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEED)
def test_every_start_as_scikit_learn_runs_it(shape, seed):
    points, weights, seeds = problem(seed, shape)
    ours = solved(points, weights, seeds)
    for i, start in enumerate(seeds):
        runs = [solved(points, weights, start[None], max_iter=m) for m in range(1, ours.n_iter[i] + 1)]
        if all(len(set(run.labels[0])) == len(start) for run in runs):  # an empty cluster is treated otherwise
            theirs = by_sklearn(points, weights, start)
            np.testing.assert_array_equal(ours.labels[i], theirs.labels_)
            assert ours.inertia[i] == pytest.approx(theirs.inertia_, rel=1e-10)
            assert ours.n_iter[i] == theirs.n_iter_


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEED, kind=st.sampled_from(["noise", "lattice"]), max_iter=st.sampled_from([1, 2, 300]))
def test_as_with_centers_ties_and_empty_clusters_included(shape, seed, kind, max_iter):
    given_ = problem(seed, shape, kind=kind)
    ours, (labels, inertia, n_iter) = solved(*given_, max_iter=max_iter), by_centers(*given_, max_iter=max_iter)
    np.testing.assert_array_equal(ours.labels, labels)
    np.testing.assert_allclose(ours.inertia, inertia, rtol=1e-10)
    np.testing.assert_array_equal(ours.n_iter, n_iter)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limits", [{"tol": 0.3}, {"tol": 0.2}, {"max_iter": 1}, {"max_iter": 2}])
def test_early_ends_as_scikit_learn_ends(shape, limits):
    early = 0
    if shape == "long" and "tol" in limits:  # it is relative to the mean variance of the coordinates
        limits = {"tol": limits["tol"] * SHAPES["long"][1]}
    for seed in range(6):
        points, weights, seeds = problem(seed, shape, n_init=1)
        tol = limits.get("tol", 0) * points.var(axis=0).mean()
        ours = solved(points, weights, seeds, tol, limits.get("max_iter", 300))
        theirs = by_sklearn(points, weights, seeds[0], **limits)
        np.testing.assert_array_equal(ours.labels[0], theirs.labels_)
        assert ours.inertia[0] == pytest.approx(theirs.inertia_, rel=1e-10)
        assert ours.n_iter[0] == theirs.n_iter_
        early += ours.n_iter[0] < solved(points, weights, seeds).n_iter[0]
    assert early


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEED, kind=st.sampled_from(["noise", "lattice"]))
def test_other_starts_never_matter(shape, seed, kind):
    points, weights, seeds = problem(seed, shape, n_init=5, kind=kind)
    together = solved(points, weights, seeds)
    for i in range(len(seeds)):
        alone = solved(points, weights, seeds[i : i + 1])
        np.testing.assert_array_equal(alone.labels[0], together.labels[i])
        assert alone.n_iter[0] == together.n_iter[i]
        assert alone.inertia[0] == pytest.approx(together.inertia[i], rel=1e-12)
        if shape == "long":  # nor do the last bits depend on a product of matrices
            assert alone.inertia[0] == together.inertia[i]


def test_many_clusters():
    """More than a byte counts."""
    points = np.random.default_rng(0).standard_normal((400, 399))
    points -= points.mean(axis=0)
    seeds = np.arange(300)[None]
    ours, theirs = solved(points, np.ones(400), seeds), by_sklearn(points, np.ones(400), seeds[0])
    np.testing.assert_array_equal(ours.labels[0], theirs.labels_)
    assert ours.labels.max() == 299


def test_ties_go_to_the_first_centre():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # no coordinate is exact: round-off alone would choose
    points = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.1], [0.0, -0.1], [0.0, 0.0]]) @ turn
    found = solved(points, np.ones(5), np.array([[1, 0], [0, 1]]), max_iter=1)
    assert found.labels.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


@pytest.mark.parametrize("repeat", [1, 30])
def test_an_empty_cluster_keeps_its_centre(repeat):
    """Of two centres at 10 the first gets all points there and at 11, and moves; the second is then the nearer one."""
    points = np.repeat([[0.0], [1.0], [10.0], [11.0]], repeat, axis=0)
    found = solved(points - 5.5, np.ones(4 * repeat), np.array([[0, 2 * repeat, 2 * repeat]]))
    np.testing.assert_array_equal(found.labels[0], np.repeat([0, 0, 2, 1], repeat))
    assert found.inertia[0] == pytest.approx(repeat / 2)


def test_distances():
    points = np.random.default_rng(0).standard_normal((20, 7))
    points[3] = points[4]
    found = squared_distances(points)
    np.testing.assert_allclose(found, cdist(points, points) ** 2, atol=1e-13)
    np.testing.assert_array_equal(found, found.T)
    assert (found >= 0).all()
    assert (np.diag(found) == 0).all()
