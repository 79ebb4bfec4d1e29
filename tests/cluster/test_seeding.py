"""Greedy k-means++: what one number of centres or one start gets does not depend on the others."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.cluster._partition import plusplus
from lorakit.cluster._rows import distances_from, squared_distances


def held(points):
    return partial(np.take, squared_distances(points), axis=0)


def points(seed, n=30, d=6):
    rng = np.random.default_rng(seed)
    return held(rng.standard_normal((n, d))), rng.uniform(0.1, 2, n)


@given(
    seed=st.integers(0, 2**31 - 1), ks=st.lists(st.integers(1, 29), min_size=1, max_size=6), n_init=st.integers(1, 4)
)
def test_every_number_as_if_alone(seed, ks, n_init):
    distances, weights = points(seed)
    together = plusplus(distances, weights, ks, n_init, np.random.RandomState(seed))
    assert [seeds.shape for seeds in together] == [(n_init, k) for k in ks]
    for k, seeds in zip(ks, together, strict=True):
        (alone,) = plusplus(distances, weights, [k], n_init, np.random.RandomState(seed))
        np.testing.assert_array_equal(seeds, alone)
        assert all(len(set(start)) == k for start in seeds)


def test_more_starts_leave_the_first_ones_as_they_are():
    distances, weights = points(0)
    few, many = (plusplus(distances, weights, [9], n, np.random.RandomState(0))[0] for n in (2, 7))
    np.testing.assert_array_equal(many[:2], few)
    assert len({tuple(start) for start in many}) > 1


def test_the_state_moves_on():
    distances, weights = points(0)
    rng = np.random.RandomState(0)
    first, second = (plusplus(distances, weights, [9], 3, rng)[0] for _ in range(2))
    assert (first != second).any()


def test_what_lies_far_and_weighs_much_is_drawn():
    rng = np.random.default_rng(0)
    rows = np.vstack([rng.standard_normal((40, 3)) * 1e-3, [[100, 0, 0], [0, 100, 0]]])
    (seeds,) = plusplus(held(rows - rows.mean(axis=0)), np.ones(42), [3], 20, np.random.RandomState(0))
    assert all({40, 41} < set(start) for start in seeds)
    (first,) = plusplus(*points(0), [1], 50, np.random.RandomState(0))
    heavy = np.where(np.arange(30) == 7, 1e9, 1.0)
    (drawn,) = plusplus(points(0)[0], heavy, [1], 50, np.random.RandomState(0))
    assert set(drawn[:, 0]) == {7}
    assert len(set(first[:, 0])) > 5


@pytest.mark.parametrize("n_distinct", [1, 3])
def test_more_centres_than_places(n_distinct):
    """Where all distances are zero, something is chosen all the same."""
    rows = np.repeat(np.eye(3)[:n_distinct], 5, axis=0)
    (seeds,) = plusplus(held(rows), np.ones(len(rows)), [4], 3, np.random.RandomState(0))
    assert ((seeds >= 0) & (seeds < len(rows))).all()
    assert all(len({start // 5 for start in starts}) == n_distinct for starts in seeds)


@given(seed=st.integers(0, 2**31 - 1), n=st.integers(3, 60), d=st.integers(1, 5))
def test_distances_that_are_not_held_give_the_same(seed, n, d):
    rng = np.random.default_rng(seed)
    rows, weights = rng.standard_normal((n, d)), rng.uniform(0.1, 2, n)
    rows -= rows.mean(axis=0)
    norms = (rows**2).sum(axis=1)
    chosen = rng.integers(n, size=(2, 3))
    computed = partial(distances_from, rows, norms)
    np.testing.assert_allclose(computed(chosen), held(rows)(chosen), atol=1e-12)
    assert (computed(chosen) >= 0).all()
    ks = [n - 1, 1 + n // 3]
    for ours, theirs in zip(
        *(plusplus(distances, weights, ks, 3, np.random.RandomState(seed)) for distances in (computed, held(rows))),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
