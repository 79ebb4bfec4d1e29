"""Trimming, sign election and the disjoint mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg import disjoint_max, disjoint_mean, disjoint_sum, elect_sign, tally_votes, trim

STACK = torch.tensor([[3.0, -1.0, 0.5, -4.0], [1.0, 2.0, -0.5, -3.0]])
EQUAL = torch.tensor([0.5, 0.5])


def test_trim_keeps_the_largest():
    assert torch.equal(trim(STACK, 0.5), torch.tensor([[3.0, 0, 0, -4.0], [0, 2.0, 0, -3.0]]))
    assert torch.equal(trim(STACK, 0.5, count="official"), torch.tensor([[3.0, -1, 0, -4.0], [1, 2.0, 0, -3.0]]))


@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.sampled_from(["exact", "official"]))
def test_trim_counts(seed, density, count):
    stack = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(seed))
    kept = trim(stack, density, count=count)
    n = max(int(density * 63), 1) if count == "exact" else min(int(density * 63) + 1, 63)
    assert ((kept != 0).flatten(1).sum(dim=1) == n).all()
    assert torch.equal(kept[kept != 0], stack[kept != 0])
    smallest_kept = torch.where(kept != 0, kept.abs(), torch.inf).flatten(1).amin(dim=1)
    largest_cut = torch.where(kept == 0, stack.abs(), 0).flatten(1).amax(dim=1)
    assert (largest_cut <= smallest_kept).all()


def test_trim_leaves_its_input():
    before = STACK.clone()
    trim(STACK, 0.25)
    trim(STACK, 1.0, count="official").zero_()
    assert torch.equal(STACK, before)


def test_sign_election():
    assert elect_sign(STACK, EQUAL).tolist() == [1, 1, 1, -1]  # a sum of zero elects plus
    heavy = torch.tensor([0.9, 0.1])
    assert elect_sign(STACK, heavy).tolist() == [1, -1, 1, -1]


def test_what_elects_no_sign():
    stack = torch.tensor([[-1.0, -2.0, 1.0], [-1.0, -1.0, -1.0]])
    assert tally_votes(stack, EQUAL).tolist() == [-1, -1, 0]
    for undecided in (-1.0, 0.0, 1.0):
        assert elect_sign(stack, EQUAL, undecided=undecided).tolist() == [-1, -1, undecided]


def test_a_vote_by_number():
    stack = torch.tensor([[9.0, -9.0, 0.0, 1.0], [-1.0, 1.0, -1.0, -2.0], [-1.0, 1.0, 0.0, 0.0]])
    equal = torch.full((3,), 1 / 3)
    assert tally_votes(stack, equal).tolist() == [1, -1, -1, -1]
    assert tally_votes(stack, equal, vote="frequency").tolist() == [-1, 1, -1, 0]
    heavy = torch.tensor([0.6, 0.2, 0.2])
    assert tally_votes(stack, heavy, vote="frequency").tolist() == [1, -1, -1, 1]


@given(st.integers(1, 40), st.sampled_from([torch.float32, torch.float64]))
def test_entries_that_cancel_are_undecided(half, dtype):
    """Whatever 1/6 or 1/14 rounds to, and whether or not the processor fuses products with sums."""
    entry = torch.randn(half, 5, dtype=dtype)
    stack = torch.cat([entry[:1].expand(half, 5), -entry[:1].expand(half, 5)])[torch.randperm(2 * half)]
    weights = torch.full((2 * half,), 1 / (2 * half), dtype=dtype)
    assert not tally_votes(torch.stack([0 * entry[0], entry[0], -entry[0]]), weights[:1].expand(3)).any()
    assert not tally_votes(stack, weights, vote="frequency").any()
    unequal = torch.tensor([1 / 6, 2 / 6, 3 / 6], dtype=dtype)
    assert not tally_votes(torch.stack([entry[0], entry[0], -9 * entry[0]]), unequal, vote="frequency").any()
    assert torch.equal(tally_votes(stack[1:], weights[1:], vote="frequency"), -torch.sign(stack[0]))


def test_disjoint_sum_and_max():
    sign = elect_sign(STACK, EQUAL)
    assert disjoint_sum(STACK, sign, EQUAL).tolist() == [2.0, 1.0, 0.25, -3.5]
    assert disjoint_max(STACK, sign, EQUAL).tolist() == [3.0, 2.0, 0.5, -4.0]
    assert disjoint_max(-STACK.abs(), torch.ones(4), EQUAL).tolist() == [0, 0, 0, 0]


def test_disjoint_mean_averages_what_agrees():
    sign = elect_sign(STACK, EQUAL)
    assert disjoint_mean(STACK, sign, EQUAL).tolist() == [2.0, 2.0, 0.5, -3.5]


def test_doubling_a_weight_is_listing_twice():
    sign = torch.ones(4)
    twice = torch.cat([STACK, STACK[:1]])
    once = disjoint_mean(STACK, sign, torch.tensor([2 / 3, 1 / 3]))
    torch.testing.assert_close(disjoint_mean(twice, sign, torch.full((3,), 1 / 3)), once)


def test_nothing_agrees():
    assert disjoint_mean(-STACK.abs(), torch.ones(4), EQUAL).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("count", ["exact", "official"])
def test_full_density_keeps_everything(count):
    assert torch.equal(trim(STACK, 1.0, count=count), STACK)
