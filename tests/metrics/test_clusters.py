"""Composition of clusters and decay of norms, against counts and means made by hand."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.exceptions import NotFittedError

from lorakit import Adapter, AdapterSet, LegoMerger, LoraFactors, SVDMerger
from lorakit.metrics import cluster_composition, norm_decay
from lorakit.testing import adapter_sets, adapter_weights, make_adapters


def lego(**parameters):
    return LegoMerger(random_state=0, n_init=2, **parameters)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")  # a cluster's units may sum to zero
@given(adapter_sets(content=("random", "duplicate_msus", "identical_adapters")), st.integers(1, 4))
def test_counts(X, k):
    merger = lego(clusterer=AgglomerativeClustering(k) if all(len(X.msus(m)) >= k for m in X.module_names) else None)
    merger.fit(X)
    found = cluster_composition(merger, X)
    assert found.tasks == X.names
    for module in X.module_names:
        counts = found.counts[module]
        assert np.array_equal(counts, merger.composition(module))
        n = counts.sum()
        assert found.purity[module] == sum(row.max() for row in counts) / n
        assert found.mixed[module] == sum(row.sum() for row in counts if np.count_nonzero(row) > 1) / n
        entropy = 0.0
        for row in counts:
            shares = row[row > 0] / row.sum()
            entropy -= row.sum() / n * (shares * np.log(shares)).sum()
        assert found.entropy[module] == pytest.approx(entropy / np.log(len(X)) if len(X) > 1 else 0, abs=1e-12)
        assert 0 <= found.entropy[module] <= 1 + 1e-12
        assert found.purity[module] >= 1 / len(X)


def blobs(owners, *, spread=0.01):
    """One adapter a row of ``owners``, with a unit near each of the named corners."""
    rng = np.random.RandomState(0)
    adapters = []
    for i, corners in enumerate(owners):
        units = 10 * np.eye(12)[list(corners)] + spread * rng.standard_normal((len(corners), 12))
        adapters.append(Adapter({"m": LoraFactors(units[:, :6], units[:, 6:].T)}, name=f"{i}"))
    return adapters


def test_clusters_that_are_tasks():
    X = blobs([(0, 0, 1), (2, 3, 3)])
    found = cluster_composition(lego(k=4).fit(X), X)
    assert found.purity["m"] == 1
    assert found.entropy["m"] == 0
    assert found.mixed["m"] == 0
    tasks = blobs([(0, 0, 0), (1, 1, 1)])
    assert cluster_composition(lego(k=2).fit(tasks), tasks).adjusted_mutual_information["m"] == pytest.approx(1)


def test_clusters_that_mix_tasks_evenly():
    X = blobs([(0, 1, 2), (0, 1, 2)])
    found = cluster_composition(lego(k=3).fit(X), X)
    assert found.purity["m"] == 0.5
    assert found.entropy["m"] == pytest.approx(1)
    assert found.mixed["m"] == 1
    assert found.adjusted_mutual_information["m"] < 0.01


def test_adapters_of_one_task():
    X = blobs([(0, 1), (0, 1), (2, 3)])
    found = cluster_composition(lego(k=4).fit(X), X, tasks={"0": "law", "1": "law"})
    assert found.tasks == ("law", "2")
    assert found.counts["m"].sum(axis=0).tolist() == [4, 2]
    assert found.purity["m"] == 1
    assert cluster_composition(lego(k=4).fit(X), X).purity["m"] == pytest.approx(4 / 6)


def test_an_adapter_of_weight_zero_takes_no_part():
    X = make_adapters(3, ranks=4, random_state=0)
    merger = lego(k=4, weights=[1, 0, 1]).fit(X)
    assert cluster_composition(merger, X).counts["layer.0"].sum(axis=0).tolist() == [4, 0, 4]
    assert norm_decay(merger, X).sizes["layer.0"].sum() == 8


def test_a_module_in_which_nobody_takes_part():
    x, y = make_adapters(2, ranks=3, random_state=0)
    X = AdapterSet([x.select(["layer.0"]), y])
    merger = lego(k=2, weights=[1, 0]).fit(X)
    found = cluster_composition(merger, X)
    assert set(found.purity) == {"layer.0"}
    assert np.isnan(found.adjusted_mutual_information["layer.1"])
    assert norm_decay(merger, X).ratio["layer.1"].shape == (0,)


@pytest.mark.parametrize(
    ("align", "metric"), list(product([None, "balance", "svd"], ["euclidean", "cosine", "sign_invariant"]))
)
@given(
    X=adapter_sets(min_adapters=2, content=("random", "duplicate_msus", "rank_deficient"), missing_modules=True),
    data=st.data(),
)
def test_decay_is_that_of_the_merge(align, metric, X, data):
    """Without reweighting, the merged MSUs are the centroids; with it, they have the members' norm."""
    weights = data.draw(adapter_weights(len(X)))
    given = {"k": 2, "align": align, "metric": metric, "weights": weights, "output_scale": None}
    plain = lego(norm=None, **given).fit(X)
    decay = norm_decay(plain, X)
    again = norm_decay(lego(norm="l2", **given).fit(X), X)
    restored = lego(norm="inf", **given).fit(X)
    largest = norm_decay(restored, X, norm="inf")
    for module in X.module_names:
        members, centroids, ratio = (d[module] for d in (decay.members, decay.centroids, decay.ratio))
        if members.size == 0:
            continue
        units = AdapterSet([plain.merged_]).msus(module)
        size = members.max()
        assert centroids == pytest.approx(units.norm(dim=1).numpy(), rel=1e-6, abs=1e-7 * size)
        assert (centroids <= members * (1 + 1e-9)).all()
        assert ((ratio >= 0) & (ratio <= 1 + 1e-9)).all()
        assert decay.sizes[module].sum() == (plain.labels_[module] >= 0).sum()
        assert np.array_equal(again.centroids[module], centroids)  # before any reweighting, whatever there is
        units = AdapterSet([restored.merged_]).msus(module)
        alive = largest.centroids[module] > 1e-6 * size
        assert largest.members[module][alive] == pytest.approx(
            units.abs().amax(dim=1).numpy()[alive], rel=1e-5, abs=1e-7 * size
        )


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
def test_a_unit_alone_and_two_at_right_angles():
    eye = torch.eye(8, dtype=torch.float64)
    X = [
        Adapter({"m": LoraFactors(eye[:1, :4], eye[4:, :1])}, name="a"),
        Adapter({"m": LoraFactors(eye[1:2, :4], eye[4:, :1])}, name="b"),
        Adapter({"m": LoraFactors(50 * eye[2:3, :4], eye[4:, :1])}, name="c"),
    ]
    found = norm_decay(lego(k=2).fit(X), X)
    order = np.argsort(found.sizes["m"])
    assert found.sizes["m"][order].tolist() == [1, 2]
    assert found.ratio["m"][order] == pytest.approx([1, 2**-0.5])
    assert found.members["m"][order] == pytest.approx([50, 1])


def test_other_adapters_are_refused():
    X = make_adapters(ranks=(4, 8), random_state=0)
    merger = lego(k=4).fit(X)
    for measure in (cluster_composition, norm_decay):
        with pytest.raises(ValueError, match=r"fitted on other adapters.*\[4, 8\].*\[8, 4\]"):
            measure(merger, X[::-1])
        with pytest.raises(ValueError, match="fitted on other adapters"):
            measure(merger, X[:1])
        with pytest.raises(TypeError, match="SVDMerger has no clusters"):
            measure(SVDMerger().fit(X), X)
        with pytest.raises(NotFittedError):
            measure(LegoMerger(), X)


def test_unknown_norm():
    X = make_adapters(2, random_state=0)
    with pytest.raises(ValueError, match="'l1'"):
        norm_decay(lego(k=2).fit(X), X, norm="l1")
