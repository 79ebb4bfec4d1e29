"""Fused layers: the updates of their parts, one above the other, exactly and at no more rank than is needed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg.fused import join_outputs, slice_outputs

heights = st.lists(st.integers(1, 6), min_size=2, max_size=4)
widths, ranks, seeds = st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16)


def update(rng, d_out, d_in, r):
    return torch.randn(r, d_in, generator=rng).double(), torch.randn(d_out, r, generator=rng).double()


def dense(factors):
    return factors[1] @ factors[0]


def slices(a, b, sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice_outputs(a, b, start, start + size) for start, size in zip(starts, sizes, strict=True)]


@given(heights, widths, ranks, seeds)
def test_split_and_joined_again(sizes, d_in, r, seed):
    rng = torch.Generator().manual_seed(seed)
    a, b = update(rng, sum(sizes), d_in, r)
    parts = slices(a, b, sizes)
    torch.testing.assert_close(torch.cat([dense(part) for part in parts]), b @ a)
    assert all(len(part[0]) == r for part in parts)
    back = join_outputs(parts)
    assert torch.equal(back[0], a)
    assert torch.equal(back[1], b)


@given(heights, widths, st.data(), seeds)
def test_joined_and_split_again(sizes, d_in, data, seed):
    rng = torch.Generator().manual_seed(seed)
    parts = [update(rng, size, d_in, data.draw(ranks)) for size in sizes]
    a, b = join_outputs(parts)
    assert len(a) == b.shape[1] == sum(len(part[0]) for part in parts)
    torch.testing.assert_close(b @ a, torch.cat([dense(part) for part in parts]))
    for (a_back, b_back), part in zip(slices(a, b, sizes), parts, strict=True):
        assert torch.equal(a_back, part[0])
        assert torch.equal(b_back, part[1])


def test_units_that_some_parts_share():
    """Half of A is common to two of three layers: those units are not doubled."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (update(rng, size, 5, 2) for size in (4, 2, 3))
    k = (torch.stack([k[0][0], q[0][1]]), k[1])
    a, b = join_outputs([q, k, v])
    assert len(a) == 5
    torch.testing.assert_close(b @ a, torch.cat([dense(part) for part in (q, k, v)]))


def test_a_layer_without_an_update():
    rng = torch.Generator().manual_seed(0)
    q = update(rng, 4, 5, 2)
    a, b = join_outputs([3, q, 1])
    torch.testing.assert_close(b @ a, torch.cat([torch.zeros(3, 5).double(), dense(q), torch.zeros(1, 5).double()]))
    assert len(a) == 2
    assert [len(part[0]) for part in slices(a, b, [3, 4, 1])] == [0, 2, 0]


def test_equal_rows_of_one_layer_stay_two_units():
    a, b = torch.ones(2, 3), torch.tensor([[1.0, 2.0]])
    joined = join_outputs([(a, b), (a, b)])
    assert joined[0].shape == (2, 3)
    assert torch.equal(joined[1], torch.tensor([[1.0, 2.0], [1.0, 2.0]]))


def test_an_untrained_adapter_keeps_its_units():
    """B is zero before training; no unit belongs to another part."""
    a, b = torch.ones(2, 3), torch.zeros(4, 2)
    assert [tuple(part[0].shape) for part in slices(a, b, [1, 3])] == [(2, 3), (2, 3)]
    assert join_outputs(slices(a, b, [1, 3]))[0].shape == (2, 3)


def test_half_precision():
    a, b = torch.ones(1, 3, dtype=torch.bfloat16), torch.ones(2, 1, dtype=torch.bfloat16)
    joined = join_outputs([(a, b), (a * 2, b)])
    assert joined[0].dtype == joined[1].dtype == torch.bfloat16
    assert joined[0].shape == (2, 3)


def test_padding_is_no_part_of_any_layer():
    rng = torch.Generator().manual_seed(0)
    a, b = update(rng, 4, 3, 2)
    padded = torch.cat([a, torch.zeros(2, 3)]), torch.cat([b, torch.zeros(4, 2)], dim=1)
    assert [len(part[0]) for part in slices(*padded, [1, 3])] == [2, 2]
