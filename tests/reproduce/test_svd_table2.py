"""The cut merge: what it is a cut of, at which scale, and what is said of it."""

import numpy as np
import pytest
import svd_table2
import torch
from adapters import norm
from svd_table1 import AS_IT_IS, METHODS
from svd_table2 import COLUMNS, EXACT, OWN_SCALE, RANKS, cut, cut_name

from lorakit import AdapterSet
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


@pytest.fixture(scope="module")
def adapters():
    return AdapterSet(make_adapters(5, ranks=8, n_modules=1, d_in=400, d_out=384, random_state=0))


def test_a_cut_is_the_leading_part(adapters):
    exact = svd_table2.MULTIPLIED["averaging"].fit(adapters).merged_
    s = torch.linalg.svdvals(next(iter(exact.values())).delta())
    for k in RANKS:
        expected = (s[k:].norm() / s.norm()).item()
        assert relative_error(cut(exact, k), exact) == pytest.approx(expected, abs=1e-3)
    assert cut(exact, 64) is exact


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_keeps_the_factor_of_the_exact_merge(adapters, method):
    targets = {EXACT: 1.5, OWN_SCALE: 1.2}
    found = svd_table2.variants(adapters, method, targets)
    assert set(found) == set(COLUMNS)
    one = np.mean([norm(a) for a in adapters])
    assert norm(found[EXACT]) == pytest.approx(1.5 * one, rel=1e-3)
    assert norm(found[OWN_SCALE]) == pytest.approx(1.2 * one, rel=1e-3)
    rest = [relative_error(found[cut_name(k)], found[EXACT]) for k in RANKS]
    assert 1 > rest[0] > rest[1] > rest[2]
    # what is cut off is orthogonal to what stays only if the factor is the same
    assert norm(found["SVD_8"]) == pytest.approx(1.5 * one * np.sqrt(1 - rest[0] ** 2), rel=1e-3)


def test_averaging_is_not_scaled(adapters):
    targets = {EXACT: AS_IT_IS, OWN_SCALE: 1.2}
    found = svd_table2.variants(adapters, "averaging", targets)
    exact = sum(next(iter(a.values())).delta() for a in adapters) / len(adapters)
    torch.testing.assert_close(next(iter(found[EXACT].values())).delta(), exact, rtol=1e-3, atol=1e-4)


def test_the_cut_is_nearer_than_any_direct_merge(adapters):
    """Equation 7 is a theorem: a direct merge has the adapters' rank."""
    for found in svd_table2.cut_errors(adapters).values():
        assert found["SVD_8"] <= found["direct merge"]


def test_the_sentences_are_those_of_the_numbers():
    def scores(lost: float) -> dict:
        by_method = {method: dict.fromkeys(COLUMNS, 0.8 - lost) | {EXACT: 0.8} for method in METHODS}
        return {"a, b": by_method, "all 2": by_method}

    text = svd_table2.verdict([scores(0.03), scores(0.0)])
    assert "SVD_8 loses 1.5 points on pairs, and 1 point at most in 4 of 8 merges." in text
    assert "SVD_16 loses 1.5 points on all 2" in text
