"""Frames stand for long columns: the Gram path gives what QR gives, and steps aside where it would not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit import load_adapters
from lorakit.linalg import compress, products, singular_values_of_sum, svd_of_sum
from lorakit.linalg import frames as frames_module
from lorakit.linalg.frames import frame_of
from lorakit.linalg.products import gram_of


def columns(d, ranks, condition=1.0, dtype=torch.float32, seed=0):
    """Matrices (d, r_i) whose concatenation has singular values from 1 down to 1 / condition."""
    g = torch.Generator().manual_seed(seed)
    n = sum(ranks)
    q, _ = torch.linalg.qr(torch.randn(d, n, generator=g, dtype=torch.float64))
    mix, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    whole = q * torch.logspace(0, -np.log10(condition), n, dtype=torch.float64) @ mix
    return list(whole.to(dtype).split(ranks, dim=1))


def is_gram(frame):
    return type(frame).__name__ == "_GramFrame"


def check(frame, given_columns, tolerance):
    """The blocks are the columns in an orthonormal basis, to a tolerance relative to the largest column."""
    whole = torch.cat(given_columns, dim=1).double()
    small = torch.cat(list(frame.blocks), dim=1)
    back = frame.expand(small).double()
    assert (back - whole).norm() <= tolerance * whole.norm()
    assert (small.mT @ small - whole.mT @ whole).norm() <= tolerance * whole.norm() ** 2


@pytest.mark.parametrize("condition", [1, 30, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gram_path(condition, dtype):
    given_columns = columns(300, [3, 0, 5, 2], condition, dtype)
    frame = frame_of([c.float() for c in given_columns])
    assert is_gram(frame)
    check(frame, [c.float() for c in given_columns], 1e-6)
    assert [tuple(block.shape) for block in frame.blocks] == [(10, 3), (10, 0), (10, 5), (10, 2)]


@pytest.mark.parametrize("condition", [1e4, 1e6, 1e12])
def test_qr_takes_over_where_columns_nearly_depend_on_one_another(condition):
    given_columns = columns(300, [3, 5, 2], condition)
    frame = frame_of(given_columns)
    assert not is_gram(frame)
    check(frame, given_columns, 1e-6)


def test_lengths_of_columns_are_no_condition():
    given_columns = [c * scale for c, scale in zip(columns(300, [3, 5, 2]), (1e-6, 1.0, 1e6), strict=True)]
    assert is_gram(frame_of(given_columns))
    frame = frame_of(given_columns)
    for c, block in zip(given_columns, frame.blocks, strict=True):  # each to its own size
        assert (frame.expand(block) - c).norm() <= 1e-5 * c.norm()


def test_zero_columns_stay_zero():
    given_columns = columns(300, [3, 5])
    given_columns[1][:, 2:] = 0
    frame = frame_of(given_columns)
    assert is_gram(frame)
    check(frame, given_columns, 1e-6)
    assert (frame.blocks[1][:, 2:] == 0).all()


@pytest.mark.parametrize(
    "given_columns",
    [
        pytest.param([torch.ones(50, 2)], id="equal columns"),
        pytest.param(columns(50, [4]) * 2, id="the same twice"),
        pytest.param([torch.randn(4, 3), torch.randn(4, 3)], id="more columns than rows"),
        pytest.param(columns(50, [4], dtype=torch.float64), id="float64"),
        pytest.param([torch.zeros(9, 0)], id="none"),
    ],
)
def test_qr_is_taken(given_columns):
    frame = frame_of(given_columns)
    assert not is_gram(frame)
    check(frame, given_columns, 1e-6 if given_columns[0].dtype == torch.float32 else 1e-14)


def test_all_zero():
    frame = frame_of([torch.zeros(9, 2)])
    assert (frame.expand(torch.cat(frame.blocks, dim=1)) == 0).all()


@given(st.integers(1, 700), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 99))
def test_gram_in_chunks_is_the_gram(d, ranks, seed):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(d, r, generator=g) for r in ranks]
    before, products._CHUNK = products._CHUNK, 300
    try:
        found = gram_of(parts)
    finally:
        products._CHUNK = before
    whole = torch.cat(parts, dim=1).double()
    torch.testing.assert_close(found, whole.mT @ whole, rtol=1e-12, atol=1e-12)


def gram_against_qr(monkeypatch, updates, k):
    """Relative distance of the rank-k sums that the two paths give, and whether the first was the Gram path."""
    weights = [1 / len(updates)] * len(updates)

    def cut():
        u, s, vh = svd_of_sum(updates, weights, k)
        return (u.double() * s[:k].double()) @ vh.double()

    fast = cut()
    was_gram = is_gram(frame_of([b for _, b in updates])) and is_gram(frame_of([a.mT for a, _ in updates]))
    with monkeypatch.context() as patch:
        patch.setattr(frames_module, "CONDITION", 0)  # QR, in float64
        updates = [(a.double(), b.double()) for a, b in updates]
        exact = cut()
    return float((fast - exact).norm() / exact.norm()), was_gram


@pytest.mark.slow
def test_gram_path_on_the_real_adapters(monkeypatch, real_adapter_paths):
    X = load_adapters(sorted(real_adapter_paths.values()))
    modules = [[tuple(factors) for factors in X.factors(module)] for module in X.module_names]
    found = [gram_against_qr(monkeypatch, updates, k) for updates in modules for k in (8, 32)]
    assert max(error for error, _ in found) < 1e-5
    assert np.mean([gram for _, gram in found]) > 0.8


@pytest.mark.parametrize("condition", [1, 1e2, 1e3, 1e5])
def test_gram_path_against_qr_by_condition(monkeypatch, condition):
    a, b = columns(400, [8, 8, 8], condition, seed=1), columns(500, [8, 8, 8], condition, seed=2)
    error, was_gram = gram_against_qr(monkeypatch, [(x.mT, y) for x, y in zip(a, b, strict=True)], 24)
    assert error < 1e-5
    assert was_gram == (condition <= 1e3)


def dense(updates, weights):
    return sum(w * b.double() @ a.double() for w, (a, b) in zip(weights, updates, strict=True))


@pytest.mark.parametrize("apart", [1e-1, 1e-3, 1e-6])
def test_adapters_that_cancel(apart):
    """What is left of two adapters that nearly are one is as exact as they are."""
    (a,), (b,), (noise,) = columns(400, [8], 10), columns(300, [8], 10, seed=1), columns(400, [8], seed=2)
    updates = [(a.mT, b), ((a + apart * noise).mT, b)]
    left, values, right = torch.linalg.svd(dense(updates, [1, -1]), full_matrices=False)
    expected = (left[:, :4] * values[:4]) @ right[:4]
    u, s, vh = svd_of_sum(updates, [1, -1], 4)
    assert ((u.double() * s[:4].double()) @ vh.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("condition", [1, 1e3, 1e6])
def test_inputs_alone_that_nearly_depend_on_one_another(monkeypatch, condition):
    a, b = columns(400, [8, 8, 8], condition, seed=1), columns(500, [8, 8, 8], seed=2)
    updates = [(x.mT, y) for x, y in zip(a, b, strict=True)]
    for k in (3, 24):
        assert gram_against_qr(monkeypatch, updates, k)[0] < 1e-5


def test_singular_values_far_below_the_largest():
    a, b = columns(400, [4, 4], 1e7), columns(500, [4, 4], seed=2)
    updates = [(x.mT, y) for x, y in zip(a, b, strict=True)]
    u, s, vh = svd_of_sum(updates, [1, 1])
    expected = torch.linalg.svdvals(dense(updates, [1, 1]))[:8]
    torch.testing.assert_close(s.double(), expected, rtol=1e-6, atol=0)
    for basis in (u, vh.mT):
        assert (basis.double().mT @ basis.double() - torch.eye(8)).abs().max() <= 1e-6


def test_singular_values_alone():
    updates = [(c.mT, d) for c, d in zip(columns(40, [3, 4]), columns(30, [3, 4], seed=1), strict=True)]
    expected = torch.linalg.svdvals(
        sum(w * b.double() @ a.double() for w, (a, b) in zip((2, -1), updates, strict=True))
    )
    found = singular_values_of_sum(updates, [2, -1])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected[:7], rtol=1e-5, atol=1e-7)


def test_few_vectors_are_the_leading_ones():
    updates = [(c.mT, d) for c, d in zip(columns(40, [3, 4]), columns(30, [3, 4], seed=1), strict=True)]
    whole, few = svd_of_sum(updates, [1, 1]), svd_of_sum(updates, [1, 1], 2)
    assert (few[0].shape, few[1].shape, few[2].shape) == ((30, 2), (7,), (2, 40))
    torch.testing.assert_close((few[0] * few[1][:2]) @ few[2], (whole[0][:, :2] * whole[1][:2]) @ whole[2][:2])


def test_compressed_updates_expand_to_themselves():
    updates = [(c.mT, d) for c, d in zip(columns(60, [3, 4]), columns(50, [3, 4], seed=1), strict=True)]
    small = compress(updates)
    for update, (a, b) in zip(updates, small.updates, strict=True):
        assert (a.shape[1], b.shape[0]) == (7, 7)
        back_a, back_b = small.expand((a, b))
        torch.testing.assert_close(back_b @ back_a, update[1] @ update[0], rtol=1e-4, atol=1e-6)
        assert (back_a.gather(1, back_a.abs().argmax(dim=1, keepdim=True)) > 0).all()
