"""LEGO's seeds: what is merged, what is compared with what, and what is said of it."""

import argparse

import lego_seeds
import numpy as np
import pytest
import torch
from lego_seeds import FROM_WARD, SEEDED, WARD

from lorakit import Adapter, AdapterSet, LoraFactors, save_adapter
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters

TASKS = ("t0", "t1")


@pytest.fixture
def adapters():
    made = make_adapters(2, ranks=12, n_modules=2, d_in=40, d_out=32, random_state=0)
    return AdapterSet(adapter.renamed(task) for adapter, task in zip(made, TASKS, strict=True))


def rights(*accuracies: float) -> dict[str, np.ndarray]:
    return {task: np.arange(40) < round(40 * accuracy) for task, accuracy in zip(TASKS, accuracies, strict=True)}


def test_tasks_are_those_of_the_folder(adapters, tmp_path):
    save_adapter(adapters[0], tmp_path / "t0")
    assert lego_seeds.tasks_of(["t0", "t1"], tmp_path) == ["t0"]
    assert lego_seeds.tasks_of(["t0", "t1"], None) == ["t0", "t1"]
    (found,) = lego_seeds.adapters_of(("t0",), tmp_path, 0)
    assert found.name == "t0"
    assert all(torch.equal(x, y) for m in found for x, y in zip(found[m], adapters[0][m], strict=True))


def test_only_the_seeds_draw(adapters):
    ways = lego_seeds.ways(3)
    assert ways == [(SEEDED, 0), (SEEDED, 1), (SEEDED, 2), (FROM_WARD, 0), (WARD, 0)]
    merges = {way: lego_seeds.merged_of(adapters, way) for way in ways}
    assert {max(merged.ranks) for merged, _ in merges.values()} == {16}
    assert relative_error(merges[SEEDED, 0][0], merges[SEEDED, 1][0]) > 0.1
    for what in (FROM_WARD, WARD):
        again, _ = lego_seeds.merged_of(adapters, (what, 7))
        assert relative_error(again, merges[what, 0][0]) == 0
    assert merges[FROM_WARD, 0][1] <= merges[WARD, 0][1] * (1 + 1e-9)  # k-means lowers the inertia


def test_decisions_and_reports_are_of_other_texts(adapters, monkeypatch):
    seen = []

    class Evaluator:
        def __init__(self, split, n):
            self.split, self.n = split, n

    def right_of(adapter, tasks, evaluator):
        seen.append((evaluator.split, evaluator.n))
        return rights(0.5, 0.5)

    monkeypatch.setattr(lego_seeds, "Evaluator", Evaluator)
    monkeypatch.setattr(lego_seeds, "right_of", right_of)
    monkeypatch.setattr(lego_seeds, "right_of_own", lambda adapters, evaluator: rights(1, 1))
    monkeypatch.setattr(lego_seeds, "adapters_of", lambda tasks, folder, seed: adapters)
    options = argparse.Namespace(tasks=TASKS, adapters=None, seeds=[0], n_seeds=2, n_validation=30, n_test=40)
    made = lego_seeds.apart(options, lego_seeds.Processes(1))
    assert seen == [("validation", 30)] * 4 + [("test", 40)] * 4
    assert made.titles[3:] == ["validation: accuracy", "kept", "test: accuracy", "kept"]
    assert [len(row) for row in made.rows] == [7] * 3


def test_the_sentences_are_those_of_the_numbers(adapters):
    ways = lego_seeds.ways(2)
    right = [rights(0.5, 0.5), rights(0.7, 0.7), rights(0.8, 0.8), rights(0.6, 0.6)]
    made = lego_seeds.table("name", "A caption.", adapters, ways, {"test": right}, {"test": rights(1, 1)})
    (seeds, from_ward, ward) = made.rows
    assert seeds[0] == SEEDED
    assert seeds[1].startswith("1.0000 ± ")
    assert seeds[3:] == ["0.600 ± 0.141 (0.500 to 0.700)"] * 2
    assert (from_ward[3], ward[3]) == ("0.800", "0.600")
    merges = [lego_seeds.merged_of(adapters, way)[0] for way in ways]
    moved = np.mean([relative_error(merges[2], merges[i]) for i in (0, 1)])
    assert from_ward[2].startswith(f"{moved:.2f} ± ")
    assert "On test texts 20.0 points lie between the best seed and the worst." in made.note
    assert f"{FROM_WARD} is +20.0 ± " in made.note
    assert "and ahead of 2 of 2 seeds." in made.note
    assert f"{WARD} is +0.0 ± " in made.note


def test_shipped_texts_are_judged_with_the_update_and_without_it_afterwards(adapters, monkeypatch):
    base = torch.nn.Module()
    base.layer = torch.nn.Linear(3, 2, bias=False)
    base.layer.weight.data.zero_()
    update = Adapter({"layer": LoraFactors(torch.eye(3)[:1], torch.tensor([[0.0], [2.0]]))}, name="update")

    def head(model, texts):
        return model.layer(torch.tensor([[text == "yes", 0.0, 0.0] for text in texts])) + torch.tensor([1.0, 0.0])

    monkeypatch.setattr(lego_seeds, "_base", lambda: base)
    monkeypatch.setattr(lego_seeds, "_task", lambda name, n: (["yes", "no"][:n], torch.tensor([1, 1])[:n], head))
    assert lego_seeds.right_of_shipped(update, ["t0"], 2)["t0"].tolist() == [True, False]
    assert not base.layer.weight.any()
