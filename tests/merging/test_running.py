"""Adapters that are added as they come, and merges in groups."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit import (
    AdapterSet,
    LegoMerger,
    SVDMerger,
    SVDPruner,
    TaskArithmeticMerger,
    TSVMerger,
    load_adapter,
    merge_in_groups,
    save_adapter,
)
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.linalg import frobenius_norm
from lorakit.merging import _running
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


def dense(updates, weights):
    return sum(w * u.delta().double() for u, w in zip(updates, weights, strict=True))


def in_parts(merger, X, parts, weights=None, **options):
    for part in np.array_split(np.arange(len(X)), parts):
        own = None if weights is None else np.asarray(weights)[part]
        merger = merger.partial_fit(AdapterSet(X[i] for i in part), weights=own, **options)
    return merger


@pytest.mark.parametrize(("scale", "target"), [(1.0, 1.0), (-0.5, 1.0), ("match", 0.7)])
@pytest.mark.parametrize("cls", [SVDMerger, TaskArithmeticMerger])
def test_nothing_is_lost_where_the_sum_has_room(cls, scale, target):
    X = make_adapters(6, ranks=(2, 3, 2, 1, 3, 2), random_state=0)
    weights = [3.0, 1.0, 0.5, 2.0, 1.0, 4.0]
    options = {"k": 5, "scale": scale, "scale_target": target}
    whole = cls(**options, weights=weights).fit(X)
    parts = in_parts(cls(**options), X, 3, weights, keep=13)
    assert relative_error(parts.merged_, whole.merged_) < 1e-5
    assert parts.n_adapters_in_ == 6
    assert max(parts.sum_error_.values()) < 1e-4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 6), keep=st.integers(3, 12))
def test_the_error_is_within_its_bound(seed, parts, keep):
    rng = np.random.RandomState(seed)
    X = make_adapters(6, ranks=4, random_state=seed)
    weights = rng.uniform(-1, 2, size=6)
    merger = in_parts(SVDMerger(k=3), X, parts, weights, keep=keep)
    for module, own in merger.running_sum_.modules.items():
        true = dense([x[module] for x in X], weights)
        lost = float(torch.linalg.norm(true - own.factors.delta().double()))
        assert lost <= own.lost + 1e-4 * float(true.norm())
        assert merger.sum_error_[module] == pytest.approx(own.lost / np.abs(weights).sum())


def test_memory_holds_no_square_of_all_ranks(monkeypatch):
    """Units are taken up to half of the width at a time; all at once gives the same."""
    X = make_adapters(30, ranks=4, d_in=40, d_out=36, random_state=0)
    most = []
    true = _running.svd_of_sum

    def spy(updates, weights, k=None):
        most.append(sum(u.rank for u in updates))
        return true(updates, weights, k)

    monkeypatch.setattr(_running, "svd_of_sum", spy)
    merger = SVDMerger(k=4).partial_fit(X, keep=8)
    assert max(most) <= 18
    assert len(most) > 10
    exact = SVDMerger(k=4).fit(X).merged_
    for module, factors in merger.merged_.items():
        gap = float(torch.linalg.norm(factors.delta().double() - exact[module].delta().double()))
        # both are best cuts: of the kept sum, and of the exact one
        assert gap <= 2 * merger.sum_error_[module] + 2 * merger.truncation_error_[module]


def test_a_result_is_saved_and_read(tmp_path):
    X = make_adapters(4, ranks=2, random_state=0)
    merger = in_parts(SVDMerger(k=2), X, 2)
    again = load_adapter(save_adapter(merger.merged_, tmp_path / "out"))
    assert relative_error(again, merger.merged_) == 0
    assert "partial_fit" in merger.merged_.provenance.operations[-1]


def test_jobs_and_the_order_of_calls_to_fit_change_nothing():
    X = make_adapters(4, ranks=2, n_modules=4, random_state=0)
    one, two = (in_parts(SVDMerger(k=2, n_jobs=n), X, 2).merged_ for n in (1, 2))
    assert relative_error(one, two) == 0
    merger = in_parts(SVDMerger(k=2), X, 2).fit(X[:2])
    assert not hasattr(merger, "running_sum_")
    assert not hasattr(merger, "sum_error_")


def test_what_does_not_fit_is_refused_and_changes_nothing():
    X, other = make_adapters(2, ranks=2, random_state=0), make_adapters(1, ranks=2, d_in=30, random_state=0)
    merger = SVDMerger(k=2).partial_fit(X)
    before = merger.merged_
    with pytest.raises(IncompatibleAdaptersError, match="30"):
        merger.partial_fit(other)
    assert merger.merged_ is before
    assert merger.n_adapters_in_ == 2


@pytest.mark.parametrize(
    ("merger", "message"),
    [
        (SVDMerger(), "needs a number for k"),
        (SVDMerger(k=0.9), "needs a number for k"),
        (SVDMerger(k=2, weights=[1, 1]), "weights of the adapters of each call"),
        (SVDMerger(k=2, scale="match", scale_scope="model"), "needs fit"),
        (TaskArithmeticMerger(k=2, space="factors"), "needs fit"),
    ],
)
def test_what_has_no_running_sum_is_refused(merger, message):
    with pytest.raises(ValueError, match=message):
        merger.partial_fit(make_adapters(2, ranks=2, random_state=0))


def test_a_sum_below_k_is_refused():
    with pytest.raises(ValueError, match="keep=2 is below k=3"):
        SVDMerger(k=3).partial_fit(make_adapters(2, ranks=2, random_state=0), keep=2)


def test_groups_of_a_mean_that_has_room_are_exact():
    X = make_adapters(7, ranks=2, random_state=0)
    weights = [1.0, 2, 3, 4, 0, 6, 7]
    whole = SVDMerger(k=12, weights=weights).fit(X).merged_
    assert relative_error(merge_in_groups(SVDMerger(k=12), X, size=2, weights=weights), whole) < 1e-5


def test_a_group_that_holds_all_is_one_merge():
    X = make_adapters(4, ranks=3, random_state=0)
    for merger in (TSVMerger(k=4), LegoMerger(k=4, random_state=0)):
        assert relative_error(merge_in_groups(merger, X, size=4), merger.fit(X).merged_) == 0


def test_no_group_is_larger_than_asked():
    seen = []

    class Spy(TSVMerger):
        def fit(self, X, y=None):
            seen.append(len(X))
            return super().fit(X, y)

    merge_in_groups(Spy(k=2), make_adapters(10, ranks=2, random_state=0), size=3)
    assert seen == [3, 3, 3, 3, 2]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"merger": SVDPruner(k=2)}, TypeError),
        ({"size": 1}, ValueError),
        ({"merger": TSVMerger(weights=[1, 1])}, ValueError),
        ({"weights": [1]}, ValueError),
    ],
)
def test_groups_refuse(options, error):
    merger, options = options.pop("merger", TSVMerger(k=2)), options
    with pytest.raises(error):
        merge_in_groups(merger, make_adapters(2, ranks=2, random_state=0), **options)


def test_the_norm_that_is_matched_is_that_of_all():
    X = make_adapters(4, ranks=2, random_state=0)
    merger = in_parts(SVDMerger(k=4, scale="match"), X, 2)
    for module, factors in merger.merged_.items():
        mean = np.mean([frobenius_norm(x[module]).item() for x in X])
        assert frobenius_norm(factors).item() == pytest.approx(mean, rel=1e-5)
