"""LEGO against SVD: at equal rank, at scales chosen by group, and what is said of it."""

import numpy as np
import pytest
import svd_table3
from adapters import SCALES, norm
from svd_table3 import ALL, AS_PUBLISHED, CHOSEN, METHODS, PAIRS

from lorakit import AdapterSet
from lorakit.testing import make_adapters


def test_a_pair_has_no_rank_that_it_lacks_the_units_for():
    pair = AdapterSet(make_adapters(2, ranks=8, n_modules=1, d_in=64, d_out=64, random_state=0))
    found = svd_table3.merges(pair)
    assert list(found) == [8, 16]
    assert {max(merged.ranks) for merged in found[8].values()} == {8}
    # at k = 16 SVD is the mean, and LEGO sqrt(8 / 16) times the sum
    assert norm(found[16]["LEGO"]) == pytest.approx(np.sqrt(0.5) * 2 * norm(found[16]["SVD"]), rel=1e-3)


def test_one_scale_for_the_pairs_and_one_for_all():
    def tried(best: float) -> dict:
        return {8: {what: {scale: -abs(scale - best) for scale in SCALES} for what in METHODS}}

    found = svd_table3.choose_targets({"a, b": tried(0.8), "c, d": tried(1.5), "all 4": tried(2.2)})
    assert set(found) == {PAIRS, ALL}
    assert found[ALL][8] == {"LEGO": 2.2, "SVD": 2.2}
    assert 0.8 <= found[PAIRS][8]["SVD"] <= 1.5


def test_the_least_of_equal_scales():
    found = svd_table3.choose_targets({"all 2": {8: {what: dict.fromkeys(SCALES, 0.5) for what in METHODS}}})
    assert found[ALL][8]["LEGO"] == min(SCALES)


def test_the_sentences_are_those_of_the_numbers():
    def scores(svd: float) -> dict:
        by_scale = {AS_PUBLISHED: svd, CHOSEN: 0.7}
        return {k: {"SVD": by_scale, "LEGO": {AS_PUBLISHED: 0.7, CHOSEN: 0.7}} for k in (8, 16)}

    text = svd_table3.verdict(
        [{"a, b": scores(0.72), "all 2": scores(0.6)}, {"a, b": scores(0.68), "all 2": scores(0.6)}]
    )
    assert "as published, pairs: +0.0 points at k = 8 (ahead in 1 of 2)" in text
    assert (
        "as published, all: -10.0 points at k = 8 (ahead in 0 of 2), -10.0 points at k = 16 (ahead in 0 of 2)." in text
    )
    assert "chosen scale, all: +0.0 points at k = 8 (ahead in 0 of 2)" in text
