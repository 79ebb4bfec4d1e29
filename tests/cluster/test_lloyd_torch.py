"""Lloyd's algorithm for many problems at once: each as scikit-learn solves it, and as if it were alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from lorakit.cluster._lloyd_torch import lloyd

SEED = st.integers(0, 2**32 - 1)


def problem(seed, n=30, d=4, k=5, kind="noise"):
    """Points, weights, and points to start from."""
    rng = np.random.default_rng(seed)
    if kind == "blobs":
        points, _ = make_blobs(n, n_features=d, centers=k, random_state=seed % 2**32)
    elif kind == "lattice":  # many points are equally far from two centres
        points = rng.integers(-2, 3, (n, d)).astype(float)
    else:
        points = rng.standard_normal((n, d))
    return points, rng.uniform(0.1, 3, n), points[rng.choice(n, k, replace=False)]


def solved(problems, tol=0.0, max_iter=300):
    points, weights, centers = (torch.from_numpy(np.stack(part)) for part in zip(*problems, strict=True))
    tol = torch.as_tensor(np.broadcast_to(tol, len(problems)).astype(float))
    return [x.numpy() for x in lloyd(points, weights, centers, max_iter=max_iter, tol=tol)]


def by_sklearn(points, weights, centers, tol=0.0, max_iter=300):
    """``tol`` is relative to the mean variance."""
    kmeans = KMeans(len(centers), init=centers, n_init=1, algorithm="lloyd", tol=tol, max_iter=max_iter)
    return kmeans.fit(points, sample_weight=weights)


def is_ours(ours, i, theirs):
    labels, inertia, n_iter = (x[i] for x in ours)
    np.testing.assert_array_equal(labels, theirs.labels_)
    assert inertia == pytest.approx(theirs.inertia_, rel=1e-12)
    assert n_iter == theirs.n_iter_


@given(seeds=st.lists(SEED, min_size=1, max_size=6), kind=st.sampled_from(["noise", "blobs"]), d=st.integers(1, 8))
def test_every_problem_as_scikit_learn_solves_it(seeds, kind, d):
    problems = [problem(seed, d=d, kind=kind) for seed in seeds]
    ours = solved(problems)
    for i, one in enumerate(problems):
        theirs = by_sklearn(*one)
        if not empties_one(*one):  # an empty cluster is treated otherwise
            is_ours(ours, i, theirs)


def empties_one(points, weights, centers):
    """Whether a cluster has no points at some step, which it may have again at the end."""
    before = None
    while before is None or not np.array_equal(before, centers):
        before = centers
        labels = ((points[:, None] - centers) ** 2).sum(-1).argmin(1)
        if len(set(labels)) < len(centers):
            return True
        each = [labels == j for j in range(len(centers))]
        centers = np.stack([np.average(points[of], axis=0, weights=weights[of]) for of in each])
    return False


def test_a_cluster_that_is_empty_for_a_step_is_seen():
    assert empties_one(*problem(511763, d=2, kind="blobs"))  # all five have points at the end
    assert not empties_one(*problem(0, d=2, kind="blobs"))


@pytest.mark.parametrize("limits", [{"tol": 1e-1}, {"tol": 3e-2}, {"max_iter": 1}, {"max_iter": 3}])
def test_early_ends_as_scikit_learn_ends(limits):
    problems = [problem(seed, n=200, d=2, k=8) for seed in range(8)]
    tol = np.array([limits.get("tol", 0) * points.var(axis=0).mean() for points, _, _ in problems])
    ours = solved(problems, tol, limits.get("max_iter", 300))
    whole = solved(problems)
    assert (ours[2] < whole[2]).all()  # none of them ran to its own end
    for i, one in enumerate(problems):
        is_ours(ours, i, by_sklearn(*one, **limits))


@given(seeds=st.lists(SEED, min_size=2, max_size=9), kind=st.sampled_from(["noise", "blobs", "lattice"]))
def test_other_problems_never_matter(seeds, kind):
    problems = [problem(seed, kind=kind) for seed in seeds]
    together = solved(problems)
    for i, one in enumerate(problems):
        alone = solved([one])
        np.testing.assert_array_equal(alone[0][0], together[0][i])
        assert alone[1][0] == pytest.approx(together[1][i], rel=1e-12)
        assert alone[2][0] == together[2][i]


def test_a_settled_problem_waits_for_none():
    slow = problem(3, n=200, d=2, k=8)
    blobs, _ = make_blobs(200, n_features=2, centers=8, cluster_std=1e-3, random_state=0)
    at_the_blobs = np.stack([blobs[labels] for labels in _one_of_each(blobs, 8)])
    labels, _, n_iter = solved([slow, (blobs, np.ones(200), at_the_blobs), slow])
    assert n_iter[1] == 2
    assert n_iter[0] == n_iter[2] > 5
    np.testing.assert_array_equal(labels[0], labels[2])
    np.testing.assert_array_equal(labels[1], solved([(blobs, np.ones(200), at_the_blobs)])[0][0])


def _one_of_each(blobs, k):
    labels = KMeans(k, random_state=0).fit_predict(blobs)
    return [np.flatnonzero(labels == c)[0] for c in range(k)]


def test_inertia_and_labels_are_those_of_the_centres():
    points, weights, centers = problem(0, n=200, d=2, k=8)
    ((labels,), (inertia,), _) = solved([(points, weights, centers)])
    means = np.array([np.average(points[labels == c], axis=0, weights=weights[labels == c]) for c in range(8)])
    squared = ((points[:, None] - means) ** 2).sum(axis=2)
    np.testing.assert_array_equal(squared.argmin(axis=1), labels)
    assert inertia == pytest.approx(weights @ squared.min(axis=1), rel=1e-12)


def test_weight_is_repetition():
    points, _, centers = problem(1)
    counts = np.random.default_rng(0).integers(1, 4, len(points))
    ((weighted,), (inertia,), _) = solved([(points, counts.astype(float), centers)])
    repeated = np.repeat(points, counts, axis=0)
    ((labels,), (expected,), _) = solved([(repeated, np.ones(len(repeated)), centers)])
    np.testing.assert_array_equal(np.repeat(weighted, counts), labels)
    assert inertia == pytest.approx(expected)


def test_ties_go_to_the_first_centre():
    points = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.1], [0.0, -0.1], [0.0, 0.0]])
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # no coordinate is exact: round-off alone would choose
    centers = np.array([[1.0, 0.0], [-1.0, 0.0]])
    ((labels,), _, _) = solved([(points @ turn, np.ones(5), centers @ turn)], max_iter=1)
    assert labels.tolist() == [1, 0, 0, 0, 0]


def test_an_empty_cluster_keeps_its_centre():
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    centers = np.array([[0.0], [10.0], [500.0]])
    ((labels,), (inertia,), _) = solved([(points, np.ones(4), centers)])
    assert labels.tolist() == [0, 0, 1, 1]
    assert inertia == pytest.approx(1)


def test_a_common_offset_costs_no_digits():
    points, weights, centers = problem(5)
    ((labels,), (inertia,), _) = solved([(points, weights, centers)])
    ((shifted,), (again,), _) = solved([(points + 1e7, weights, centers + 1e7)])
    np.testing.assert_array_equal(shifted, labels)
    assert again == pytest.approx(inertia, rel=1e-6)
