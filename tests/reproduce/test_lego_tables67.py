"""Diverse tasks and many: who is merged, at which norm it is measured, and what is said of it."""

import argparse

import lego_tables67
import numpy as np
import pytest
from adapters import norm
from lego_tables67 import AS_PUBLISHED, BASE, BASELINES, CHOSEN, DIVERSE, MERGERS, OWN
from tasks import TRAINED

from lorakit import AdapterSet
from lorakit.testing import make_adapters


@pytest.fixture
def adapters(monkeypatch):
    made = AdapterSet(make_adapters(4, ranks=8, n_modules=2, d_in=48, d_out=40, random_state=0))
    monkeypatch.setattr(lego_tables67, "load_tasks", lambda names, seed, shared_start: made)
    return made


def test_the_diverse_tasks_are_merged_and_all_of_them_with_others():
    few, many = lego_tables67.groups_of(TRAINED).values()
    assert few == list(DIVERSE)
    assert sorted(many) == sorted(TRAINED)
    assert many[: len(few)] == few  # so that both share what is measured
    assert lego_tables67.groups_of(DIVERSE[:3]) == {"3 diverse": list(DIVERSE[:3])}
    assert lego_tables67.groups_of(["amazon", "tweets"]) == {"all 2": ["amazon", "tweets"]}
    assert lego_tables67.groups_of(["amazon", "movie"]) == {"all 2": ["movie", "amazon"]}


def test_ranks_are_those_that_the_docstring_says(adapters):
    found = {what: max(lego_tables67.merge(adapters, what, 0).ranks) for what in MERGERS}
    assert found == {"average": 8, "ensemble": 32, "TIES": 8, "DARE": 8, "DELLA": 8, "LEGO": 16, "SVD": 16}


def test_draws_follow_the_seed(adapters):
    one, again, other = (lego_tables67.merge(adapters, "DELLA", seed)["layer.0"].A for seed in (1, 1, 2))
    assert one.equal(again)
    assert not one.equal(other)


def test_a_merge_is_measured_as_it_is_and_at_the_norm(adapters, monkeypatch):
    monkeypatch.setattr(lego_tables67, "right_of", lambda adapter, names, test: norm(adapter))
    one = np.mean([norm(adapter) for adapter in adapters])
    for what in MERGERS:
        found, own = lego_tables67.measure(["a"], what, 0, 2.7, n=5)
        assert found[CHOSEN] == pytest.approx(2.7 * one, rel=1e-4)
        assert found[AS_PUBLISHED] == pytest.approx(own * one, rel=1e-4)
        assert own == pytest.approx(norm(lego_tables67.merge(adapters, what, 0)) / one, rel=1e-4)


@pytest.mark.parametrize("best", [0.6, 4.0])
def test_the_norm_is_chosen_on_validation_texts(adapters, monkeypatch, best):
    one = np.mean([norm(adapter) for adapter in adapters])
    seen = set()

    def mean(self, adapter, names):
        seen.add(self.split)
        return -abs(np.log(norm(adapter) / one / best))

    monkeypatch.setattr(lego_tables67.Evaluator, "mean", mean)
    assert lego_tables67.choose(["a"], "average", 0, n=5) == best
    assert seen == {"validation"}


def rights(accuracy: float, tasks: int = 2) -> dict[str, np.ndarray]:
    return {f"t{i}": np.arange(10) < round(10 * accuracy) for i in range(tasks)}


def results(lego: list[float], others: float = 0.5) -> dict:
    found = {what: {scale: [rights(others)] * len(lego) for scale in (AS_PUBLISHED, CHOSEN)} for what in MERGERS}
    found["LEGO"] = {scale: [rights(score) for score in lego] for scale in (AS_PUBLISHED, CHOSEN)}
    return found | {
        BASE: {AS_PUBLISHED: [rights(0.4)] * len(lego)},
        OWN: {AS_PUBLISHED: [rights(0.8)] * len(lego)},
    }


def test_the_sentences_are_those_of_the_numbers():
    columns = {what: scales[AS_PUBLISHED] for what, scales in results([0.6, 0.5, 0.3]).items()}
    text = lego_tables67.verdict("2 diverse", AS_PUBLISHED, columns)
    assert f"LEGO is ahead of {', '.join(BASELINES)} in 1 of 3 seeds." in text
    assert "Against the best of these, average it has -3.3 ± " in text
    assert "Against SVD it has -3.3 ± " in text
    assert "Below the base model: LEGO (1 of 3 seeds)." in text


def test_the_decline_is_from_few_to_many():
    text = lego_tables67.decline({"7 diverse": results([0.8]), "all 15": results([0.6], others=0.4)})
    assert "average -12.5" in text
    assert "LEGO -25.0" in text
    assert lego_tables67.decline({"7 diverse": results([0.8])}) == ""


def test_tables_have_a_cell_for_everything():
    found = {"7 diverse": results([0.8, 0.7]), "all 15": results([0.6, 0.6])}
    table = lego_tables67.task_table("x", "7 diverse", AS_PUBLISHED, found["7 diverse"], 10)
    assert table.rows[0] == ["t0", "0.800", "0.400", "0.500", "0.500", "0.500", "0.500", "0.500", "0.750", "0.500"]
    assert [row[0] for row in table.rows] == ["t0", "t1", "mean", "normalised"]
    norms = {group: {what: [1.0, 1.2] for what in MERGERS} for group in found}
    targets = {group: dict.fromkeys(MERGERS, 1.5) for group in found}
    options = argparse.Namespace(n_test=10, n_validation=10, seeds=[0, 1])
    summary = lego_tables67.summary_table("y", found, norms, targets, options)
    assert {len(row) for row in summary.rows} == {len(summary.titles)} == {9}
    assert summary.rows[1] == ["average", *["0.625 ± 0.000", "0.625 ± 0.000", "1.10 ± 0.14", "1.5"] * 2]
    assert "average" in table.text()
