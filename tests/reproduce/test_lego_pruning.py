"""Pruning: what is kept of an adapter, factors that serve all tasks, and what is said of it."""

import argparse

import lego_pruning
import numpy as np
import pytest
import torch
from adapters import norm
from lego_pruning import AS_IT_IS, CHOSEN, CUTS, METHODS

from lorakit import AdapterSet
from lorakit.testing import make_adapters


@pytest.fixture
def adapters(monkeypatch):
    made = AdapterSet(make_adapters(3, ranks=8, n_modules=2, d_in=48, d_out=40, random_state=0))
    monkeypatch.setattr(lego_pruning, "load_tasks", lambda tasks, seed, ranks: made)
    return made


def test_the_smallest_units_are_dropped(adapters):
    adapter = adapters[0]
    cut = lego_pruning.drop_smallest(adapter, 3)
    for module, factors in adapter.items():
        sizes = [torch.outer(factors.B[:, i], factors.A[i]).norm().item() for i in range(8)]
        kept = sorted(np.argsort(sizes)[-3:])
        assert cut[module].delta().allclose(sum(torch.outer(factors.B[:, i], factors.A[i]) for i in kept), atol=1e-4)
    assert norm(lego_pruning.drop_smallest(adapter, 8)) == pytest.approx(norm(adapter))


@pytest.mark.parametrize("k", CUTS[8])
def test_every_method_leaves_the_rank_and_svd_is_nearest(adapters, k):
    errors = {}
    for what in METHODS:
        found = lego_pruning.pruned(["a"], (8, what, k), seed=0)
        assert {max(cut.ranks) for cut, _ in found.values()} == {k}
        errors[what] = [error for _, error in found.values()]
    for what in METHODS:
        assert all(a <= b + 1e-6 for a, b in zip(errors["SVD"], errors[what], strict=True))


def test_rank_16_has_one_seed():
    assert list(lego_pruning.seeds_of(8, [3, 4])) == [3, 4]
    assert list(lego_pruning.seeds_of(16, [3, 4])) == [3]


def test_one_factor_serves_all_tasks(adapters, monkeypatch):
    wanted = dict(zip(adapters.names, (1.25, 1.5, 1.8), strict=True))
    cut = lego_pruning.pruned(["a"], (8, "SVD", 4), seed=0)
    seen = set()

    def accuracy(self, adapter, task):
        seen.add(self.split)
        return -abs(np.log(norm(adapter) / norm(cut[task][0]) / wanted[task]))

    monkeypatch.setattr(lego_pruning.Evaluator, "accuracy", accuracy)
    assert lego_pruning.choose(["a"], (8, "SVD", 4), seed=0, n=5) == 1.5
    assert seen == {"validation"}


def test_pruned_adapters_are_measured_as_they_are_and_scaled(adapters, monkeypatch):
    monkeypatch.setattr(lego_pruning, "right_of", lambda adapter, tasks, test: {tasks[0]: norm(adapter)})
    found, error = lego_pruning.measure(["a"], (8, "LEGO", 4), 0, 1.5, n=5)
    cut = lego_pruning.pruned(["a"], (8, "LEGO", 4), seed=0)
    for task in adapters.names:
        assert found[AS_IT_IS][task] == pytest.approx(norm(cut[task][0]))
        assert found[CHOSEN][task] == pytest.approx(1.5 * found[AS_IT_IS][task])
    assert error == pytest.approx(np.mean([e for _, e in cut.values()]))


def rights(*accuracies: float) -> dict[str, np.ndarray]:
    return {f"t{i}": np.arange(20) < round(20 * accuracy) for i, accuracy in enumerate(accuracies)}


def test_what_is_kept():
    own, base = [rights(0.8, 0.9)], rights(0.4, 0.7)
    assert lego_pruning.normalised([rights(0.4, 0.9)], own) == pytest.approx([0.75])
    assert lego_pruning.gain_kept([rights(0.6, 0.8)], own, base) == pytest.approx([0.5])


def made_results(rank: int) -> dict:
    scores = {"LEGO": 0.7, "SVD": 0.8, "smallest dropped": 0.65}
    return {
        (rank, what, k): {scale: [rights(scores[what], scores[what])] * 2 for scale in (AS_IT_IS, CHOSEN)}
        for what in METHODS
        for k in CUTS[rank]
    }


def test_the_sentences_are_those_of_the_numbers():
    found = made_results(8)
    text = lego_pruning.verdict(8, found, [rights(0.8, 0.8)] * 2)
    assert "With 0.5 of the parameters LEGO keeps 87.5%, in the paper 92% with 50%; SVD 100.0%," in text
    assert "LEGO and SVD, as it is: LEGO is behind it at rank 4, 2, 1." in text
    assert "LEGO and smallest dropped, as it is: LEGO is not told apart from it at rank 4, 2, 1." in text
    found[8, "LEGO", 2] = {scale: [rights(1, 1)] * 2 for scale in (AS_IT_IS, CHOSEN)}
    text = lego_pruning.verdict(8, found, [rights(0.8, 0.8)] * 2)
    assert "LEGO and SVD, as it is: LEGO is ahead of it at rank 2; behind it at rank 4, 1." in text
    assert "in the paper 79% with 33%" in lego_pruning.verdict(16, made_results(16), [rights(0.8, 0.8)] * 2)


def test_a_table_and_a_picture_of_both_ranks(tmp_path):
    found = made_results(8) | made_results(16)
    own, base = {8: [rights(0.8, 0.8)] * 2, 16: [rights(0.85, 0.8)] * 2}, rights(0.4, 0.5)
    lego_pruning.draw(found, own, base, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    cells = dict.fromkeys(found, 1.0)
    options = argparse.Namespace(n_test=20, n_validation=20, tasks=["t0", "t1"])
    errors = {cell: [0.5, 0.5] for cell in found}
    table = lego_pruning.table(8, found, errors, cells, own[8], base, options, None)
    assert {len(row) for row in table.rows} == {len(table.titles)}
    assert table.rows[1][:4] == ["4 (50 %)", "LEGO", "0.700 ± 0.000", "0.875 ± 0.000"]
    assert table.rows[1][5] == "-10.0 ± 4.9"
    assert table.rows[2][5] == ""
