"""Ward's clustering of weighted points: the hierarchy of its definition, whatever the order and the weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from lorakit import MSUKMeans
from lorakit.cluster._rows import squared_distances
from lorakit.cluster._ward import ward

SEED = st.integers(0, 2**31 - 1)


def noise(seed, n=20, d=6):
    points = np.random.default_rng(seed).standard_normal((n, d))
    return points - points.mean(axis=0)


def inertia(points, weights, labels):
    parts = [(points[labels == c], weights[labels == c]) for c in np.unique(labels)]
    return sum((w @ (rows - np.average(rows, axis=0, weights=w)) ** 2).sum() for rows, w in parts)


def by_definition(points, weights, k):
    """Try every pair at every step, and compute the inertia that joining it leaves."""
    labels = np.arange(len(points))
    while len(set(labels)) > k:
        names = sorted(set(labels))
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        a, b = min(pairs, key=lambda pair: inertia(points, weights, np.where(labels == pair[1], pair[0], labels)))
        labels = np.where(labels == b, a, labels)
    return labels


@given(seed=SEED, n=st.integers(2, 40), d=st.integers(1, 8))
def test_without_weights_it_is_scipys(seed, n, d):
    points = noise(seed, n, d)
    ks = list(range(1, n))
    expected = cut_tree(linkage(points, "ward"), ks)
    for labels, theirs in zip(ward(squared_distances(points), np.ones(n), ks), expected.T, strict=True):
        assert adjusted_rand_score(labels, theirs) == 1


@given(seed=SEED)
def test_with_weights_it_is_that_of_the_definition(seed):
    points, weights = noise(seed, n=9, d=3), np.random.default_rng(seed).uniform(0.1, 4, 9)
    for k, labels in zip([5, 2], ward(squared_distances(points), weights, [5, 2]), strict=True):
        np.testing.assert_array_equal(labels, by_definition(points, weights, k))  # named by their first points too


@given(seed=SEED, ks=st.lists(st.integers(1, 19), min_size=1, max_size=5))
def test_every_number_as_if_alone(seed, ks):
    squared, weights = squared_distances(noise(seed)), np.random.default_rng(seed).uniform(0.1, 2, 20)
    for k, labels in zip(ks, ward(squared, weights, ks), strict=True):
        assert len(set(labels)) == k
        np.testing.assert_array_equal(labels, ward(squared, weights, [k])[0])


def test_points_that_are_equally_far_are_joined_in_their_order():
    """Joining any two clusters of orthogonal units of one length adds the same: round-off may not choose."""
    points = np.eye(8) - 1 / 8
    expected = [0, 0, 0, 0, 0, 5, 6, 7]
    for seed in range(5):
        rounded = points + 1e-14 * noise(seed, 8, 8)
        assert ward(squared_distances(rounded), np.ones(8), [4])[0].tolist() == expected


@pytest.mark.parametrize("backend", ["numpy", "sklearn", "torch"])
@pytest.mark.parametrize("shape", [(60, 200), (90, 4)])
def test_k_means_from_ward(backend, shape):
    X = np.random.default_rng(0).standard_normal(shape)
    fits = [
        MSUKMeans(9, init="ward", n_init=n_init, random_state=seed, backend=backend).fit(X)
        for n_init, seed in ((10, None), (1, 0), (3, 7))
    ]
    for other in fits[1:]:
        np.testing.assert_array_equal(other.labels_, fits[0].labels_)
        np.testing.assert_array_equal(other.cluster_centers_, fits[0].cluster_centers_)
    start = AgglomerativeClustering(9).fit_predict(X)
    assert fits[0].inertia_ <= inertia(X, np.ones(len(X)), start) * (1 + 1e-12)


@pytest.mark.parametrize("d", [3, 50])
def test_weight_is_repetition(d):
    X = np.random.default_rng(d).standard_normal((24, d))
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    weighted = MSUKMeans(4, init="ward").fit(X, sample_weight=counts)
    repeated = MSUKMeans(4, init="ward").fit(np.repeat(X, counts, axis=0))
    np.testing.assert_array_equal(np.repeat(weighted.labels_, counts), repeated.labels_)
    np.testing.assert_array_equal(weighted.cluster_centers_, repeated.cluster_centers_)
