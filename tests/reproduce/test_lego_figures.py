"""LEGO's figures: whose units are near, what clusters hold, what is said, and that pictures are drawn."""

import argparse

import figures_norms
import figures_scores
import figures_units
import numpy as np
import pytest
import torch
from figures_norms import OWN, SHARED
from figures_scores import BEST, METHODS, REWEIGHTING
from figures_units import PARTS
from lego_tables67 import AS_PUBLISHED, CHOSEN
from report import Report
from torch import nn

from lorakit import Adapter, AdapterSet, LegoMerger, LoraFactors
from lorakit.testing import make_adapters

MODULE = figures_norms.MODULE


def around(centres: torch.Tensor, spread: float, seed: int, n: int = 4) -> Adapter:
    """An adapter whose n units lie around one point each half."""
    generator = torch.Generator().manual_seed(seed)
    units = centres + spread * torch.randn(n, len(centres), generator=generator)
    half = len(centres) // 2
    return Adapter({MODULE: LoraFactors(units[:, :half], units[:, half:].T.contiguous())}, name=f"a{seed}")


def test_neighbours_of_domains_that_there_are():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 24, generator=generator)
    adapters = AdapterSet([around(centres[i % 4], 0.3, seed=i) for i in range(8)])
    for part in PARTS:
        found = figures_units.neighbours(adapters, [str(i % 4) for i in range(8)], part)
        assert found["domain"] == 1
        assert found["p"] < 0.05
        assert found["domain chance"] == pytest.approx(1 / 7, abs=0.03)
        assert found["own chance"] == pytest.approx(3 / 31)


def test_neighbours_of_domains_that_there_are_not():
    adapters = AdapterSet([around(torch.zeros(24), 1, seed=i) for i in range(12)])
    found = figures_units.neighbours(adapters, [str(i % 3) for i in range(12)], PARTS[0])
    assert found["p"] > 0.05
    assert abs(found["own"] - found["own chance"]) < 0.2
    alone = figures_units.neighbours(adapters, [str(i) for i in range(12)], PARTS[0])
    assert np.isnan(alone["domain"])


def test_adapters_that_are_alone_in_their_domain_are_left_out():
    counts = np.array([[0.0, 3, 1], [2, 0, 2], [9, 9, 0]])
    assert figures_units.within_domains(counts, np.array([0, 0, 1])) == pytest.approx(5 / 8)


def test_clusters_of_a_shared_start_are_its_rows():
    start, generator = torch.randn(4, 30), torch.Generator().manual_seed(0)
    adapters = AdapterSet(
        Adapter({MODULE: LoraFactors(start, 0.05 * torch.randn(20, 4, generator=generator))}, name=str(i))
        for i in range(5)
    )
    merger = LegoMerger(k=4, random_state=0).fit(adapters)
    assert figures_units.row_information(merger, adapters) == pytest.approx(1)
    apart = AdapterSet(make_adapters(5, ranks=4, n_modules=1, d_in=30, d_out=20, random_state=0))
    assert figures_units.row_information(LegoMerger(k=4, random_state=0).fit(apart), apart) < 0.3


@pytest.mark.parametrize("sign", [1, -1])
def test_the_relation_has_the_sign_of_the_numbers(sign):
    text = figures_units.related(np.arange(8.0), sign * np.arange(8.0) ** 2)
    assert f"{sign:+.2f} (p = 0)." in text
    assert "which chance explains as well" in figures_units.related(np.arange(4.0), np.array([1.0, 3.0, 2.0, 1.5]))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dense = nn.Embedding(9, 3), nn.Linear(3, 2)

    def forward(self, input_ids, attention_mask):
        return self.dense(self.embedding(input_ids))


def test_inputs_leave_padding_out():
    model = Model()
    batches = [
        {"input_ids": torch.tensor([[1, 2, 0], [3, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])},
        {"input_ids": torch.tensor([[4, 5]]), "attention_mask": torch.tensor([[1, 1]])},
    ]
    found = figures_norms.inputs_of(model, "dense", batches)
    assert found.equal(model.embedding.weight[torch.tensor([1, 2, 3, 4, 5])])
    assert len(figures_norms.inputs_of(model, "dense", batches, most=2)) == 2
    assert not model.dense._forward_pre_hooks


def test_both_reweightings_are_the_first_of_equals():
    found = {what: [[0.5, 0.6], [0.5, 0.6]] for what in (*REWEIGHTING, BEST)}
    assert "best at 2 of 2 ranks (best by rank: 4: both, 8: both)" in figures_scores.reweighting_verdict(found, [4, 8])
    found["none"] = [[0.7, 0.5], [0.7, 0.5]]
    text = figures_scores.reweighting_verdict(found, [4, 8])
    assert "best at 1 of 2 ranks (best by rank: 4: none, 8: both)" in text
    assert "none 20.0, parameters 10.0" in text


def test_who_is_ahead_by_number_of_adapters():
    found = {f"{what}, {scale}": [[0.9, 0.5]] for what in METHODS for scale in (AS_PUBLISHED, CHOSEN)}
    found[f"LEGO, {CHOSEN}"] = [[0.8, 0.7]]
    text = figures_scores.count_verdict(found, [2, 15])
    assert "As published, LEGO is ahead of the others at 0 of 2" in text
    assert "Chosen norm, LEGO is ahead of the others at 1 of 2" in text
    assert "LEGO -10.0" in text


def named(adapters: list[Adapter]) -> AdapterSet:
    """The same with one module of the encoder's name."""
    return AdapterSet(Adapter({MODULE: a["layer.0"]}, name=a.name) for a in adapters)


@pytest.mark.parametrize("figure", [figures_norms.figure4, figures_units.figure10, figures_units.composition])
def test_pictures_of_both_starts_with_a_row_each(figure, tmp_path, monkeypatch):
    made = named(make_adapters(6, ranks=8, n_modules=1, d_in=64, d_out=50, random_state=0))
    monkeypatch.setattr(figures_norms, "load_tasks", lambda tasks, seed, shared_start=False: made)
    monkeypatch.setattr(figures_units, "SHUFFLES", 50)
    options = argparse.Namespace(
        seeds=[0, 1], tasks=["icd10", "movie", "tweets"], shared_start=True, figures=tmp_path, page=None
    )
    table = figure(options, Report("lego_figures", options))
    assert {len(row) for row in table.rows} == {len(table.titles)}
    assert [row[0] for row in table.rows if row[0]] == [OWN, SHARED]
    assert table.picture.stat().st_size > 10_000
