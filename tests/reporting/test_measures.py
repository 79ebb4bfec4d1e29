"""The numbers of a report against dense float64 algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit import AdapterSet, LegoPruner, SVDMerger, SVDPruner
from lorakit.reporting._advice import best_at_rank
from lorakit.reporting._measures import agreement, best_mean_cosine, cosines, energy, measure, norms, rank_for
from lorakit.reporting._subject import Subject, weights_of
from lorakit.testing import make_adapters


def dense(adapter, modules):
    """All modules of an adapter as one float64 vector."""
    return np.concatenate([adapter[m].delta().double().numpy().ravel() for m in modules if m in adapter])


@pytest.fixture(scope="module")
def merged():
    adapters = AdapterSet(make_adapters(ranks=(4, 8, 2), random_state=0))
    weights = np.array([0.5, 0.2, 0.3])
    result = SVDMerger(k=5, weights=weights).fit(adapters).merged_
    found = measure(adapters, [result], weights=weights, n_jobs=None)
    vectors = [dense(adapter, adapters.module_names) for adapter in (*adapters, result)]
    return adapters, result, weights, found, np.array(vectors)


def test_inner_products_are_those_of_the_dense_updates(merged):
    _, _, _, found, vectors = merged
    np.testing.assert_allclose(found.total, vectors @ vectors.T, rtol=1e-5)
    np.testing.assert_allclose(norms(found.total), np.linalg.norm(vectors, axis=1), rtol=1e-6)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines(found.total), units @ units.T, atol=1e-6)


def test_what_the_exact_mean_reaches(merged):
    _, _, weights, found, vectors = merged
    mean = weights @ vectors[:3]
    expected = [mean @ v / np.linalg.norm(mean) / np.linalg.norm(v) for v in vectors[:3]]
    np.testing.assert_allclose(found.reached(found.total), expected, atol=1e-6)


def test_spectra_are_those_of_the_dense_updates(merged):
    adapters, result, weights, found, _ = merged
    for m, module in enumerate(found.modules):
        updates = [adapter[module].delta().double().numpy() for adapter in (*adapters, result)]
        for update, values in zip(updates, found.spectra[m], strict=True):
            np.testing.assert_allclose(values, np.linalg.svd(update, compute_uv=False)[: len(values)], atol=1e-5)
        mean = sum(w * u for w, u in zip(weights, updates, strict=False))
        np.testing.assert_allclose(found.mean_spectra[m], np.linalg.svd(mean, compute_uv=False)[:14], atol=1e-5)
    squares = np.square([np.pad(s[0], (0, 4))[:4] for s in found.spectra])
    np.testing.assert_allclose(found.curve(0), np.sqrt(squares.mean(axis=0)), rtol=1e-12)


def test_kept_and_strength(merged):
    adapters, result, _, found, vectors = merged
    subject = Subject("merge", adapters, [result], [], found, [])
    made = vectors[3]
    expected = [made @ v / np.linalg.norm(made) / np.linalg.norm(v) for v in vectors[:3]]
    np.testing.assert_allclose(subject.kept, expected, atol=1e-6)
    np.testing.assert_allclose(subject.strengths, [made @ v / (v @ v) for v in vectors[:3]], atol=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 8))
def test_no_update_has_a_higher_mean_cosine_than_the_best(seed, n, d):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, d)) * rng.uniform(0.1, 10, (n, 1))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    best = best_mean_cosine(vectors @ vectors.T)
    there = units.mean(axis=0)
    assert np.isclose((units @ there / np.linalg.norm(there)).mean(), best)  # it is reached
    others = rng.standard_normal((200, d))
    assert (units @ (others / np.linalg.norm(others, axis=1, keepdims=True)).T).mean(axis=0).max() <= best + 1e-9


def test_agreement():
    x = np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]])
    assert np.isclose(agreement(x[:2] @ x[:2].T), 1)  # copies, whatever their sizes
    assert np.isclose(agreement(x[1:] @ x[1:].T), 0)
    opposed = np.array([[1.0, 0], [-5.0, 0]])
    assert np.isclose(agreement(opposed @ opposed.T), -1)
    assert np.isnan(agreement(np.zeros((2, 2))))
    assert np.isnan(agreement(np.diag([1.0, 0.0])))  # there is no pair


def test_energy_and_rank():
    values = np.array([3.0, 2.0, 1.0])
    np.testing.assert_allclose(energy(values), np.array([0, 9, 13, 14]) / 14)
    assert [rank_for(values, share) for share in (0.5, 9 / 14, 0.9, 1.0)] == [1, 1, 2, 3]
    assert rank_for(np.zeros(3), 0.9) == 0
    np.testing.assert_array_equal(energy(np.zeros(2)), [1, 1, 1])


@pytest.mark.parametrize("pruner", [SVDPruner(k=3), LegoPruner(k=3, random_state=0)], ids=["svd", "lego"])
def test_best_at_rank_is_what_the_dense_svd_keeps(pruner):
    adapters = AdapterSet(make_adapters(ranks=(8, 6), random_state=0))
    results = list(pruner.fit_transform(adapters))
    found = measure(adapters, results, weights=np.full(2, 0.5), n_jobs=None)
    subject = Subject("prune", adapters, results, [], found, [])
    for i, adapter in enumerate(adapters):
        values = [np.linalg.svd(f.delta().double().numpy(), compute_uv=False) ** 2 for f in adapter.values()]
        best = sum(v[:3].sum() for v in values) / sum(v.sum() for v in values)
        assert np.isclose(best_at_rank(subject, i), best, rtol=1e-5)
        if isinstance(pruner, SVDPruner):
            assert np.isclose(subject.kept[i] ** 2, best, rtol=1e-5)
        else:
            assert subject.kept[i] ** 2 < best - 0.01


def test_weights_of_a_record():
    def record(weights):
        return {"operations": [{"class": "SVDMerger", "params": {"weights": weights}}]}

    names = ("law", "medicine")
    for weights in ([3, 1], {"dict": [["medicine", 1], ["law", 3]]}, {"array": [3.0, 1.0]}):
        np.testing.assert_allclose(weights_of(record(weights), names), [0.75, 0.25])
    for odd in (None, [1, 2, 3], {"dict": [["law", 1]]}, {"unrecorded": "x"}, "text", [["a"]], {}, 7, [[1, 2], 3]):
        np.testing.assert_allclose(weights_of(record(odd), names), [0.5, 0.5])
    signed = {"operations": [{"class": "SVDMerger", "params": {"weights": None, "strengths": [3, -1]}}]}
    np.testing.assert_allclose(weights_of(signed, names), [0.75, -0.25])
    np.testing.assert_allclose(weights_of({"operations": [{"text": "a function"}]}, names), [0.5, 0.5])
