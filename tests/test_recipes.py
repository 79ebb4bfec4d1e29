"""Estimators as data, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from lorakit import LegoMerger, MSUKMeans, RankBudget, SVDMerger
from lorakit._recipes import RecipeError, expression_of, from_recipe, recipe_of, recipe_text
from lorakit.discovery import all_estimators

KNOWN = {
    cls.__name__: cls
    for cls in [*all_estimators("merger").values(), *all_estimators("transformer").values(), RankBudget, MSUKMeans]
}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.booleans() | st.integers() | st.text()
VALUES = st.recursive(
    SCALARS | st.frozensets(KEYS, max_size=3).map(set),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def there_and_back(estimator):
    return from_recipe(json.loads(json.dumps(recipe_of(estimator), sort_keys=True)), KNOWN)


@given(VALUES)
def test_every_plain_value_comes_back(value):
    """Compared as texts: a NaN is no other's equal, and True is 1."""
    found = there_and_back(SVDMerger(weights=value)).weights
    if "{" in repr(value):  # a set has no order
        np.testing.assert_equal(found, value)
    else:
        assert repr(found) == repr(value)


@pytest.mark.parametrize("cls", KNOWN.values(), ids=lambda cls: cls.__name__)
def test_every_estimator_comes_back(cls):
    made = cls(4) if cls is RankBudget else cls(random_state=0) if "random_state" in vars(cls()) else cls()
    assert repr(there_and_back(made)) == repr(made)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.True_, True),
        (np.str_("law"), "law"),
        (np.float64("inf"), float("inf")),
        (np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        (RankBudget(4.5, max_rank=8), RankBudget(4.5, 8)),
    ],
)
def test_values_of_numpy(given, expected):
    found = there_and_back(SVDMerger(weights=given)).weights
    assert found == expected
    assert type(found) is type(expected)


def test_estimators_in_estimators():
    inner = MSUKMeans(n_clusters=3, random_state=1)
    recipe = recipe_of(LegoMerger(clusterer=inner, random_state=0))
    assert recipe["params"]["clusterer"]["class"] == "MSUKMeans"
    assert (
        there_and_back(LegoMerger(clusterer=inner, random_state=0)).clusterer.get_params()
        == MSUKMeans(n_clusters=3, random_state=1).get_params()
    )
    made = from_recipe(recipe, KNOWN, device="meta", n_jobs=2)
    assert made.clusterer.device == "meta"
    assert (made.device, made.n_jobs) == ("meta", 2)


def loop():
    found = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros((200, 200)), "ndarray of shape (200, 200)"),
        (np.array(["a"]), "ndarray of shape (1,)"),
        (KMeans(), "KMeans()"),
        (np.random.RandomState(0), "RandomState(MT19937)"),
        (test_values_of_numpy, "<function test_values_of_numpy>"),
        (KMeans, "<class 'sklearn.cluster._kmeans.KMeans'>"),
        (b"x", "b'x'"),
        (loop(), "[[...]]"),
    ],
    ids=["large array", "array of texts", "estimator", "random state", "function", "class", "bytes", "loop"],
)
def test_what_is_only_named(value, named):
    recipe = recipe_of(SVDMerger(weights=value))
    assert named in recipe_text(recipe)
    with pytest.raises(RecipeError, match=r"SVDMerger had weights=.*, which no record can hold"):
        from_recipe(recipe, KNOWN)


def test_the_text_is_that_of_the_constructor():
    made = SVDMerger(k=RankBudget(3), weights={"a": (1.0,), "b": {2}}, scale=np.float64("inf"))
    assert eval(recipe_text(recipe_of(made)), KNOWN | {"inf": float("inf")}).get_params() == made.get_params()


def test_the_expression_makes_it_again():
    made = SVDMerger(k=RankBudget(3), weights={"a": (1.0,), "b": {2}}, scale=np.float64("inf"), n_jobs=2)
    text = expression_of(recipe_of(made), KNOWN)
    assert text == "SVDMerger(k=RankBudget(mean=3), weights={'a': (1.0,), 'b': {2}}, scale=float('inf'))"
    assert recipe_of(eval(text, KNOWN)) == recipe_of(made)


@pytest.mark.parametrize(
    "recipe",
    [
        {"class": "SVDMerger", "params": {"weights": {"unrecorded": "a function"}}},
        {"class": "SVDMerger", "params": {"weights": [{"object": 1, "other": 2}]}},
        {"class": "SVDMerger", "params": {"k=print()": 4}},
        {"class": "Gone", "params": {}},
        {"class": "SVDMerger", "params": {"k": {"class": "Gone", "params": {}}}},
    ],
    ids=["only named", "no form", "no name", "no class", "no class inside"],
)
def test_what_no_expression_makes(recipe):
    assert expression_of(recipe, KNOWN) is None
