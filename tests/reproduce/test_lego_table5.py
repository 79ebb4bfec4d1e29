"""Mixed ranks: which methods take them, found by trying, and what is said of the others."""

import lego_table3
import lego_table5
import numpy as np
import pytest
from lego_table3 import AS_PUBLISHED, CHOSEN, LEGO
from lego_table5 import MIXES, REFUSED, TASKS

from lorakit import AdapterSet
from lorakit.testing import make_adapters

N = 50


def adapters(ranks) -> AdapterSet:
    return AdapterSet(make_adapters(len(ranks), ranks=ranks, n_modules=2, d_in=40, d_out=32, random_state=0))


@pytest.mark.parametrize("ranks", [(4, 4), (4, 8)])
def test_what_works_on_factors_takes_one_rank_only(ranks):
    able = lego_table5.mergeable(adapters(ranks))
    both = ["ensemble", "SVD", "TIES on B A", LEGO]
    assert able == (["weight average", "task arithmetic", "TIES", *both] if ranks == (4, 4) else both)


@pytest.mark.parametrize("ranks", [(8, 8, 16), (4, 8, 16), (4, 4, 8, 8, 16, 16, 16)])
def test_the_others_have_legos_rank(ranks):
    some = adapters(ranks)
    found = {what: max(lego_table3.merge(what, some).ranks) for what in ("SVD", "TIES on B A", LEGO)}
    assert set(found.values()) == {round(2 * np.mean(ranks))}


def test_mixes_of_the_tasks_that_there_are():
    assert lego_table5.mixes_of(TASKS, quick=False) == MIXES
    assert lego_table5.mixes_of(["icd10", "langid"], quick=False) == {"8": {}, "8 and 16": {"langid": 16}}
    assert lego_table5.mixes_of(["icd10", "langid"], quick=True) == {"8 and 16": {"langid": 16}}


def test_refusals_are_shown_and_said():
    def right(rate: float) -> dict:
        return {task: np.arange(N) < rate * N for task in ("a", "b")}

    able = {"ensemble": 0.5, "SVD": 0.4, "TIES on B A": 0.7, LEGO: 0.6}
    found = {scale: {what: [right(rate)] for what, rate in able.items()} for scale in (AS_PUBLISHED, CHOSEN)}
    options = type("Options", (), {"n_test": N, "n_validation": N, "seeds": [0]})
    mixes = {"8 and 16": (dict.fromkeys(able, 1.5), found)}
    made = lego_table5.table(mixes, {"8 and 16": [right(0.9)]}, right(0.2), ["a"], ["b"], options)
    assert {len(row) for row in made.rows} == {len(made.titles)}
    refused = [row[1] for row in made.rows if REFUSED in row]
    assert refused == ["weight average", "task arithmetic", "TIES", "task arithmetic", "TIES"]
    assert "Ranks 8 and 16: weight average, task arithmetic, TIES (on A and B) cannot merge these." in made.note
    assert (
        "as published, all tasks: LEGO is number 2 of 4, 10.0 points ahead of the ensemble (ahead in 1 of" in made.note
    )
