"""The contract of all mergers, as far as a merger that trains all modules together can keep it."""

import pytest
import torch
from sklearn.base import clone
from tiny_heads import toy_forward, toy_inputs, toy_model

from lorakit import DistillMerger, LegoMerger
from lorakit.testing import MERGER_CHECKS
from lorakit.testing._common_checks import adapters_for, same_bits

OTHERWISE = {
    "check_deterministic": "modules are trained together, so what others are there matters: see below",
}


def merger(**options):
    defaults = {"model": toy_model(), "inputs": toy_inputs(), "forwards": toy_forward, "epochs": 2, "batch_size": 20}
    return DistillMerger(**defaults | options)


@pytest.mark.parametrize(
    "check", [check for check in MERGER_CHECKS if check.__name__ not in OTHERWISE], ids=lambda check: check.__name__
)
@pytest.mark.parametrize("start", [None, LegoMerger(random_state=0)], ids=["tsv", "lego"])
def test_contract(check, start):
    check(merger(start=start))


def test_equal_seeds_give_equal_bits_whatever_n_jobs():
    X = adapters_for(merger())
    first = merger(random_state=3).fit(X)
    same_bits(first.merged_, clone(first).fit(X).merged_)
    same_bits(first.merged_, clone(first).set_params(n_jobs=2).fit(X).merged_)
    other = clone(first).set_params(random_state=4).fit(X).merged_
    assert not torch.equal(first.merged_["layer.0"].A, other["layer.0"].A)
