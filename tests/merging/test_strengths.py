"""Strengths: factors as they stand, against sums of dense updates."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from lorakit import (
    AdapterSet,
    AllAdapters,
    AverageMerger,
    ConcatMerger,
    DareMerger,
    Isotropizer,
    MagnitudeMerger,
    SVDMerger,
    TaskArithmeticMerger,
    TiesMerger,
    TSVMerger,
    load_adapters,
    rank_path,
    save_adapter,
)
from lorakit._scaled import scaled_adapter
from lorakit.discovery import all_estimators
from lorakit.exceptions import IncompatibleAdaptersError, ParameterError, ZeroMergeWarning
from lorakit.testing import make_adapters

LINEAR = [ConcatMerger(), SVDMerger(k=12), TaskArithmeticMerger(k=12), TaskArithmeticMerger(k=12, space="core")]
sizes = st.floats(0.01, 3).map(lambda c: round(c, 3))
strengths_of_three = st.lists(sizes | sizes.map(lambda c: -c) | st.just(0.0), min_size=3, max_size=3).filter(any)


def adapters(**options):
    return AdapterSet(make_adapters(**{"ranks": (3, 5, 4), "dtype": torch.float64, "random_state": 0} | options))


def dense_sum(X, strengths, module):
    return sum(c * (x[module].B.double() @ x[module].A.double()) for c, x in zip(strengths, X, strict=True))


@pytest.mark.parametrize("merger", LINEAR, ids=str)
@given(strengths=strengths_of_three)
def test_linear_methods_give_the_sum(merger, strengths):
    X = adapters()
    merged = clone(merger).set_params(strengths=strengths).fit(X).merged_
    size = sum(abs(c) * float(x["layer.0"].delta().norm()) for c, x in zip(strengths, X, strict=True))
    for module, factors in merged.items():
        assert float((factors.delta() - dense_sum(X, strengths, module)).norm()) < 1e-6 * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_not_rounded_before_the_sum(dtype):
    X = adapters(dtype=dtype)
    merged = ConcatMerger(strengths=[0.7, 0.5, -0.3]).fit([x.astype(torch.float32) for x in X]).merged_
    wanted = dense_sum(X, [0.7, 0.5, -0.3], "layer.0")
    assert float((merged["layer.0"].delta() - wanted).norm() / wanted.norm()) < 1e-6
    rounded = ConcatMerger(strengths=[0.7, 0.5, -0.3]).fit(X).merged_
    assert rounded.dtype == dtype


def test_direct_sum_is_that_of_peft():
    X = adapters(ranks=(4, 4, 4))
    strengths = [0.7, 0.5, 0.2]
    merged = AverageMerger(strengths=strengths).fit(X).merged_["layer.1"]
    a = sum(c**0.5 * x["layer.1"].A for c, x in zip(strengths, X, strict=True))
    b = sum(c**0.5 * x["layer.1"].B for c, x in zip(strengths, X, strict=True))
    assert torch.allclose(merged.delta(), b @ a)


def test_a_negative_strength_subtracts_in_tsv():
    first, second, _ = adapters()
    both = TSVMerger(strengths=[1, -0.3]).fit([first, second]).merged_
    kept = TSVMerger(strengths=[1, 0.3]).fit([first, second]).merged_
    for module, update in second.items():
        along = torch.sum(both[module].delta() * update.delta()), torch.sum(kept[module].delta() * update.delta())
        assert along[0] < 0 < along[1]


def test_what_cancels_is_zero_and_warns():
    first = adapters()[0]
    for merger in (ConcatMerger(), SVDMerger(scale="match"), TaskArithmeticMerger()):
        with pytest.warns(ZeroMergeWarning, match="is zero in 2 of 2 modules"):
            clone(merger).set_params(strengths=[0.7, -0.7]).fit([first, first.renamed("again")])


def test_means_over_entries_that_agree_stay_means():
    X = adapters()
    plain, ones = TiesMerger(k=16).fit(X).merged_, TiesMerger(k=16, strengths=[1, 1, 1]).fit(X).merged_
    assert torch.allclose(plain["layer.0"].delta(), ones["layer.0"].delta())
    for rule in (DareMerger(k=16, random_state=0), MagnitudeMerger(k=16)):
        plain, ones = rule.fit(X).merged_, clone(rule).set_params(strengths=[1, 1, 1]).fit(X).merged_
        assert torch.allclose(3 * plain["layer.0"].delta(), ones["layer.0"].delta())


def test_task_arithmetic_has_one_coefficient():
    X = adapters()
    twice = TaskArithmeticMerger(k=12, strengths=[1, 2, 3], coefficient=0.5).fit(X).merged_
    once = TaskArithmeticMerger(k=12, strengths=[0.5, 1, 1.5]).fit(X).merged_
    assert torch.allclose(twice["layer.0"].delta(), once["layer.0"].delta())
    unweighted = TaskArithmeticMerger(k=12).fit(X).merged_["layer.0"].delta()
    assert torch.allclose(unweighted, 0.4 * dense_sum(X, [1, 1, 1], "layer.0"))


def test_scale_comes_after():
    X = adapters()
    wanted = 2 * dense_sum(X, [0.7, 0.5, -0.3], "layer.0")
    doubled = ConcatMerger(strengths=[0.7, 0.5, -0.3], scale=2).fit(X).merged_
    assert torch.allclose(doubled["layer.0"].delta(), wanted)
    for scope in ("module", "model"):
        matched = ConcatMerger(strengths=[0.7, 0, -0.3], scale="match", scale_scope=scope).fit(X).merged_
        modules = ["layer.0"] if scope == "module" else ["layer.0", "layer.1"]
        norms = [np.sqrt(sum(float(x[m].delta().norm()) ** 2 for m in modules)) for x in (matched, X[0], X[2])]
        assert norms[0] == pytest.approx((0.7 * norms[1] + 0.3 * norms[2]) / 2)


def test_nested_mergers_see_the_multiplied_updates():
    X = adapters()
    nested = Isotropizer(TSVMerger(), strengths=[0.5, -1, 2]).fit(X).merged_
    multiplied = [scaled_adapter(x, c) for x, c in zip(X, [0.5, -1, 2], strict=True)]
    assert torch.allclose(
        nested["layer.0"].delta(), Isotropizer(TSVMerger()).fit(multiplied).merged_["layer.0"].delta()
    )
    with pytest.raises(ValueError, match="strengths of its own"):
        Isotropizer(TSVMerger(strengths=[1, 1, 1])).fit(X)


def test_from_files_lazily(tmp_path):
    made = adapters(dtype=torch.float16)
    X = load_adapters([save_adapter(x, tmp_path / x.name) for x in made])
    merger = SVDMerger(k=12, strengths={"task0": 0.7, "task1": 0.5, "task2": -0.3})
    assert pickle.loads(pickle.dumps(merger)).fit(X).merged_.dtype == torch.float16
    path = rank_path(merger, X, [2, 12])
    assert path[2].merged_.ranks == (2,)
    wanted = dense_sum(made, [0.7, 0.5, -0.3], "layer.0")
    error = (path[12].merged_["layer.0"].delta().double() - wanted).norm() / wanted.norm()
    assert error < 2e-3  # of float16


def test_grids_search_over_them():
    X = adapters()
    wanted = dense_sum(X, [0.5, -0.5, 1], "layer.0")

    def near(merger, X, y=None):
        return -float((merger.merged_["layer.0"].delta() - wanted).norm())

    grid = {"strengths": [[1, 1, 1], [0.5, -0.5, 1], {"task0": 0.5, "task1": 0.5, "task2": 1}]}
    search = GridSearchCV(SVDMerger(k=12), grid, cv=AllAdapters(), scoring=near).fit(X)
    assert search.best_params_["strengths"] == [0.5, -0.5, 1]


def test_singular_values_are_those_of_the_sum():
    X = adapters()
    learned = SVDMerger(k=4, strengths=[0.7, 0.5, -0.3]).fit(X)
    s = torch.linalg.svdvals(dense_sum(X, [0.7, 0.5, -0.3], "layer.0")).numpy()
    assert np.allclose(learned.singular_values_["layer.0"], s[:12])
    assert learned.truncation_error_["layer.0"] == pytest.approx(np.sqrt((s[4:] ** 2).sum()))


def test_both_are_refused_with_the_difference():
    with pytest.raises(ParameterError, match=r"weights are shares.*Strengths are factors") as caught:
        TSVMerger(weights=[1, 1, 1], strengths=[1, 1, 1]).fit(adapters())
    assert caught.value.expected == "one of them"


def test_too_large_a_product_is_refused():
    with pytest.raises(ValueError, match=r"'layer.0' times 1e\+300 has values that float32 cannot hold"):
        SVDMerger(strengths=[1, 1, 1e300]).fit([x.astype(torch.float32) for x in adapters(dtype=torch.float32)])


def test_an_adapter_that_is_left_out_still_has_to_fit():
    wide = make_adapters(1, ranks=4, d_in=25, random_state=1)
    with pytest.raises(IncompatibleAdaptersError):
        ConcatMerger(strengths=[1, 1, 1, 0]).fit([*adapters(), *wide])


@pytest.mark.parametrize("cls", all_estimators("merger").values(), ids=lambda cls: cls.__name__)
def test_every_merger_takes_and_documents_them(cls):
    assert cls().strengths is None
    assert "    strengths : array-like of shape (n_adapters,) or dict" in cls.__doc__
