"""What the docstring of each merger says of weights is what the contract checks."""

import re
from itertools import product

import numpy as np
import pytest

from lorakit import FisherMerger, RegMeanMerger
from lorakit._sklearn import StrOptions
from lorakit.activations import Grams
from lorakit.discovery import all_estimators
from lorakit.gradients import Fisher
from lorakit.testing import make_adapters
from lorakit.testing._merger_checks import check_copies

YES = re.compile(r"A weight of 2 equals listing the adapter twice")
NO = re.compile(r"A weight of 2 does not equal listing the adapter twice: \w|adapter twice[^.]*; not (in|for) ")


def variants(cls):
    """One instance for each choice of its parameters that are words."""
    choices = {
        name: sorted(option for c in constraints if isinstance(c, StrOptions) for option in c.options)
        for name, constraints in cls._parameter_constraints.items()
        if name in ("space", "rule", "variant", "disjoint")
    }
    return [cls(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())]


@pytest.mark.parametrize("cls", all_estimators("merger").values(), ids=lambda cls: cls.__name__)
def test_the_docstring_says_what_holds(cls):
    text = " ".join(cls.__doc__.split())
    text = text.partition(" weights : ")[2].partition(" scale : ")[0]
    holds = {merger.weights_as_copies for merger in variants(cls)}
    if cls.__name__ == "Isotropizer":  # it depends on the merger that it is given
        holds = {True, False}
    assert bool(YES.search(text)) == (True in holds)
    assert bool(NO.search(text)) == (False in holds)


def test_what_it_says_holds_for_mergers_that_need_data():
    """The others are in test_contract.py."""
    X = make_adapters(ranks=(5, 5, 5), random_state=0)
    rng = np.random.default_rng(0)
    inputs = {a.name: {module: rng.standard_normal((40, 24)) for module in a} for a in X}
    grams = {name: Grams({m: x.T @ x / len(x) for m, x in modules.items()}) for name, modules in inputs.items()}
    fisher = {a.name: Fisher({m: (f.A**2, f.B**2) for m, f in a.items()}) for a in X}
    # the contract lists task0 again under the name 'lacking'
    check_copies(RegMeanMerger(grams=grams | {"lacking": grams["task0"]}))
    check_copies(FisherMerger(fisher=fisher | {"lacking": fisher["task0"]}))
