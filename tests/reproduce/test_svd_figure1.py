"""Mode connectivity: the loss, the ends of the lines, the picture."""

import argparse

import evaluation
import numpy as np
import pytest
import svd_figure1
import torch
from adapters import norm
from evaluation import Evaluator
from svd_figure1 import MERGERS, cross_entropy
from tiny import Tiny, tiny_task

from lorakit import Adapter, AdapterSet, LoraFactors
from lorakit.metrics import ModeConnectivity
from lorakit.testing import make_adapters


def test_the_loss_is_the_mean_over_tasks_of_their_cross_entropies(monkeypatch):
    known = {"first": tiny_task(), "second": tiny_task("second", 1)}
    monkeypatch.setattr(evaluation, "load_task", known.__getitem__)
    test = Evaluator("test", 30, Tiny())
    adapter = Adapter({"dense": LoraFactors(torch.ones(1, 8), torch.ones(8, 1))}, name="a")
    expected = [
        torch.nn.functional.cross_entropy(torch.tensor(test.scores(adapter, t)), torch.tensor(test.labels(t))).item()
        for t in known
    ]
    assert cross_entropy(adapter, list(known), test) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.fixture(scope="module")
def adapters():
    return AdapterSet(make_adapters(3, ranks=8, n_modules=1, d_in=48, d_out=40, random_state=0))


def test_a_line_between_merges_ends_in_them(adapters, monkeypatch):
    monkeypatch.setattr(svd_figure1, "load_tasks", lambda tasks, seed: adapters)
    monkeypatch.setattr(svd_figure1, "cross_entropy", lambda adapter, tasks, evaluator: norm(adapter))
    targets = {"LEGO": 0.5, "TSV": 2.0}
    line = svd_figure1.between_merges(["a"], ("LEGO", "TSV"), targets, seed=0, n=1)
    one = np.mean([norm(a) for a in adapters])
    assert line.losses[[0, -1]] == pytest.approx([0.5 * one, 2 * one], rel=1e-3)
    assert set(targets) <= set(MERGERS)


def test_a_line_between_tasks_is_of_updates_and_of_factors(adapters, monkeypatch):
    monkeypatch.setattr(svd_figure1, "load_tasks", lambda tasks, seed: adapters[:2])
    monkeypatch.setattr(svd_figure1, "cross_entropy", lambda adapter, tasks, evaluator: norm(adapter))
    found = svd_figure1.between_tasks(("a", "b"), seed=0, n=1)
    assert found["updates"].losses[[0, -1]] == pytest.approx([norm(adapters[0]), norm(adapters[1])], rel=1e-5)
    factors = [a.values() for a in adapters[:2]]
    middle = sum(next(iter(factors)).delta() for factors in factors) / 2
    assert found["updates"].losses[5] == pytest.approx(middle.norm().item(), rel=1e-4)
    assert found["factors"].losses[5] != pytest.approx(found["updates"].losses[5], rel=0.01)


def curve(middle: float) -> ModeConnectivity:
    return ModeConnectivity(np.array([0.0, 0.5, 1.0]), np.array([1.0, middle, 2.0]), ("b", "a"), "updates")


def test_the_sentences_are_those_of_the_numbers():
    seeds = [{"a, b": {"updates": curve(m), "factors": curve(1.9)}} for m in (1.0, 1.6)]
    text = svd_figure1.verdict(seeds)
    assert "multiplied line is nowhere above the chord in 1 of 2 cases; its largest barrier is 0.100." in text
    assert "direct line is nowhere above the chord in 0 of 2 cases; its largest barrier is 0.400." in text
    assert "The direct line is nowhere below the multiplied one in 2 of 2." in text


def test_a_picture_is_drawn_and_its_table_filled(tmp_path):
    seeds = [{f"a{i}, b": {"updates": curve(1.1), "factors": curve(1.9)} for i in range(5)}]
    svd_figure1.draw(seeds, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    table = svd_figure1.table(seeds, argparse.Namespace(n_test=10))
    assert table.rows[0] == ["a0, b", "1.500", "1.100", "0.000", "1.900", "0.400"]
