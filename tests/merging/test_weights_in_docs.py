"""What the docstring of each merger says of weights is what the contract checks."""

import re
from itertools import product

import numpy as np
import pytest
from sklearn.base import clone

from lorakit import FisherMerger, RegMeanMerger
from lorakit._sklearn import StrOptions
from lorakit.activations import Grams
from lorakit.discovery import all_estimators
from lorakit.gradients import Fisher
from lorakit.testing import make_adapters
from lorakit.testing._merger_checks import check_copies, check_negative_weights

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


@pytest.mark.parametrize("cls", all_estimators("merger").values(), ids=lambda cls: cls.__name__)
def test_the_docstring_says_whether_negative_weights_are_taken(cls):
    text = " ".join(cls.__doc__.split())
    text = text.partition(" weights : ")[2].partition(" strengths : ")[0]
    taken = cls.__name__ in ("Isotropizer", "SVCCalibrator") or any(merger._signed_weights for merger in variants(cls))
    assert ("Non-negative weights" in text) != taken


def one_at_a_time(cls):
    """The defaults, and each other value of each parameter that is a word or a switch and bears on weights."""
    yield cls()
    names = ("space", "rule", "variant", "disjoint", "vote", "sign_election", "convention", "rescale", "magprune")
    for name in sorted(set(names) & set(cls._parameter_constraints)):
        for constraint in cls._parameter_constraints[name]:
            words = sorted(constraint.options) if isinstance(constraint, StrOptions) else []
            for value in [*words, *([True, False] if constraint == "boolean" else [])]:
                yield cls(**{name: value})


VARIANTS = [m for cls in all_estimators("merger").values() if not cls.needs_data for m in one_at_a_time(cls)]


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")  # of rules that trim all at a low k
@pytest.mark.parametrize("merger", VARIANTS, ids=repr)
def test_what_it_says_holds_in_every_variant(merger):
    """The contract has the defaults; what depends on a parameter is here."""
    check_copies(clone(merger))
    check_negative_weights(clone(merger))


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
