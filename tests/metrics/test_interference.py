"""The parts of a direct merge against dense float64 sums."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Adapter, AdapterSet, AverageMerger, ConcatMerger, LoraFactors
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.metrics import Interference, interference, module_interference
from lorakit.testing import adapter_sets, adapter_weights, make_adapters

CONTENTS = ("random", "zero", "identical_adapters", "rank_deficient", "huge", "tiny")


def dense_parts(X, module, weights):
    """The direct merge, its own terms and its cross terms, each from its own sum."""
    have = [(a[module].to(torch.float64), w) for a, w in zip(X, weights, strict=True) if module in a]
    direct = sum(f.B * w for f, w in have) @ sum(f.A * w for f, w in have)
    own = sum(w * w * (f.B @ f.A) for f, w in have)
    cross = torch.zeros_like(own)
    for i, (x, v) in enumerate(have):
        for j, (y, w) in enumerate(have):
            if i != j:
                cross += v * w * (x.B @ y.A)
    return direct, own, cross


@given(adapter_sets(min_adapters=1, equal_ranks=True, content=CONTENTS), st.data())
def test_against_dense(X, data):
    weights = np.array(data.draw(adapter_weights(len(X), signed=True)))
    found = module_interference(X, weights=weights)
    assert tuple(found) == X.module_names
    total = np.zeros(3)
    for module, parts in found.items():
        dense = dense_parts(X, module, weights / np.abs(weights).sum())
        norms = [part.norm().item() for part in dense]
        size = sum(a[module].A.norm() * a[module].B.norm() for a in X if module in a).item()
        assert [parts.direct, parts.multiplied, parts.cross] == pytest.approx(norms, rel=1e-9, abs=1e-13 * size)
        assert torch.allclose(dense[0] - dense[1], dense[2], atol=1e-12 * size)  # the identity itself
        total += np.square(norms)
    summed = interference(X, weights=weights)
    assert summed == sum(found.values(), start=Interference())
    assert [summed.squared_direct, summed.squared_multiplied, summed.squared_cross] == pytest.approx(total, rel=1e-8)
    assert 0 <= summed.share <= 1


def test_it_is_the_direct_merge_of_the_library():
    X = AdapterSet(make_adapters(3, ranks=4, dtype=torch.float64, random_state=0))
    weights = {"task0": 1, "task1": 2, "task2": 3}
    for module, parts in module_interference(X, weights=weights).items():
        direct = AverageMerger(weights=weights).fit(X).merged_[module].delta()
        assert parts.direct == pytest.approx(direct.norm().item())
    equal = module_interference(X)
    mean = ConcatMerger().fit(X).merged_
    for module, parts in equal.items():
        assert parts.multiplied == pytest.approx(mean[module].delta().norm().item() / 3)  # each weight squared


def test_the_cosine_is_of_the_two_parts():
    X = AdapterSet(make_adapters(3, ranks=4, n_modules=1, dtype=torch.float64, random_state=0))
    _, own, cross = dense_parts(X, "layer.0", [1 / 3] * 3)
    expected = ((own * cross).sum() / own.norm() / cross.norm()).item()
    assert interference(X).cosine == pytest.approx(expected)


def test_one_adapter_has_none():
    (adapter,) = make_adapters(1, ranks=4, random_state=0)
    parts = interference([adapter])
    assert (parts.cross, parts.share, parts.cosine) == (0, 0, 0)
    assert parts.direct == parts.multiplied > 0


@pytest.mark.parametrize("n", [2, 5])
def test_copies_of_one_adapter(n):
    (adapter,) = make_adapters(1, ranks=4, random_state=0)
    parts = interference([adapter.renamed(f"{i}") for i in range(n)])
    # n own terms and n (n - 1) cross terms, all the same matrix
    assert parts.cross / parts.multiplied == pytest.approx(n - 1)
    assert parts.share == pytest.approx((n - 1) ** 2 / (1 + (n - 1) ** 2))
    assert parts.cosine == pytest.approx(1)


def test_factors_with_nothing_in_common():
    eye = torch.eye(12, dtype=torch.float64)
    X = [Adapter({"m": LoraFactors(eye[4 * i : 4 * i + 4], eye[:, 4 * i : 4 * i + 4])}, name=f"{i}") for i in range(3)]
    parts = interference(X)
    assert parts.share == pytest.approx(2 / 3)
    assert parts.cosine == pytest.approx(0, abs=1e-12)


def test_zero_updates():
    zero = Adapter({"m": LoraFactors(torch.zeros(2, 3), torch.zeros(4, 2))})
    parts = interference([zero, zero.renamed("b")])
    assert (parts.direct, parts.share, parts.cosine) == (0, 0, 0)


def test_workers_do_not_change_it():
    X = make_adapters(3, ranks=4, random_state=0)
    assert interference(X, n_jobs=2) == interference(X)


def test_unequal_ranks_are_refused():
    with pytest.raises(IncompatibleAdaptersError, match=r"layer\.0.*'task0': 4, 'task1': 8"):
        interference(make_adapters(ranks=(4, 8), random_state=0))


def test_nan_is_named():
    bad = Adapter({"m": LoraFactors(torch.full((1, 2), float("nan")), torch.ones(3, 1))}, name="bad")
    with pytest.raises(ValueError, match="bad: module 'm' has NaN"):
        interference([bad])


def test_weights_must_fit():
    with pytest.raises(ValueError, match="one number for each of 2"):
        interference(make_adapters(2, ranks=4), weights=[1, 2, 3])
