"""LEGO merges alike on every backend: one pass or two, one module or many."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering

from lorakit import Adapter, AdapterSet, LegoMerger, load_adapters
from lorakit.cluster import _backends
from lorakit.testing import adapter_sets, make_adapters


def same_merge(ours, theirs):
    assert list(ours.merged_) == list(theirs.merged_)
    for module in theirs.merged_:
        np.testing.assert_array_equal(ours.labels_[module], theirs.labels_[module])
        np.testing.assert_array_equal(ours.owners_[module], theirs.owners_[module])
        assert ours.inertia_[module] == theirs.inertia_[module]
        assert ours.n_iter_[module] == theirs.n_iter_[module]
        for a, b in zip(ours.merged_[module], theirs.merged_[module], strict=True):
            assert torch.equal(a, b), module


OWN = ["numpy", "torch"]
OPTIONS = [
    {},
    {"k": 16},
    {"k": 12, "align": "svd", "weights": [1, 2, 1, 1, 3, 0, 1]},
    {"k": 16, "metric": "cosine"},
    {"k": 10, "metric": "sign_invariant", "norm": "l2"},
    {"k": 0.5, "n_init": 2},
    {"k": 24, "max_iter": 1},
    {"k": 16, "init": "ward"},
    {"k": 10, "init": "ward", "metric": "sign_invariant", "weights": [1, 2, 1, 1, 3, 0, 1]},
]


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_real_adapters(real_adapter_paths, options, backend):
    X = load_adapters(list(real_adapter_paths.values()))
    merger = LegoMerger(**{"n_init": 4, "random_state": 0, **options})
    ours, theirs = (clone(merger).set_params(backend=b).fit(X) for b in (backend, "sklearn"))
    same_merge(ours, theirs)
    # Ward's partition of these is one that k-means leaves as it is
    assert max(theirs.n_iter_.values()) > 1 or merger.max_iter == 1 or merger.init == "ward"
    assert (ours.backend_, theirs.backend_) == (backend, "sklearn")


@pytest.mark.parametrize("backend", OWN)
@given(X=adapter_sets(), k=st.integers(1, 5), align=st.sampled_from([None, "svd"]))
def test_random_adapters(backend, X, k, align):
    k = min(k, max(sum(i.rank for i in X.infos(m) if i) for m in X.module_names))
    merger = LegoMerger(k, align=align, n_init=2, random_state=0)
    ours, theirs = (clone(merger).set_params(backend=b).fit(X) for b in (backend, "sklearn"))
    same_merge(ours, theirs)


@given(X=adapter_sets(min_adapters=2, missing_modules=False), drop=st.booleans())
def test_other_modules_never_matter(X, drop):
    weights = {name: float(i > 0 or not drop) for i, name in enumerate(X.names)}
    merger = LegoMerger(weights=weights, backend="torch", n_init=2, random_state=0)
    together = clone(merger).fit(X)
    for module in X.module_names:
        alone = clone(merger).fit([adapter.select([module]) for adapter in X])
        np.testing.assert_array_equal(alone.labels_[module], together.labels_[module])
        for a, b in zip(alone.merged_[module], together.merged_[module], strict=True):
            assert torch.equal(a, b)


def test_modules_of_one_shape_are_solved_together(monkeypatch):
    shapes = []
    lloyd = _backends.lloyd_torch

    def spy(points, *args, **options):
        shapes.append(tuple(points.shape))
        return lloyd(points, *args, **options)

    monkeypatch.setattr(_backends, "lloyd_torch", spy)
    X = AdapterSet(make_adapters(ranks=(4, 8), n_modules=5, random_state=0))
    LegoMerger(k=6, n_init=3, backend="torch", random_state=0).fit(X)
    assert shapes == [(15, 12, 12)]
    shapes.clear()
    lacking = AdapterSet([X[0].select(["layer.0", "layer.1"]), X[1]])
    LegoMerger(k=6, n_init=3, backend="torch", random_state=0).fit(lacking)
    assert sorted(shapes) == [(6, 12, 12), (9, 8, 8)]


def test_equal_units_and_nothing_to_cluster():
    X = make_adapters(ranks=(4, 4), n_modules=3, dtype=torch.float64, random_state=0)
    copies = [X[0], X[0].renamed("again")]
    *ours, theirs = (LegoMerger(k=4, backend=backend, random_state=0).fit(copies) for backend in (*OWN, "sklearn"))
    for merger in ours:
        same_merge(merger, theirs)
    torch.testing.assert_close(theirs.merged_["layer.1"].delta(), X[0]["layer.1"].delta())
    absent = Adapter({m: f for m, f in X[1].items() if m != "layer.2"}, name="absent")
    weightless = [
        LegoMerger(k=2, weights=[0, 1], backend=b, random_state=0).fit([X[0], absent]) for b in (*OWN, "sklearn")
    ]
    for merger in weightless[:2]:
        same_merge(merger, weightless[2])
    assert float(weightless[0].merged_["layer.2"].delta().norm()) == 0


def test_a_shared_random_state_moves_on_alike():
    X = make_adapters(ranks=(6, 8), random_state=0)
    fits = {}
    for backend in ("torch", "sklearn"):
        shared = np.random.RandomState(3)
        fits[backend] = [LegoMerger(k=5, n_init=1, backend=backend, random_state=shared).fit(X) for _ in range(3)]
    for ours, theirs in zip(fits["torch"], fits["sklearn"], strict=True):
        same_merge(ours, theirs)
    assert any(not np.array_equal(x.labels_["layer.0"], fits["torch"][0].labels_["layer.0"]) for x in fits["torch"])


@pytest.mark.slow
def test_engines_of_joblib():
    X = AdapterSet(make_adapters(ranks=(6, 8), n_modules=4, random_state=0))
    merger = LegoMerger(k=5, backend="torch", random_state=0)
    plain = clone(merger).fit(X)
    same_merge(clone(merger).set_params(n_jobs=2).fit(X), plain)
    with joblib.parallel_config("loky", n_jobs=2):
        same_merge(clone(merger).fit(X), plain)


def test_nothing_of_the_first_pass_stays():
    X = make_adapters(ranks=(6, 8), random_state=0)
    merger = LegoMerger(k=5, backend="torch", random_state=0).fit(X)
    assert not {"_chosen", "_found", "_module_found"} & set(vars(merger))
    again = pickle.loads(pickle.dumps(merger))
    assert again.backend_ == "torch"
    same_merge(again, merger)
    same_merge(merger.fit(X), again)


def test_a_clusterer_has_no_backend():
    X = make_adapters(ranks=(6, 8), random_state=0)
    merger = LegoMerger(k=5, clusterer=AgglomerativeClustering(), backend="cuml").fit(X)
    assert merger.backend_ is None


def test_no_module_is_read_in_vain(monkeypatch):
    X = AdapterSet(make_adapters(ranks=(6, 8), random_state=0))
    monkeypatch.setattr(AdapterSet, "factors", lambda *args: pytest.fail("read"))
    with pytest.raises(ValueError, match="NVIDIA GPUs"):
        LegoMerger(k=5, backend="cuml").fit(X)
    with pytest.raises(ValueError, match="'backend' parameter"):
        LegoMerger(k=5, backend="jax").fit(X)
