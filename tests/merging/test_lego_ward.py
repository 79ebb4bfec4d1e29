"""LEGO from Ward's clustering: nothing is drawn at random, one hierarchy serves every rank, clusterers are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering

from lorakit import Adapter, AdapterSet, LegoMerger, LegoPruner, LoraFactors, rank_path
from lorakit.cluster import _partition, units
from lorakit.testing import adapter_sets, make_adapters

METRICS = ["euclidean", "cosine", "sign_invariant"]


def same(ours, theirs):
    for module, factors in theirs.merged_.items():
        np.testing.assert_array_equal(ours.labels_[module], theirs.labels_[module])
        assert all(torch.equal(a, b) for a, b in zip(ours.merged_[module], factors, strict=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("align", [None, "svd"])
def test_no_seed_no_order(metric, align):
    X = AdapterSet(make_adapters(ranks=(6, 4, 8), dtype=torch.float64, random_state=0))
    merger = LegoMerger(k=5, init="ward", metric=metric, align=align, random_state=0)
    merged = clone(merger).fit(X)
    same(clone(merger).set_params(random_state=1, n_init=1).fit(X), merged)
    order = np.random.RandomState(0)
    shuffled = [
        Adapter(
            {m: LoraFactors(f.A[p], f.B[:, p]) for m, f in a.items() for p in [order.permutation(f.rank)]}, name=a.name
        )
        for a in (X[2], X[0], X[1])
    ]
    again = clone(merger).fit(shuffled)
    for module, factors in merged.merged_.items():
        torch.testing.assert_close(again.merged_[module].delta(), factors.delta(), rtol=1e-9, atol=1e-9)


def test_the_seed_of_k_means_does_move_the_merge():
    """Else there was nothing to test."""
    X = make_adapters(ranks=(6, 4, 8), random_state=0)
    one, other = (LegoMerger(k=5, n_init=1, random_state=seed).fit(X) for seed in (0, 1))
    assert any(not np.array_equal(one.labels_[m], other.labels_[m]) for m in one.labels_)


@pytest.mark.parametrize("metric", METRICS)
def test_without_weights_it_begins_with_scikit_learns_partition(metric, monkeypatch):
    """Of the same points: both see those of the metric."""
    starts, partitions = [], []
    problems_of, clustered_by = units.problems_of, units.clustered_by
    monkeypatch.setattr(units, "problems_of", lambda *a, **o: starts.extend(found := problems_of(*a, **o)) or found)
    monkeypatch.setattr(units, "clustered_by", lambda *a: partitions.append(found := clustered_by(*a)) or found)
    X = make_adapters(ranks=(6, 4, 8), n_modules=1, dtype=torch.float64, random_state=0)
    LegoMerger(k=5, init="ward", metric=metric).fit(X)
    LegoMerger(k=5, clusterer=AgglomerativeClustering(), metric=metric).fit(X)
    np.testing.assert_array_equal(starts[0].partition, partitions[0].labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(X=adapter_sets(min_adapters=2, max_rank=6), weighted=st.booleans())
def test_a_sweep_is_one_fit_a_rank(backend, metric, X, weighted):
    weights = np.arange(1, len(X) + 1) if weighted else None
    merger = LegoMerger(init="ward", metric=metric, backend=backend, weights=weights)
    largest = max(sum(i.rank for i in X.infos(m) if i) for m in X.module_names)
    ks = sorted({1, min(3, largest), largest})
    for k, fitted in rank_path(merger, X, ks).items():
        same(fitted, clone(merger).set_params(k=k).fit(X))


def test_one_hierarchy_serves_every_rank(monkeypatch):
    calls = []
    ward = _partition.ward
    monkeypatch.setattr(_partition, "ward", lambda *args: calls.append(args[2]) or ward(*args))
    X = AdapterSet(make_adapters(ranks=(6, 4, 8), n_modules=3, random_state=0))
    rank_path(LegoMerger(init="ward"), X, [2, 5, 9])
    assert calls == [[2, 5, 9]] * 3


def test_pruning_draws_nothing():
    X = AdapterSet(make_adapters(ranks=(8, 8), dtype=torch.float64, random_state=0))
    one, other = (LegoPruner(k=3, init="ward", random_state=seed).fit_transform(X) for seed in (0, 1))
    for x, y in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for m in x for a, b in zip(x[m], y[m], strict=True))


@pytest.mark.parametrize("estimator", [LegoMerger, LegoPruner])
def test_what_is_refused(estimator, monkeypatch):
    X = AdapterSet(make_adapters(ranks=(6, 8), random_state=0))
    monkeypatch.setattr(AdapterSet, "factors", lambda *args: pytest.fail("read"))
    both = estimator(k=3, init="ward", clusterer=AgglomerativeClustering())
    with pytest.raises(ValueError, match=r"init='ward' says where k-means starts, and clusterer=Agglomerative.*one of"):
        both.fit_transform(X)
    with pytest.raises(ValueError, match="'init' parameter"):
        estimator(k=3, init="random").fit(X)
