"""One pass over the modules for many ranks: the same results, less work, clear refusals."""

from contextlib import nullcontext

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from lorakit import (
    Adapter,
    AdapterSet,
    CtMMerger,
    DareMerger,
    IsoMerger,
    LegoMerger,
    RankBudget,
    SVDMerger,
    SVDPruner,
    TaskArithmeticMerger,
    TiesMerger,
    TSVMerger,
    load_adapters,
    rank_path,
    results_on_disk,
    save_adapter,
)
from lorakit.metrics import relative_error
from lorakit.testing import adapter_sets, make_adapters

MERGERS = [
    SVDMerger(),
    TSVMerger(),
    IsoMerger(),
    CtMMerger(rule="iso"),
    TaskArithmeticMerger(),
    TiesMerger(space="core"),
    TiesMerger(space="knots"),
    TiesMerger(),
    DareMerger(svd_solver="randomized", random_state=0),
    LegoMerger(random_state=0),
    LegoMerger(random_state=0, metric="sign_invariant"),
    LegoMerger(random_state=0, backend="torch"),
]


def same(merger, X, ks, path=None):
    """Each result is that of a fit of its own, and so are the labels."""
    for k, swept in (path or rank_path(merger, X, ks)).items():
        alone = clone(merger).set_params(k=k).fit(X)
        assert relative_error(swept.merged_, alone.merged_) < 1e-6
        assert swept.merged_.ranks == alone.merged_.ranks
        for module, labels in getattr(alone, "labels_", {}).items():
            assert np.array_equal(swept.labels_[module], labels)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
@pytest.mark.parametrize("merger", MERGERS, ids=str)
@given(X=adapter_sets(min_adapters=2, max_adapters=3, content=("random", "rank_deficient")), data=st.data())
def test_the_results_are_those_of_separate_fits(merger, X, data):
    limit = max(sum(i.rank for i in X.infos(module) if i) for module in X.module_names)
    ks = data.draw(st.lists(st.integers(1, limit), min_size=1, max_size=3, unique=True))
    same(merger, X, ks)


@pytest.fixture
def adapters():
    return AdapterSet(make_adapters(ranks=(3, 4, 5), random_state=0, dtype=torch.float64))


@pytest.mark.parametrize("merger", MERGERS, ids=str)
@pytest.mark.parametrize("options", [{"scale": "match"}, {"scale": "match", "scale_scope": "model"}, {"scale": 0.3}])
def test_scales(adapters, merger, options):
    same(clone(merger).set_params(**options), adapters, [2, 6, None])


@pytest.mark.parametrize("merger", [SVDMerger(), TiesMerger(), LegoMerger(random_state=0)], ids=str)
def test_ranks_by_singular_values(adapters, merger):
    ks = [0.5, 3, "auto", RankBudget(mean=4), None, 0.9]
    path = rank_path(merger, adapters, ks)
    assert list(path) == ks
    same(merger, adapters, ks, path)


def test_each_file_is_read_once(adapters, tmp_path, monkeypatch):
    paths = [save_adapter(adapter, tmp_path / adapter.name) for adapter in adapters]
    X = load_adapters(paths)
    read = []
    factors = AdapterSet.factors
    monkeypatch.setattr(AdapterSet, "factors", lambda self, module: read.append(module) or factors(self, module))
    rank_path(SVDMerger(), X, [1, 2, 4, 8])
    assert sorted(read) == sorted(X.module_names)


@pytest.mark.parametrize("merger", [SVDMerger(), TSVMerger(), TiesMerger(space="core"), TiesMerger()], ids=str)
def test_nested_results_cost_one_decomposition(adapters, merger, monkeypatch):
    counts = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: counts.append(1) or svd(*args, **kwargs))
    rank_path(merger, adapters, [8])
    one = len(counts)
    rank_path(merger, adapters, [1, 2, 3, 4, 6, 8])
    assert len(counts) == 2 * one


def test_units_are_compared_once(adapters, monkeypatch):
    import lorakit.cluster.units as units

    counts = []
    pool_units = units.pool_units
    monkeypatch.setattr(units, "pool_units", lambda *args: counts.append(1) or pool_units(*args))
    rank_path(LegoMerger(random_state=0), adapters, [2, 4, 6])
    assert len(counts) == len(adapters.module_names)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("scope", ["module", "model"])
def test_on_disk(adapters, tmp_path, on_disk, scope):
    merger = SVDMerger(scale="match", scale_scope=scope)
    with results_on_disk(tmp_path) if on_disk else nullcontext():
        path = rank_path(merger, adapters, [2, 5])
    same(merger, adapters, [2, 5], path)


def test_engines_agree(adapters):
    plain = rank_path(LegoMerger(random_state=0), adapters, [2, 5])
    with joblib.parallel_config("threading", n_jobs=2):
        threads = rank_path(LegoMerger(random_state=0), adapters, [2, 5])
    for k, fitted in plain.items():
        for module, factors in fitted.merged_.items():
            assert torch.equal(factors.A, threads[k].merged_[module].A)


def test_results_hold_no_more_than_their_rank(adapters):
    for k, fitted in rank_path(SVDMerger(), adapters, [1, 7]).items():
        for a, _ in fitted.merged_.values():
            assert a.untyped_storage().nbytes() == k * a.shape[1] * a.element_size()


def test_the_merger_is_left_alone(adapters):
    merger = SVDMerger(k=3).fit(adapters)
    before = merger.merged_
    path = rank_path(merger, adapters, [1, 2])
    assert merger.merged_ is before
    assert merger.k == 3
    assert [fitted.k for fitted in path.values()] == [1, 2]
    assert "k=2" in path[2].merged_.provenance.operations[-1]


def by_rank(merged):
    return [(factors.scaled(1 / factors.rank), learned) for factors, learned in merged]


class Reweighted(SVDMerger):
    """Overrides the hook of a class that shares work between ranks."""

    def _merge_module_path(self, updates, weights, ks, rng):
        return by_rank(super()._merge_module_path(updates, weights, ks, rng))


class ReweightedTwice(Reweighted):
    """Overrides an override."""

    def _merge_module_path(self, updates, weights, ks, rng):
        return by_rank(super()._merge_module_path(updates, weights, ks, rng))


class ReweightedTies(TiesMerger):
    """Overrides a hook that its parent inherits."""

    def _merge_module_path(self, updates, weights, ks, rng):
        return by_rank(super()._merge_module_path(updates, weights, ks, rng))


@pytest.mark.parametrize(
    ("subclass", "parent", "power"),
    [(Reweighted, SVDMerger, 1), (ReweightedTwice, SVDMerger, 2), (ReweightedTies, TiesMerger, 1)],
)
def test_a_subclass_that_overrides_the_merge(adapters, subclass, parent, power):
    same(subclass(), adapters, [2, 4])
    for k in (2, None):
        merged = parent(k=k).fit(adapters).merged_
        wanted = Adapter({module: factors.scaled(factors.rank**-power) for module, factors in merged.items()})
        assert relative_error(subclass(k=k).fit(adapters).merged_, wanted) < 1e-12


@pytest.mark.parametrize(
    ("merger", "ks", "error", "match"),
    [
        (make_pipeline(SVDPruner(), SVDMerger()), [2], TypeError, "its last step"),
        (SVDPruner(), [2], TypeError, "got SVDPruner"),
        (SVDMerger(), [], ValueError, "at least one rank"),
        (SVDMerger(), [2, 3, 2], ValueError, r"each once; got \[2, 3, 2\]"),
        (SVDMerger(), [2, 0], ValueError, "'k' parameter"),
        (SVDMerger(), [2, 1000], ValueError, "k=1000 is above 12"),
        (SVDMerger(scale="x"), [2], ValueError, "'scale' parameter"),
    ],
)
def test_refusals(adapters, merger, ks, error, match):
    with pytest.raises(error, match=match):
        rank_path(merger, adapters, ks)
