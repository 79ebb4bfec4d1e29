"""Where PEFT's ``add_weighted_adapter`` computes the same thing, it gives the same update."""

from __future__ import annotations

import pytest
import torch
from tiny_models import randomise
from torch import nn

from lorakit import (
    Adapter,
    AverageMerger,
    ConcatMerger,
    DareMerger,
    LoraFactors,
    MagnitudeMerger,
    SVDMerger,
    TiesMerger,
)
from lorakit.merging._tiles import Stack
from lorakit.metrics import relative_error

peft = pytest.importorskip("peft")
merge_utils = pytest.importorskip("peft.utils.merge_utils")
pytestmark = pytest.mark.interop

NAMES = ["one", "two", "three"]
THIRDS = [1 / 3] * 3


def tuned(ranks, use_rslora=False):
    """A model with one random LoRA adapter per rank, B not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 16)).double()
    for name, rank in zip(NAMES, ranks, strict=True):
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["0", "2"], use_rslora=use_rslora)
        if name == NAMES[0]:
            model = peft.get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            model.add_adapter(name, config)
    randomise(model, seed=0, size=1)
    return model


def taken(model, name):
    """One adapter of a PEFT model as ours, through the update that PEFT itself computes."""
    layers = {"0": model.base_model.model[0], "2": model.base_model.model[2]}
    modules = {}
    for module, layer in layers.items():
        scaling = layer.scaling[name]
        modules[module] = LoraFactors(layer.lora_A[name].weight, scaling * layer.lora_B[name].weight)
        torch.testing.assert_close(modules[module].delta(), layer.get_delta_weight(name).detach())
    return Adapter(modules, name=name)


def merged_by_peft(model, weights, combination_type, **options):
    model.add_weighted_adapter(NAMES, weights, "merged", combination_type=combination_type, **options)
    return taken(model, "merged")


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 4, 6)], ids=str)
def test_cat(ranks):
    model = tuned(ranks)
    ours = ConcatMerger().fit([taken(model, name) for name in NAMES]).merged_
    theirs = merged_by_peft(model, THIRDS, "cat")
    assert ours.ranks == theirs.ranks == (sum(ranks),)
    assert relative_error(ours, theirs) < 1e-7


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 4, 6)], ids=str)
@pytest.mark.parametrize("weights", [THIRDS, [0.5, 0.3, 0.2]], ids=str)
def test_svd(ranks, weights):
    model = tuned(ranks)
    ours = SVDMerger(k=5, weights=weights).fit([taken(model, name) for name in NAMES]).merged_
    theirs = merged_by_peft(model, weights, "svd", svd_rank=5)
    assert ours.ranks == theirs.ranks == (5,)
    assert relative_error(ours, theirs) < 1e-6


def test_linear_is_the_direct_merge_times_the_number_of_adapters():
    """PEFT weighs A and B by the square roots of the weights, the papers by the weights.

    It also leaves each adapter's scaling in its factors unevenly; equal scalings, as here, make that no difference.
    """
    model = tuned((4, 4, 4))
    ours = AverageMerger(scale=3.0).fit([taken(model, name) for name in NAMES]).merged_
    assert relative_error(ours, merged_by_peft(model, THIRDS, "linear")) < 1e-6


@pytest.mark.parametrize(
    ("merger", "combination_type", "options"),
    [
        (ConcatMerger(), "cat", {}),
        (SVDMerger(k=5), "svd", {"svd_rank": 5}),
        (AverageMerger(), "linear", {}),
        (MagnitudeMerger(density=0.5, k=5), "magnitude_prune_svd", {"svd_rank": 5, "density": 0.5}),
    ],
    ids=str,
)
def test_strengths_are_the_weights_of_peft(merger, combination_type, options):
    strengths = [0.7, 0.5, 0.2]
    model = tuned((4, 4, 4))
    ours = merger.set_params(strengths=strengths).fit([taken(model, name) for name in NAMES]).merged_
    assert relative_error(ours, merged_by_peft(model, strengths, combination_type, **options)) < 1e-6


@pytest.mark.parametrize("density", [0.3, 0.7])
def test_ties_svd(density):
    model = tuned((2, 4, 6))
    ours = TiesMerger(k=5, density=density).fit([taken(model, name) for name in NAMES]).merged_
    theirs = merged_by_peft(model, [1.0] * 3, "ties_svd", svd_rank=5, density=density)
    assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("vote", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_rule_itself(density, vote):
    """Of an even number of adapters, so that votes by number are often undecided."""
    torch.manual_seed(0)
    stack = torch.randn(4, 15, 12, dtype=torch.float64)
    theirs = merge_utils.ties(list(stack), torch.ones(4, dtype=torch.float64), density, vote)
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    ours = TiesMerger(density=density, vote=vote)._rule(Stack(stack), weights, [None] * 4)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("vote", ["total", "frequency"])
def test_dare_ties(vote):
    torch.manual_seed(3)
    stack = torch.randn(4, 15, 12, dtype=torch.float64)
    torch.manual_seed(7)
    theirs = merge_utils.dare_ties(list(stack), torch.ones(4, dtype=torch.float64), 0.6, vote)
    torch.manual_seed(7)
    kept = torch.stack([torch.bernoulli(torch.full_like(x, 0.6)) * x / 0.6 for x in stack])
    merger = DareMerger(sign_election=True if vote == "total" else vote)
    torch.testing.assert_close(merger._combine(kept, torch.full((4,), 0.25, dtype=torch.float64), None), theirs)
