"""What distance between units means, signs, and clusterers in the place of k-means."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, Birch, KMeans, SpectralClustering
from sklearn.metrics import adjusted_rand_score, pairwise_distances
from sklearn.metrics.pairwise import cosine_distances

from lorakit import LoraFactors, MSUKMeans
from lorakit.cluster._coordinates import aligned_signs, canonical_signs, coordinates
from lorakit.cluster._pool import Members
from lorakit.cluster.units import Backend, cluster_shares, clustered_units, problems_of_units, reassemble, solve_units

SEED = st.integers(0, 2**31 - 1)


def noise(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def bunches(n_bunches=5, size=4, d=40, spread=0.05, seed=0):
    """Units near ``n_bunches`` directions, and which of them each is near."""
    centres = noise(n_bunches, d, seed)
    truth = np.repeat(np.arange(n_bunches), size)
    return centres[truth] + spread * noise(len(truth), d, seed + 1), truth


def clustered(units, k, *, weights=None, metric="euclidean", clusterer=None, init="k-means++", seed=0):
    weights = np.ones(len(units)) if weights is None else weights
    rng = np.random.RandomState(seed)
    options = {"metric": metric, "clusterer": clusterer, "init": init, "n_init": 4, "rng": rng}
    update = LoraFactors(torch.from_numpy(units), torch.empty(0, len(units), dtype=torch.float64))
    problems, _ = problems_of_units(Members([update], weights, len(units), [True]), [k], **options)
    ((found,),) = solve_units([problems], Backend("sklearn"), max_iter=300)
    inverse = found.distinct.inverse
    return found._replace(labels=found.labels[inverse], signs=found.signs[inverse])  # of all units


def signed_inertia(units, weights, labels, signs):
    parts = [(signs[labels == c, None] * units[labels == c], weights[labels == c]) for c in np.unique(labels)]
    return sum((w @ (s - np.average(s, axis=0, weights=w)) ** 2).sum() for s, w in parts)


@pytest.mark.parametrize("shape", [(12, 30), (30, 5)])
def test_distances_of_the_coordinates(shape):
    rows = noise(*shape) * np.random.default_rng(1).uniform(0.1, 9, (shape[0], 1))
    norms = np.linalg.norm(rows, axis=1)
    cosine = 1 - cosine_distances(rows)
    for metric, product in (("euclidean", rows @ rows.T), ("cosine", cosine), ("sign_invariant", cosine**2)):
        lengths = np.ones(len(rows)) if metric == "cosine" else norms
        inner = product if metric == "euclidean" else product * np.outer(lengths, lengths)
        expected = np.sqrt(np.maximum(lengths[:, None] ** 2 + lengths**2 - 2 * inner, 0))
        np.testing.assert_allclose(pairwise_distances(coordinates(rows, metric)), expected, rtol=3e-6, atol=1e-6)


def test_sign_invariant_distances_are_euclidean_on_a_line_and_at_right_angles():
    rows = np.array([[3.0, 0, 0], [-5.0, 0, 0], [0, 2.0, 0], [0, 0, 0]])
    points = coordinates(rows, "sign_invariant")
    expected = [[0, 2, 13**0.5, 3], [2, 0, 29**0.5, 5], [13**0.5, 29**0.5, 0, 2], [3, 5, 2, 0]]
    np.testing.assert_allclose(pairwise_distances(points), expected, atol=1e-7)


def test_zero_units_have_no_direction():
    rows = np.vstack([noise(3, 8), np.zeros(8), 1e-9 * noise(1, 8, 5)])
    points = coordinates(rows, "cosine")
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), [1, 1, 1, 0, 0], rtol=3e-6)
    assert np.isfinite(coordinates(np.zeros((2, 4)), "sign_invariant")).all()


@given(seed=SEED, n=st.integers(1, 9), weighted=st.booleans())
def test_canonical_signs(seed, n, weighted):
    rows = noise(n, 6, seed)
    flips = np.random.RandomState(seed).choice([-1.0, 1.0], n)
    ours = canonical_signs(rows)[:, None] * rows
    np.testing.assert_array_equal(canonical_signs(rows * flips[:, None])[:, None] * (rows * flips[:, None]), ours)


@given(seed=SEED, n=st.integers(1, 8), spread=st.sampled_from([0.3, 1, 10]))
def test_aligned_signs_are_the_best_there_are(seed, n, spread):
    """Against all 2^n choices: exact where units do have a direction in common, near it where they have none."""
    rng = np.random.RandomState(seed)
    rows = (rng.standard_normal((1, 9)) + spread * rng.standard_normal((n, 9))) * rng.choice([-1, 1], (n, 1))
    weights = rng.uniform(0.2, 2, n)
    labels = np.zeros(n, dtype=int)
    signs = aligned_signs(rows, weights, labels)
    assert set(signs) <= {-1.0, 1.0}
    best = min(signed_inertia(rows, weights, labels, np.array(s)) for s in itertools.product([-1, 1], repeat=n))
    got = signed_inertia(rows, weights, labels, signs)
    total = weights @ (rows**2).sum(axis=1)
    assert got - best <= (1e-9 if spread < 1 else 0.1) * total


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@pytest.mark.parametrize("clusterer", [None, AgglomerativeClustering(), Birch(threshold=1e-6)])
def test_attributes_agree(metric, clusterer):
    units, weights = noise(20, 50), np.random.default_rng(1).uniform(0.1, 2, 20)
    found = clustered(units, 6, weights=weights, metric=metric, clusterer=clusterer)
    assert set(found.labels) == set(range(6))
    assert found.inertia == pytest.approx(signed_inertia(units, weights, found.labels, found.signs))
    if metric != "sign_invariant":
        assert (found.signs == 1).all()
    else:
        assert found.inertia <= signed_inertia(units, weights, found.labels, np.ones(20))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@pytest.mark.parametrize("begin", ["alike", "apart", "equal"])
@pytest.mark.parametrize("d_in", [5, 40])
@pytest.mark.parametrize("init", ["k-means++", "ward"])
@given(seed=SEED)
def test_the_order_of_units_in_a_merge(init, begin, metric, d_in, seed):
    """Units are told apart by their beginnings, which one half of a narrow module does not hold; or by all of them."""
    rng = np.random.RandomState(seed)
    units = rng.standard_normal((12, d_in + 20)).astype(np.float32)
    if begin != "apart":
        units[::3, :-1] = units[0, :-1]
    if begin == "equal":
        units[1::3] = units[1]
    reordered = torch.from_numpy(units[rng.permutation(12)])
    options = {
        "norm": "inf", "output_scale": "sqrt", "align": None, "metric": metric, "clusterer": None, "init": init,
        "n_init": 2, "max_iter": 300, "backend": "numpy", "device": None,
    }  # fmt: skip
    merged = [
        reassemble(
            [LoraFactors(x[:5, :d_in], x[:5, d_in:].mT), LoraFactors(x[5:, :d_in], x[5:, d_in:].mT)],
            np.full(2, 0.5), [3, 7], rng=np.random.RandomState(0), **options,
        )
        for x in (torch.from_numpy(units), reordered)
    ]  # fmt: skip
    for one, other in zip(*merged, strict=True):
        assert one.inertia == other.inertia
        assert all(torch.equal(x, y) for x, y in zip(one.factors, other.factors, strict=True))


def test_by_default_it_is_kmeans():
    units, weights = noise(30, 60), np.random.default_rng(1).uniform(0.1, 2, 30)
    kmeans = MSUKMeans(7, n_init=4, random_state=3).fit(units, sample_weight=weights)
    found = clustered(units, 7, weights=weights, seed=3)
    np.testing.assert_array_equal(found.labels, kmeans.labels_)
    assert found.inertia == pytest.approx(kmeans.inertia_)
    assert found.n_iter == kmeans.n_iter_


@given(seed=SEED)
def test_cosine_clusters_by_direction_alone(seed):
    units, truth = bunches(seed=seed)
    lengths = np.random.RandomState(seed).uniform(0.05, 20, (len(units), 1))
    found = clustered(units * lengths, 5, metric="cosine")
    assert adjusted_rand_score(truth, found.labels) == 1


def test_euclidean_does_not():
    units, truth = bunches()
    lengths = np.random.RandomState(0).uniform(0.05, 20, (len(units), 1))
    assert adjusted_rand_score(truth, clustered(units * lengths, 5).labels) < 0.9


@given(seed=SEED)
def test_signs_do_not_keep_units_apart(seed):
    units, truth = bunches(seed=seed)
    flips = np.random.RandomState(seed).choice([-1.0, 1.0], len(units))
    found = clustered(units * flips[:, None], 5, metric="sign_invariant")
    assert adjusted_rand_score(truth, found.labels) == 1
    for cluster in range(5):  # turned the same way, either way
        turned = (found.signs * flips)[found.labels == cluster]
        assert (turned == turned[0]).all()


def test_a_fixed_sign_per_unit_would_keep_them_apart():
    """The largest entries nearly tie: a rule that looks at one unit at a time turns like units opposite ways."""
    direction = np.array([1.0, -1.0, 0.2, 0.1])
    units = direction + 0.01 * noise(8, 4)
    assert len(set(canonical_signs(units))) == 2
    found = clustered(units, 1, metric="sign_invariant")
    assert abs(np.mean(found.signs[:, None] * units, axis=0) @ direction) > 0.99 * direction @ direction


@pytest.mark.parametrize("metric", ["cosine", "sign_invariant"])
@pytest.mark.parametrize("clusterer", [None, AgglomerativeClustering(), KMeans()])
@given(seed=SEED)
def test_the_order_of_units_does_not_matter(metric, clusterer, seed):
    units, order = noise(14, 20, seed), np.random.RandomState(seed).permutation(14)
    forth = clustered(units, 4, metric=metric, clusterer=clusterer)
    back = clustered(units[order], 4, metric=metric, clusterer=clusterer)
    np.testing.assert_array_equal(back.labels, forth.labels[order])
    np.testing.assert_array_equal(back.signs, forth.signs[order])


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@pytest.mark.parametrize("init", ["k-means++", "ward"])
def test_a_weight_of_two_is_a_unit_listed_twice(init, metric):
    units = noise(9, 20)
    once = clustered(units, 4, weights=np.array([2.0] + [1.0] * 8), metric=metric, init=init)
    twice = clustered(np.vstack([units[:1], units]), 4, metric=metric, init=init)
    np.testing.assert_array_equal(twice.labels[1:], once.labels)
    assert twice.labels[0] == twice.labels[1]
    assert twice.inertia == pytest.approx(once.inertia)


def test_more_clusters_than_directions():
    """Units that are multiples of one another are one point to 'cosine'; there are still k clusters, none empty."""
    units = np.outer(np.arange(1, 10), noise(1, 30)[0])
    units[:3] += noise(3, 30, 1)
    found = clustered(units, 7, metric="cosine")
    assert set(found.labels) == set(range(7))
    assert len(set(found.labels[:3])) == 3


def test_units_at_right_angles_keep_their_signs():
    """Nothing says which way to turn them: it must not be round-off."""
    units = np.vstack([np.eye(6)[:3] * [[3], [2], [1]], np.eye(6)[3:] * 1e-12]) + 1e-15 * noise(6, 6)
    signs = aligned_signs(units, np.ones(6), np.zeros(6, dtype=int))
    assert (signs[:3] == 1).all()
    pair = np.array([[5.0, 0, 0], [0, 1, 0.1], [0, -1, 0.1]])  # two that are opposite, both at right angles to a third
    assert aligned_signs(pair, np.ones(3), np.zeros(3, dtype=int)).prod() == -1


CLUSTERERS = [
    AgglomerativeClustering(),
    AgglomerativeClustering(linkage="average"),
    KMeans(),
    SpectralClustering(affinity="rbf", gamma=0.05),
]


@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=str)
def test_k_sets_the_number_of_clusters(clusterer):
    units, truth = bunches()
    before = str(clusterer.get_params())
    found = clustered(units, 5, clusterer=clusterer)
    assert adjusted_rand_score(truth, found.labels) == 1
    assert set(clustered(units, 3, clusterer=clusterer).labels) == set(range(3))
    assert set(clustered(units, 20, clusterer=clusterer).labels) == set(range(20))
    assert str(clusterer.get_params()) == before
    assert not hasattr(clusterer, "labels_")
    again = clustered(units, 5, clusterer=clusterer)
    np.testing.assert_array_equal(again.labels, found.labels)


@pytest.mark.parametrize(
    ("clusterer", "expected"),
    [
        (AgglomerativeClustering(n_clusters=None, distance_threshold=4.0), 5),
        (KMeans(n_clusters=2), 2),
        (KMeans(n_clusters=50), 20),
        (DBSCAN(eps=3.0, min_samples=2), 5),
        (HDBSCAN(min_cluster_size=3, copy=True), 5),
    ],
    ids=str,
)
def test_without_k_the_clusterer_decides(clusterer, expected):
    units, truth = bunches()
    found = clustered(units, None, clusterer=clusterer)
    assert set(found.labels) == set(range(expected))
    if expected == 5:
        assert adjusted_rand_score(truth, found.labels) == 1


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("clusterer", [DBSCAN(eps=3.0, min_samples=2), HDBSCAN(min_cluster_size=3, copy=True)])
def test_noise_stays_apart(clusterer, k):
    units, truth = bunches()
    units = np.vstack([units, 30 * noise(3, units.shape[1], 9)])
    labels = clustered(units, k, clusterer=clusterer).labels
    assert adjusted_rand_score(truth, labels[:20]) == 1
    assert set(labels) == set(range(8))
    assert all((labels == labels[i]).sum() == 1 for i in (20, 21, 22))
    far = DBSCAN(eps=1e-9, min_samples=2)
    assert set(clustered(units, None, clusterer=far).labels) == set(range(23))


class Spy(ClusterMixin, BaseEstimator):
    """Says what it was given."""

    seen: list = []

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y=None, sample_weight=None):
        self.seen.append((X, sample_weight, self.random_state))
        self.labels_ = np.zeros(len(X), dtype=int)
        return self


def test_what_a_clusterer_is_given():
    units = noise(6, 5000)
    units = np.vstack([units, units[:1]])
    Spy.seen.clear()
    found = clustered(units, None, weights=np.full(7, 0.125), clusterer=Spy())
    clustered(units, None, clusterer=Spy(random_state=5))
    (points, weights, seed), (_, _, kept) = Spy.seen
    assert points.shape == (6, 5)  # cost does not grow with the width
    np.testing.assert_allclose(
        np.sort(pairwise_distances(points), axis=None), np.sort(pairwise_distances(units[:6]), axis=None), atol=1e-6
    )
    np.testing.assert_allclose(sorted(weights), [1, 1, 1, 1, 1, 2])  # counts, whatever the scale of the weights
    assert isinstance(seed, int)
    assert kept == 5
    assert found.n_iter is None


def test_a_single_unit():
    for clusterer in (None, AgglomerativeClustering(), HDBSCAN(copy=True)):
        found = clustered(noise(1, 5), 1, clusterer=clusterer)
        assert found.labels.tolist() == [0]
        assert found.inertia == 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@pytest.mark.parametrize("align", [None, "balance", "svd"])
@given(seed=SEED)
def test_the_units_behind_a_merge(align, metric, seed):
    """Their means are the merge's units and their distances to these its inertia, with negated and equal units too."""
    a, b, c = (torch.from_numpy(noise(n, 10, seed + i)) for i, n in enumerate([3, 2, 4]))
    updates = [LoraFactors(x[:, :5], x[:, 5:].mT) for x in (a, b, torch.cat([-a[:2], a[:1], b]), c)]
    weights = np.array([0.3, 0.0, 0.5, 0.2])
    (merged,) = reassemble(
        updates, weights, [3], norm=None, output_scale=None, align=align, metric=metric, clusterer=None,
        init="k-means++", n_init=2, max_iter=300, rng=np.random.RandomState(0), backend="sklearn", device=None,
    )  # fmt: skip
    found = clustered_units(updates, weights, merged.labels, align=align, metric=metric)
    assert found.weights.tolist() == [0.3] * 3 + [0.5] * 5 + [0.2] * 4
    np.testing.assert_array_equal(found.labels, merged.labels[merged.owners != 1])
    means = cluster_shares(found.labels, found.weights) @ found.units
    np.testing.assert_allclose(means, torch.cat([merged.factors.A, merged.factors.B.mT], dim=1), atol=1e-12)
    inertia = (found.weights @ (found.units - means[found.labels]) ** 2).sum()
    assert merged.inertia == pytest.approx(inertia)


def test_the_units_of_nobody():
    update = LoraFactors(torch.ones(2, 4), torch.ones(3, 2))
    found = clustered_units([update], np.zeros(1), np.full(2, -1), align="svd", metric="sign_invariant")
    assert [array.shape for array in found] == [(0, 7), (0,), (0,)]
    assert cluster_shares(found.labels, found.weights).shape == (0, 0)
