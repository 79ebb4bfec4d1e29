"""Many tasks in one adapter: what is merged and how, at which scale, and what is said of the numbers."""

from types import SimpleNamespace

import lego_table3
import numpy as np
import pytest
from adapters import norm
from lego_table3 import AS_PUBLISHED, CHOSEN, LEGO, METHODS, PAPERS, ROWS, Pool
from processes import Processes

from lorakit import AdapterSet
from lorakit.metrics import cosine_similarity
from lorakit.testing import make_adapters

N = 200


@pytest.fixture(scope="module")
def adapters():
    return AdapterSet(make_adapters(4, ranks=4, n_modules=2, d_in=40, d_out=32, random_state=0))


def right(rate: float) -> np.ndarray:
    return np.arange(N) < round(rate * N)


def found(lego: float, other: float, tasks=("a", "b")) -> lego_table3.Found:
    """Two seeds in which LEGO and all others have these accuracies."""
    return {
        scale: {what: [{task: right(lego if what == LEGO else other) for task in tasks}] * 2 for what in methods}
        for scale, methods in ROWS.items()
    }


def test_every_method_merges(adapters):
    for what in METHODS:
        merged = lego_table3.merge(what, adapters)
        assert max(merged.ranks) == {"ensemble": 16, LEGO: 8, "SVD": 8, "TIES on B A": 8}.get(what, 4)


def test_task_arithmetic_is_the_average_at_a_scale(adapters):
    one, other = (lego_table3.merge(what, adapters) for what in ("weight average", "task arithmetic"))
    assert cosine_similarity(one, other) == pytest.approx(1, abs=1e-5)
    assert norm(one) != pytest.approx(norm(other))


class Fake:
    """An evaluator that gets right what the norm of the merge says."""

    def __init__(self, split, n):
        self.split, self.n = split, n

    def labels(self, task):
        return np.zeros(self.n, int)

    def scores_by_task(self, adapter, rows):
        wrong = min(0.9, abs(norm(adapter) - 10) / 10)
        return dict.fromkeys(rows, np.stack([~right(wrong)[: self.n], right(wrong)[: self.n]], axis=1).astype(float))

    def mean(self, adapter, tasks):
        return -abs(norm(adapter) - 10)


@pytest.fixture
def faked(adapters, monkeypatch):
    monkeypatch.setattr(lego_table3, "Evaluator", Fake)
    monkeypatch.setattr(lego_table3, "load_tasks", lambda tasks, **given: adapters)
    return Pool(tuple(adapters.names), 0)


def test_scales_are_chosen_on_validation_texts_and_used(adapters, faked):
    one = np.mean([norm(a) for a in adapters])
    target = lego_table3.choose(faked, LEGO, N)
    assert abs(target * one - 10) == min(abs(s * one - 10) for s in lego_table3.NORMS)
    by_scale, size = lego_table3.measure(faked, LEGO, target, ["left"], N)
    merged = lego_table3.merge(LEGO, adapters)
    assert size == pytest.approx(norm(merged) / one)
    assert set(by_scale[CHOSEN]) == {*adapters.names, "left"}
    for scale, reached in ((AS_PUBLISHED, norm(merged)), (CHOSEN, target * one)):
        expected = 1 - min(0.9, abs(reached - 10) / 10)
        assert by_scale[scale]["left"].mean() == pytest.approx(expected, abs=1 / N)


def test_a_scale_is_chosen_once_and_every_pool_measured(adapters, faked, capsys):
    options = SimpleNamespace(n_validation=N, n_test=N)
    with Processes(1) as processes:
        targets, found, norms = lego_table3.run([faked, faked], [LEGO, "ensemble"], ["left"], options, processes)
    assert list(targets) == list(norms) == [LEGO, "ensemble"]
    assert targets[LEGO] == lego_table3.choose(faked, LEGO, N)
    assert norms["ensemble"] == pytest.approx(0.5, abs=0.1)  # the mean of four that have little in common
    for scale in (AS_PUBLISHED, CHOSEN):
        assert [set(right) for right in found[scale]["ensemble"]] == [{*adapters.names, "left"}] * 2
    assert capsys.readouterr().err.count("chosen norm of") == 2


def test_task_arithmetic_has_no_scale_but_the_chosen_one(faked):
    by_scale, _ = lego_table3.measure(faked, "task arithmetic", 1.5, [], N)
    assert by_scale[AS_PUBLISHED] is by_scale[CHOSEN]


def test_tasks_are_left_out_of_the_merge(monkeypatch):
    monkeypatch.setattr(lego_table3, "available", lambda names: [n for n in names if n != "nyt"])
    assert lego_table3.left_out(["icd10", "amazon"], quick=False) == ["wn_verb"]
    assert lego_table3.left_out(["icd10"], quick=True) == ["amazon"]


def test_the_table_has_a_column_a_task():
    options = type("Options", (), {"n_test": N, "seeds": [0, 1]})
    references = {"base model": [{"a": right(0.2), "c": right(0.4)}] * 2, "own adapters": [{"a": right(0.9)}] * 2}
    for others, width in ((["c"], 4), ([], 1)):
        made = lego_table3.table(found(0.5, 0.4, ("a", "c")), references, ["a"], others, options)
        assert {len(row) for row in made.rows} == {len(made.titles)}
        assert made.titles[2:-1] == ["a", "seen", *["c", "left out", "all"][: width - 1]]
        (lego,) = (row for row in made.rows[: 2 + len(PAPERS)] if row[1] == LEGO)
        assert lego[2] == "0.500"
        assert lego[-1] == ""
        assert made.rows[2][-1].startswith("-10.0 ± ")


def test_the_sentences_are_those_of_the_numbers():
    text = lego_table3.verdict(found(0.5, 0.4), ["a"], ["b"])
    assert f"As published, seen tasks: LEGO is number 1 of {len(PAPERS)}, 10.0 ± 0.0 points ahead" in text
    assert "As published, left-out tasks: LEGO is number 1" in text
    assert "Scale chosen, all tasks: LEGO is number 1" in text
    text = lego_table3.verdict(found(0.4, 0.5), ["a"], [])
    last = len(ROWS[CHOSEN])
    assert f"Scale chosen, seen tasks: LEGO is number {last} of {last}, 10.0 ± 0.0 points behind" in text
    assert "(ahead in 0 of 2 seeds)" in text
    assert "left-out tasks" not in text
    assert "Scale chosen, all tasks" not in text


def test_how_alike_the_starts_are(adapters):
    assert lego_table3.mean_cosine(AdapterSet([adapters[0], adapters[0].renamed("copy")])) == pytest.approx(1)
    assert abs(lego_table3.mean_cosine(adapters)) < 0.2
