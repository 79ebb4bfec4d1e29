"""A weight of zero leaves an adapter out, before ranks are counted; and what the largest ``k`` is."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit import (
    Adapter,
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    LegoMerger,
    LegoPruner,
    LoraFactors,
    RankBudget,
    SVDMerger,
    SVDPruner,
    TaskArithmeticMerger,
    TiesMerger,
    TSVMerger,
    load_adapters,
)
from lorakit._validation import check_weights
from lorakit.testing import make_adapters

SHIPPED = Path(__file__).parents[2] / "examples" / "adapters"


@pytest.fixture(scope="module")
def real():
    """Adapters of ranks 4, 8 and 16 as they are shipped, two of their modules, in float64."""
    X = load_adapters([SHIPPED / name for name in ("wn_noun_r4", "wn_noun", "langid_r16")])
    return AdapterSet(adapter.select(X.module_names[:2]).astype(torch.float64) for adapter in X)


def made(ranks=(2, 6)):
    return AdapterSet(make_adapters(ranks=ranks, random_state=0, dtype=torch.float64))


def dense_mean(X, module, weights):
    """Weighted mean of dense updates, in NumPy."""
    updates = [np.asarray(f.B, dtype=np.float64) @ np.asarray(f.A, dtype=np.float64) for f in X.factors(module)]
    return sum(w * update for w, update in zip(weights, updates, strict=True)) / np.abs(weights).sum()


def truncated(matrix, k):
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:k]


@pytest.mark.parametrize("origin", ["made", "real"])
@pytest.mark.parametrize("merger", [ConcatMerger(), SVDMerger()], ids=str)
def test_rank_and_update_are_those_of_the_others(merger, origin, real):
    X = made((2, 6, 3)) if origin == "made" else real
    weights = [1.0, 0.0, 2.0]
    merged = merger.set_params(weights=weights).fit(X).merged_
    ranks = [X[i].infos[X.module_names[0]].rank for i in (0, 2)]
    rank = sum(ranks) if isinstance(merger, ConcatMerger) else max(ranks)
    for module, factors in merged.items():
        assert factors.rank == rank
        expected = truncated(dense_mean(X, module, weights), rank)
        np.testing.assert_allclose(factors.delta().numpy(), expected, rtol=0, atol=1e-10 * np.linalg.norm(expected))


@pytest.mark.parametrize("merger", [ConcatMerger(), SVDMerger(), TSVMerger(), TiesMerger(), LegoMerger()], ids=str)
def test_rank_two_beside_rank_six_of_weight_zero(merger):
    merged = merger.set_params(weights=[1, 0]).fit(made()).merged_
    assert merged.ranks == (2,)


def test_ranks_by_singular_values_do_not_see_it():
    X = made((3, 9))
    for k in (0.9, "auto", RankBudget(mean=2)):
        alone = SVDMerger(k=k).fit(X[:1]).merged_
        assert SVDMerger(k=k, weights=[1, 0]).fit(X).merged_.ranks == alone.ranks


def test_an_adapter_of_another_rank_may_be_left_out_of_a_direct_merge():
    X = made((4, 4, 7))
    merged = AverageMerger(weights=[1, 1, 0]).fit(X).merged_
    x, y, _ = X.factors("layer.0")
    a, b = (x.A + y.A).numpy() / 2, (x.B + y.B).numpy() / 2
    np.testing.assert_allclose(merged["layer.0"].delta().numpy(), b @ a, atol=1e-12)


def test_matching_counts_the_others_alone():
    X = made()
    merged = SVDMerger(weights=[3, 0], scale="match").fit(X).merged_
    for module, factors in merged.items():
        np.testing.assert_allclose(factors.delta().norm(), X[0][module].delta().norm(), rtol=1e-12)


def test_k_is_not_refused_because_a_weight_is_zero():
    """A search over weights at one k meets weights of zero."""
    merged = SVDMerger(k=8, weights=[1, 0]).fit(made()).merged_
    assert merged.ranks == (2,)


WIDE = make_adapters(2, ranks=30, d_in=12, d_out=10, dtype=torch.float64, random_state=0)


@pytest.mark.parametrize(
    "merger", [LegoMerger(random_state=0), ConcatMerger(), SVDMerger(), TaskArithmeticMerger()], ids=str
)
def test_one_largest_k_the_sum_of_the_ranks(merger):
    """Also where that is more than a width: rank-30 adapters of a 10 x 12 module."""
    for k in (15, 60):
        update = merger.set_params(k=k).fit(WIDE).merged_["layer.0"]
        assert update.rank <= k
        if not isinstance(merger, LegoMerger):  # nothing is lost: no update of this module has a rank above 10
            exact = dense_mean(AdapterSet(WIDE), "layer.0", np.ones(2))
            factor = 0.8 if isinstance(merger, TaskArithmeticMerger) else 1
            np.testing.assert_allclose(update.delta().numpy(), factor * exact, atol=1e-10)
    with pytest.raises(ValueError, match=r"k=61 is above 60, .*: the sum of the adapters' ranks"):
        merger.set_params(k=61).fit(WIDE)


def test_the_default_of_lego_is_a_k_that_may_be_asked_for():
    default = LegoMerger(random_state=0).fit(WIDE).merged_
    asked = LegoMerger(default.ranks[0], random_state=0).fit(WIDE).merged_
    assert default.ranks == asked.ranks == (60,)
    assert torch.equal(default["layer.0"].A, asked["layer.0"].A)


@pytest.mark.parametrize("pruner", [LegoPruner(random_state=0), SVDPruner()], ids=str)
def test_the_largest_k_of_a_pruner_is_the_rank_of_its_adapter(pruner):
    """The sum of the ranks, of one adapter."""
    for k in (15, 30):
        (pruned,) = pruner.set_params(k=k).fit_transform(WIDE[:1])
        assert pruned.ranks[0] <= k
    with pytest.raises(ValueError, match=r"k=31 is above 30, .* their rank"):
        pruner.set_params(k=31).fit(WIDE[:1])


@pytest.mark.parametrize(
    ("merger", "limit", "rule"),
    [
        (AverageMerger(), 30, "the adapters' rank"),
        (TiesMerger(space="factors"), 30, "the adapters' rank"),
        (TiesMerger(space="core"), 60, "the sum of the adapters' ranks"),
        (TiesMerger(), 10, "the module's smaller width"),
    ],
    ids=str,
)
def test_the_error_says_the_rule(merger, limit, rule):
    with pytest.raises(ValueError, match=f"k={limit + 1} is above {limit}, .*: {rule}"):
        merger.set_params(k=limit + 1).fit(WIDE)


FLOATS = st.floats(min_value=0, max_value=1.7e308, allow_subnormal=False)


@given(weights=st.lists(FLOATS, min_size=1, max_size=5).filter(any))
def test_weights_are_normalised_whatever_their_size(weights):
    total = sum(map(Fraction, weights))
    exact = [float(Fraction(w) / total) for w in weights]
    np.testing.assert_allclose(
        check_weights(weights, ["x"] * len(weights), signed=False), exact, rtol=1e-12, atol=1e-300
    )


def test_huge_weights_are_ratios():
    X = made()
    huge = ConcatMerger(weights=[1e308, 1e308]).fit(X).merged_
    for module, factors in ConcatMerger().fit(X).merged_.items():
        assert torch.equal(factors.B, huge[module].B)


def test_a_module_of_its_own_is_a_zero_update():
    X = made((2, 2))
    extra = Adapter({**X[1], "more": LoraFactors(*X[1]["layer.0"])}, name="extra")
    merged = TSVMerger(weights=[1, 0]).fit([X[0], extra]).merged_
    assert merged["more"].rank == 1
    assert not merged["more"].delta().any()
