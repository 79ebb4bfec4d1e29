"""What the methods promise of the update B A, as properties over random adapters."""

from __future__ import annotations

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
    AverageMerger,
    ConcatMerger,
    LegoMerger,
    LegoPruner,
    LoraFactors,
    SVDMerger,
    SVDPruner,
    TiesMerger,
)
from lorakit.base import GAUGES
from lorakit.metrics import relative_error
from lorakit.testing import Gauge, adapter_sets, gauges, make_adapters

SEED = st.integers(0, 2**31 - 1)
LEGO = LegoMerger(random_state=0, n_init=2)
ORDER_FREE = [
    LEGO,
    clone(LEGO).set_params(align="balance"),
    clone(LEGO).set_params(align="svd"),
    SVDMerger(),
    ConcatMerger(),
    TiesMerger(density=0.5),
]


def assert_same(x: Adapter, y: Adapter, tolerance: float = 1e-6) -> None:
    assert relative_error(x, y) < tolerance


def dense(adapter: Adapter, module: str) -> torch.Tensor:
    return adapter[module].delta()


def ranks_at(X: AdapterSet, module: str) -> list[int]:
    return [info.rank for info in X.infos(module) if info is not None]


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
@pytest.mark.parametrize("merger", ORDER_FREE, ids=str)
@given(X=adapter_sets(), gauge=gauges("permutation"))
def test_permuting_msus_changes_nothing(merger, X, gauge):
    """Property 2.1 of LoRA-LEGO, also across pooling, clustering and merging."""
    assert_same(clone(merger).fit(gauge(X)).merged_, clone(merger).fit(X).merged_)


@pytest.mark.parametrize("merger", [AverageMerger(), TiesMerger(space="factors", density=0.5)], ids=str)
def test_direct_merges_do_depend_on_the_order_of_msus(merger):
    """The misalignment that the paper warns of; without it the property above would say little."""
    X = AdapterSet(make_adapters(ranks=(4, 4), dtype=torch.float64, random_state=0))
    assert relative_error(clone(merger).fit(Gauge("permutation")(X)).merged_, clone(merger).fit(X).merged_) > 0.1


@given(X=adapter_sets(min_adapters=2), seed=SEED)
def test_shuffled_adapters_give_the_same_lego(X, seed):
    order = np.random.RandomState(seed).permutation(len(X))
    assert_same(clone(LEGO).fit(X[order]).merged_, clone(LEGO).fit(X).merged_)


@pytest.mark.parametrize(
    "merger", [clone(LEGO).set_params(align="svd"), SVDMerger(), ConcatMerger(), TiesMerger(density=0.5)], ids=str
)
@pytest.mark.parametrize("kind", GAUGES)
@given(X=adapter_sets(min_adapters=2), data=st.data())
def test_no_change_of_gauge_matters(merger, kind, X, data):
    gauge = data.draw(gauges(kind))
    assert_same(clone(merger).fit(gauge(X)).merged_, clone(merger).fit(X).merged_, 1e-5)


@given(X=adapter_sets(min_adapters=2), gauge=gauges("rescaling"))
def test_balancing_removes_rescaling(X, gauge):
    merger = clone(LEGO).set_params(align="balance")
    assert_same(clone(merger).fit(gauge(X)).merged_, clone(merger).fit(X).merged_)


@given(X=adapter_sets(), seed=SEED)
def test_concatenation_gives_the_mean_of_the_outputs(X, seed):
    """Property 2.2 of LoRA-LEGO, divided by the number of adapters: the ensemble."""
    merged = ConcatMerger().fit(X).merged_
    for module in X.module_names:
        assert merged[module].rank == sum(ranks_at(X, module))
        x = torch.randn(merged[module].d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        outputs = sum(f.B @ (f.A @ x) for f in X.factors(module)) / len(X)
        torch.testing.assert_close(merged[module].B @ (merged[module].A @ x), outputs)


@given(
    X=adapter_sets(max_adapters=1, missing_modules=False),
    copies=st.integers(1, 4),
    align=st.sampled_from([None, "svd"]),
)
def test_copies_of_an_adapter_merge_to_it(X, copies, align):
    rank = X[0].ranks[0]
    same = AdapterSet([X[0]] * copies)
    for k in (rank, None):
        merger = LegoMerger(k=k, align=align, random_state=0, n_init=2)
        assert_same(merger.fit(same).merged_, X[0])
    assert_same(SVDMerger().fit(same).merged_, X[0])
    assert_same(TiesMerger(density=1.0).fit(same).merged_, X[0])
    assert_same(AverageMerger().fit(same).merged_, X[0])


@given(X=adapter_sets(), reweighted=st.booleans())
def test_lego_with_a_cluster_per_msu_is_the_sum(X, reweighted):
    """k = R: the sum of the updates, times sqrt(mean rank / R) under output reweighting."""
    totals = {module: sum(ranks_at(X, module)) for module in X.module_names}
    k = max(totals.values())
    options = {} if reweighted else {"norm": None, "output_scale": None}
    merged = LegoMerger(k=k, random_state=0, n_init=1, **options).fit(X).merged_
    for module, total in totals.items():
        factor = (np.mean(ranks_at(X, module)) / total) ** 0.5 if reweighted else 1.0
        expected = factor * sum(f.delta() for f in X.factors(module))
        torch.testing.assert_close(dense(merged, module), expected)


@given(X=adapter_sets(min_adapters=2), data=st.data())
def test_lego_labels_describe_the_pool(X, data):
    k = data.draw(st.integers(1, max(sum(ranks_at(X, module)) for module in X.module_names)))
    merger = clone(LEGO).set_params(k=k, norm=None, output_scale=None).fit(X)
    for module in X.module_names:
        units, labels = X.msus(module), merger.labels_[module]
        assert len(labels) == len(units)
        assert sorted(set(labels)) == list(range(min(k, len(units))))
        d_in = merger.merged_[module].d_in
        for cluster in range(labels.max() + 1):
            centroid = units[torch.from_numpy(labels == cluster)].mean(dim=0)
            torch.testing.assert_close(merger.merged_[module].A[cluster], centroid[:d_in])
            torch.testing.assert_close(merger.merged_[module].B[:, cluster], centroid[d_in:])


@given(X=adapter_sets(min_adapters=2), norm=st.sampled_from(["inf", "l2"]))
def test_parameter_reweighting_restores_the_mean_norm(X, norm):
    merger = clone(LEGO).set_params(norm=norm, output_scale=None).fit(X)
    order = {"inf": torch.inf, "l2": 2}[norm]
    for module in X.module_names:
        units, labels = X.msus(module), torch.from_numpy(merger.labels_[module])
        merged = torch.cat([merger.merged_[module].A, merger.merged_[module].B.T], dim=1)
        for cluster, unit in enumerate(merged):
            expected = units[labels == cluster].norm(p=order, dim=1).mean()
            torch.testing.assert_close(unit.norm(p=order), expected)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
@given(X=adapter_sets(min_adapters=2, missing_modules=False), data=st.data())
def test_svd_merge_is_optimal_and_knows_its_error(X, data):
    """Eckart-Young on the mean update; no other method of that rank is nearer."""
    total = sum(ranks_at(X, "layer.0"))
    k = data.draw(st.integers(1, total))
    merger = SVDMerger(k=k).fit(X)
    mean = sum(f.delta() for f in X.factors("layer.0")) / len(X)
    error = (dense(merger.merged_, "layer.0") - mean).norm()
    torch.testing.assert_close(error.item(), torch.linalg.svdvals(mean)[k:].norm().item(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(error.item(), merger.truncation_error_["layer.0"], rtol=1e-6, atol=1e-8)
    for other in (clone(LEGO).set_params(k=k), TiesMerger(k=k)):
        assert (dense(other.fit(X).merged_, "layer.0") - mean).norm() >= error - 1e-9


@given(X=adapter_sets(min_adapters=2, equal_ranks=True))
def test_truncation_errs_less_than_direct_merging(X):
    """Equation 7 of "LoRA Merging with SVD", for the mean: ||SVD error|| <= ||cross terms||."""
    svd, direct = SVDMerger().fit(X).merged_, AverageMerger().fit(X).merged_
    for module in X.module_names:
        mean = sum(f.delta() for f in X.factors(module)) / len(X)
        assert (dense(svd, module) - mean).norm() <= (dense(direct, module) - mean).norm() + 1e-9


@given(X=adapter_sets(min_adapters=2, equal_ranks=True, missing_modules=False))
def test_direct_merge_is_the_sum_plus_cross_terms(X):
    """Equation 3 of "LoRA Merging with SVD"."""
    factors = X.factors("layer.0")
    expected = sum(x.B @ y.A for x in factors for y in factors) / len(X) ** 2
    torch.testing.assert_close(dense(AverageMerger().fit(X).merged_, "layer.0"), expected)


@given(X=adapter_sets(), data=st.data())
def test_svd_pruning_is_optimal(X, data):
    k = data.draw(st.integers(1, max(rank for adapter in X for rank in adapter.ranks)))
    svd = SVDPruner(k=k).fit_transform(X)
    lego = LegoPruner(k=k, random_state=0, n_init=2).fit_transform(X)
    for before, by_svd, by_lego in zip(X, svd, lego, strict=True):
        for module in before:
            assert by_svd[module].rank == by_lego[module].rank == min(k, before[module].rank)
            error = (dense(by_svd, module) - dense(before, module)).norm()
            expected = torch.linalg.svdvals(dense(before, module))[k:].norm()
            torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-8)
            assert (dense(by_lego, module) - dense(before, module)).norm() >= error - 1e-9


@given(X=adapter_sets(min_adapters=2))
def test_score_is_minus_the_relative_error_of_the_mean(X):
    merger = clone(LEGO).fit(X)
    flat = torch.cat([dense(merger.merged_, m).flatten() for m in X.module_names])
    mean = torch.cat([(sum(f.delta() for f in X.factors(m)) / len(X)).flatten() for m in X.module_names])
    assert merger.score(X) == pytest.approx(-float((flat - mean).norm() / mean.norm()), rel=1e-6)
    assert ConcatMerger().fit(X).score(X) == pytest.approx(0, abs=1e-6)


@given(X=adapter_sets(min_adapters=2))
def test_prune_then_merge_in_a_pipeline(X):
    (merged,) = make_pipeline(SVDPruner(k=1), LegoMerger(k=1, random_state=0)).fit_transform(X)
    expected = LegoMerger(k=1, random_state=0).fit(SVDPruner(k=1).fit_transform(X)).merged_
    assert_same(merged, expected)
    assert [op.split("(")[0] for op in merged.provenance.operations] == ["SVDPruner", "LegoMerger"]


def test_negative_weights_subtract():
    X = AdapterSet(make_adapters(ranks=(3, 5), dtype=torch.float64, random_state=0))
    merged = ConcatMerger(weights=[1, -1]).fit(X).merged_
    expected = (X[0]["layer.0"].delta() - X[1]["layer.0"].delta()) / 2
    torch.testing.assert_close(dense(merged, "layer.0"), expected)
    assert_same(SVDMerger(k=8, weights=[1, -1]).fit(X).merged_, merged)
    with pytest.raises(ValueError, match="negative"):
        LegoMerger(weights=[1, -1]).fit(X)


def test_smaller_modules_keep_the_rank_they_allow():
    """k is refused only where no module can reach it."""
    X = make_adapters(ranks=(4, 4), random_state=0)
    small = Adapter({"layer.0": X[1]["layer.0"]}, name="small")
    merged = SVDMerger(k=8).fit([X[0], small]).merged_
    assert {m: f.rank for m, f in merged.items()} == {"layer.0": 8, "layer.1": 4}
    with pytest.raises(ValueError, match=r"k=9 is above 8.*layer.0"):
        SVDMerger(k=9).fit([X[0], small])


def test_half_precision_overflow_is_refused():
    from lorakit.exceptions import OutputError

    big = torch.full((1, 4), 6e4, dtype=torch.float16)
    X = [Adapter({"m": LoraFactors(big, big[:, :2].T)})]
    with pytest.raises(OutputError, match=r"'m'.*bfloat16"):
        SVDMerger(scale=4.0).fit(X)
