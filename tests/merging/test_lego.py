"""LEGO's metrics, clusterers and composition, on merged and pruned updates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from lorakit import Adapter, AdapterSet, LegoMerger, LegoPruner, LoraFactors, NormBalancer, PicoDamper
from lorakit.metrics import norm_decay
from lorakit.testing import adapter_sets, make_adapters

SEED = st.integers(0, 2**31 - 1)
MODULE = "layer.0"


def changed(X, change, seed):
    rng = np.random.RandomState(seed)
    return AdapterSet(
        Adapter({m: LoraFactors(*change(f, rng)) for m, f in adapter.items()}, name=adapter.name) for adapter in X
    )


def permuted(f, rng):
    order = torch.from_numpy(rng.permutation(f.rank))
    return f.A[order], f.B[:, order]


def flipped(f, rng):
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], f.rank))
    return sign[:, None] * f.A, f.B * sign


def rescaled(f, rng):
    scale = torch.from_numpy(rng.uniform(0.3, 3, f.rank))
    return scale[:, None] * f.A, f.B / scale


def mixed(f, rng):
    g = torch.from_numpy(np.linalg.qr(rng.standard_normal((f.rank, f.rank)))[0] * rng.uniform(0.3, 3, f.rank))
    return g @ f.A, f.B @ torch.linalg.inv(g)


GAUGES = {"permutation": permuted, "sign": flipped, "rescaling": rescaled, "GL(r)": mixed}


def difference(merger, X, Y):
    """Largest entry of the difference between two merges, beside the largest entry of the first."""
    x, y = (clone(merger).fit(Z).merged_ for Z in (X, Y))
    return max(float((x[m].delta() - y[m].delta()).abs().max() / x[m].delta().abs().max()) for m in x)


def noisy_copies(n=4, rank=5, spread=0.02, **options):
    """Copies of one adapter, each a little off, their MSUs in other orders; and which MSU each is."""
    (base,) = make_adapters(1, ranks=rank, n_modules=1, dtype=torch.float64, random_state=0, **options)
    rng, orders, adapters = np.random.RandomState(1), [], []
    for i in range(n):
        order = rng.permutation(rank)
        f = base[MODULE]
        a, b = (x + spread * torch.from_numpy(rng.standard_normal(x.shape)) for x in f)
        adapters.append(Adapter({MODULE: LoraFactors(a[order], b[:, order])}, name=f"copy{i}"))
        orders.append(order)
    return AdapterSet(adapters), np.concatenate(orders)


@pytest.mark.parametrize("align", [None, "balance"])
@given(X=adapter_sets(), seed=SEED, k=st.integers(1, 6), norm=st.sampled_from([None, "inf"]))
def test_flipping_any_msus_changes_nothing(align, X, seed, k, norm):
    k = min(k, max(sum(i.rank for i in X.infos(m) if i) for m in X.module_names))
    merger = LegoMerger(k, align=align, metric="sign_invariant", norm=norm, n_init=2, random_state=0)
    merged, again = clone(merger).fit(X), clone(merger).fit(changed(X, flipped, seed))
    for module in X.module_names:
        torch.testing.assert_close(again.merged_[module].delta(), merged.merged_[module].delta(), rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(again.labels_[module], merged.labels_[module])


@given(X=adapter_sets(), seed=SEED)
def test_flips_on_pruning(X, seed):
    pruner = LegoPruner(k=1, metric="sign_invariant", n_init=2, random_state=0)
    for x, y in zip(pruner.transform(changed(X, flipped, seed)), pruner.transform(X), strict=True):
        for module in y:
            torch.testing.assert_close(x[module].delta(), y[module].delta(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@pytest.mark.parametrize("align", [None, "balance", "svd"])
def test_invariances_are_neither_more_nor_less_than_claimed(align, metric):
    X = AdapterSet(make_adapters(ranks=(4, 5, 5), dtype=torch.float64, random_state=0))
    merger = LegoMerger(k=4, align=align, metric=metric, random_state=0, n_init=3)
    assert LegoPruner(align=align, metric=metric).invariances == merger.invariances
    for gauge, change in GAUGES.items():
        moved = max(difference(merger, X, changed(X, change, seed)) for seed in range(3))
        if gauge in merger.invariances:
            assert moved < 1e-6, gauge
        else:
            assert moved > 1e-2, gauge


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@given(X=adapter_sets(max_rank=6), seed=SEED, gauge=st.sampled_from(sorted(GAUGES)))
def test_the_updates_alone_decide_under_svd(metric, X, seed, gauge):
    """One adapter's singular units are at right angles, equally far apart as directions: round-off may not choose."""
    Y = changed(X, GAUGES[gauge], seed)
    k = max(1, X[0].ranks[0] // 2)
    pruner = LegoPruner(k, align="svd", metric=metric, n_init=2, random_state=0)
    for x, y in zip(pruner.transform(X), pruner.transform(Y), strict=True):
        for module in x:
            torch.testing.assert_close(x[module].delta(), y[module].delta(), rtol=1e-6, atol=1e-6)
    merger = LegoMerger(k, align="svd", metric=metric, n_init=2, random_state=0)
    assert difference(merger, X, Y) < 1e-6


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@given(X=adapter_sets(min_adapters=2), k=st.integers(1, 6), weighted=st.booleans())
def test_msus_of_the_merge_are_means_of_the_units_themselves(metric, X, k, weighted):
    k = min(k, max(sum(i.rank for i in X.infos(m) if i) for m in X.module_names))
    weights = np.arange(1, len(X) + 1) if weighted else np.ones(len(X))
    merger = LegoMerger(k, norm=None, output_scale=None, metric=metric, weights=weights, n_init=2, random_state=0).fit(
        X
    )
    for module, merged in merger.merged_.items():
        units, share = X.msus(module).numpy(), (weights / weights.sum())[merger.owners_[module]]
        inertia = 0.0
        for c, half in enumerate(merged.A):
            mine = merger.labels_[module] == c
            centroid = np.concatenate([half.numpy(), merged.B[:, c].numpy()])
            if metric == "sign_invariant":  # in the sign in which each is nearer
                signs = np.where(units[mine] @ centroid < 0, -1.0, 1.0)
            else:
                signs = np.ones(mine.sum())
            members = signs[:, None] * units[mine]
            np.testing.assert_allclose(np.average(members, axis=0, weights=share[mine]), centroid, atol=1e-9)
            inertia += (share[mine] @ (members - centroid) ** 2).sum()
        assert merger.inertia_[module] == pytest.approx(inertia, abs=1e-9)


def test_sign_invariant_is_the_plain_merge_where_signs_agree():
    X, _ = noisy_copies()
    plain = LegoMerger(k=5, random_state=0)
    assert difference(plain, X, X) == 0
    invariant = clone(plain).set_params(metric="sign_invariant")
    x, y = (m.fit(X).merged_[MODULE].delta() for m in (plain, invariant))
    torch.testing.assert_close(x, y)


def test_flipped_copies_merge_to_the_adapter():
    """What raw k-means cannot do: units of opposite signs cancel, or fill clusters of their own."""
    X, truth = noisy_copies()
    Y = changed(X, flipped, 3)
    original = X[0][MODULE].delta()
    errors = {}
    for metric in ("euclidean", "sign_invariant"):
        merger = LegoMerger(k=5, metric=metric, random_state=0).fit(Y)
        errors[metric] = float((merger.merged_[MODULE].delta() - original).norm() / original.norm())
    assert errors["sign_invariant"] < 0.1 < 0.5 < errors["euclidean"]
    assert len(set(zip(merger.labels_[MODULE], truth, strict=True))) == 5


@given(X=adapter_sets(), seed=SEED)
def test_cosine_labels_do_not_depend_on_the_length_of_units(X, seed):
    def longer(f, rng):
        length = torch.from_numpy(rng.uniform(0.2, 5, f.rank))
        return length[:, None] * f.A, f.B * length

    merger = LegoMerger(max(1, X[0].ranks[0] // 2), metric="cosine", n_init=2, random_state=0)
    before, after = clone(merger).fit(X), clone(merger).fit(changed(X, longer, seed))
    for module in X.module_names:
        pairs = set(zip(before.labels_[module], after.labels_[module], strict=True))
        assert len(pairs) == len(set(before.labels_[module]))  # clusters may be numbered otherwise


CLUSTERERS = [
    (AgglomerativeClustering(), 5),
    (KMeans(), 5),
    (AgglomerativeClustering(n_clusters=None, distance_threshold=2.0), None),
    (DBSCAN(eps=1.5, min_samples=2), None),
    (HDBSCAN(min_cluster_size=3, copy=True), None),
]


@pytest.mark.parametrize("metric", ["euclidean", "sign_invariant"])
@pytest.mark.parametrize(("clusterer", "k"), CLUSTERERS, ids=str)
def test_clusterers_find_what_copies_share(clusterer, k, metric):
    X, truth = noisy_copies()
    merger = LegoMerger(k, metric=metric, clusterer=clusterer, random_state=0).fit(X)
    assert merger.merged_[MODULE].rank == 5
    assert len(set(zip(merger.labels_[MODULE], truth, strict=True))) == 5
    assert merger.composition(MODULE).tolist() == [[1, 1, 1, 1]] * 5
    original = X[0][MODULE].delta()
    assert float((merger.merged_[MODULE].delta() - original).norm() / original.norm()) < 0.1


def test_noise_units_are_kept_as_they_are():
    X, _ = noisy_copies()
    stranger = make_adapters(1, ranks=2, n_modules=1, dtype=torch.float64, random_state=99)[0].renamed("stranger")
    options = {"clusterer": DBSCAN(eps=1.5, min_samples=2), "norm": None, "output_scale": None}
    merger = LegoMerger(**options).fit([*X, stranger])
    assert merger.merged_[MODULE].rank == 7
    counts = merger.composition(MODULE)
    alone = [c for c in range(7) if counts[c].tolist() == [0, 0, 0, 0, 1]]
    assert len(alone) == 2
    kept = merger.merged_[MODULE].B[:, alone] @ merger.merged_[MODULE].A[alone]
    torch.testing.assert_close(kept, stranger[MODULE].delta())


def test_clusterers_on_pruning():
    X = make_adapters(ranks=(6, 8), dtype=torch.float64, random_state=0)
    out = LegoPruner(k=3, clusterer=AgglomerativeClustering(), random_state=0).fit_transform(X)
    assert [adapter.ranks for adapter in out] == [(3,), (3,)]
    apart = LegoPruner(k=3, clusterer=DBSCAN(eps=1e-9), output_scale=None).fit_transform(X)
    for before, after in zip(X, apart, strict=True):  # all units are noise: nothing is pruned
        torch.testing.assert_close(after[MODULE].delta(), before[MODULE].delta())


def test_clusterers_are_parameters():
    X = make_adapters(4, ranks=4, dtype=torch.float64, random_state=0)
    clusterer = KMeans(n_init=1)
    merger = LegoMerger(k=3, clusterer=clusterer, random_state=0).set_params(clusterer__max_iter=50).fit(X)
    assert clusterer.random_state is None
    assert not hasattr(clusterer, "labels_")
    assert merger.n_iter_[MODULE] >= 1
    assert not hasattr(LegoMerger(k=3, clusterer=AgglomerativeClustering()).fit(X), "n_iter_")
    linkages = {"clusterer__linkage": ["ward", "average"], "k": [2, 4]}
    search = GridSearchCV(LegoMerger(clusterer=AgglomerativeClustering()), linkages, cv=2).fit(AdapterSet(X))
    assert set(search.best_params_) == set(linkages)
    for bad in ("kmeans", KMeans, object()):
        with pytest.raises(ValueError, match="'clusterer' parameter"):
            LegoMerger(clusterer=bad).fit(X)
    with pytest.raises(ValueError, match="'metric' parameter"):
        LegoMerger(metric="manhattan").fit(X)


@given(X=adapter_sets(), k=st.integers(1, 5), drop=st.booleans())
def test_composition_counts_every_msu_once(X, k, drop):
    k = min(k, max(sum(i.rank for i in X.infos(m) if i) for m in X.module_names))
    weights = np.ones(len(X))
    if drop and len(X) > 1:
        weights[0] = 0
    merger = LegoMerger(k, weights=weights, n_init=1, random_state=0).fit(X)
    for module, merged in merger.merged_.items():
        counts = merger.composition(module)
        infos = X.infos(module)
        ranks = [info.rank * int(w > 0) if info else 0 for info, w in zip(infos, weights, strict=True)]
        assert counts.shape == (merged.rank, len(X))
        assert counts.sum(axis=0).tolist() == ranks
        for c in range(merged.rank):
            for i in range(len(X)):
                mine = (merger.labels_[module] == c) & (merger.owners_[module] == i)
                assert counts[c, i] == mine.sum()
        assert len(merger.owners_[module]) == len(X.msus(module))


def test_composition_of_an_unknown_module():
    with pytest.raises(KeyError):
        LegoMerger(k=2).fit(make_adapters(2, random_state=0)).composition("nowhere")


def test_after_preparation():
    X = AdapterSet(make_adapters(ranks=(4, 6, 6), dtype=torch.float64, random_state=0))
    merger = LegoMerger(k=4, metric="sign_invariant", random_state=0)
    (merged,) = make_pipeline(NormBalancer(), PicoDamper(), clone(merger)).fit_transform(X)
    expected = merger.fit(PicoDamper().transform(NormBalancer().transform(X))).merged_
    torch.testing.assert_close(merged[MODULE].delta(), expected[MODULE].delta())
    steps = [operation.split("(")[0] for operation in merged.provenance.operations]
    assert steps == ["NormBalancer", "PicoDamper", "LegoMerger"]


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
def test_ranks_beyond_what_a_narrow_module_can_have(metric):
    """Of a 3-class head's update of rank 5, two units are zero once it is brought to its SVD; labels count all."""
    narrow = AdapterSet(make_adapters(2, ranks=(5, 4), d_in=6, d_out=3, random_state=0))
    merger = LegoMerger(3, align="svd", metric=metric, n_init=3, random_state=0).fit(narrow)
    assert merger.labels_[MODULE].shape == (9,)
    assert (merger.labels_[MODULE] >= 0).all()
    assert norm_decay(merger, narrow).sizes[MODULE].sum() == 9
    same = clone(merger).fit(changed(narrow, mixed, 1)).merged_
    torch.testing.assert_close(same[MODULE].delta(), merger.merged_[MODULE].delta(), rtol=1e-4, atol=1e-5)
    (pruned,) = LegoPruner(2, align="svd", metric=metric, random_state=0).fit_transform(narrow[:1])
    assert pruned[MODULE].rank == 2


def mixed(f, rng):
    mixing = torch.from_numpy(np.linalg.qr(rng.normal(size=(f.rank, f.rank)))[0] * rng.uniform(0.5, 2)).to(f.A)
    return mixing @ f.A, f.B @ torch.linalg.inv(mixing)
