"""Inner products, norms and sums against dense float64 algebra."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg import frobenius_norm, gram_matrix, inner_product, residual_norm, weighted_concat
from lorakit.linalg.products import narrowed
from lorakit.linalg.spaces import core_space
from lorakit.testing import adapter_sets

WEIGHTS = st.lists(st.floats(-2, 2), min_size=4, max_size=4)


def dense(updates):
    return [b @ a for a, b in updates]


@given(adapter_sets(min_adapters=2, missing_modules=False))
def test_inner_products_match_dense(adapters):
    updates = adapters.factors("layer.0")
    flat = torch.stack([w.flatten() for w in dense(updates)])
    torch.testing.assert_close(gram_matrix(updates), flat @ flat.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inner_product(updates[0], updates[1]), flat[0] @ flat[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(frobenius_norm(updates[0]), flat[0].norm(), rtol=1e-10, atol=1e-10)


@given(adapter_sets(), WEIGHTS)
def test_concatenation_is_the_weighted_sum(adapters, weights):
    updates = adapters.factors("layer.0")
    weights = weights[: len(updates)]
    a, b = weighted_concat(updates, weights)
    assert a.shape[0] == sum(update.rank for update in updates)
    expected = sum(w * update for w, update in zip(weights, dense(updates), strict=True))
    torch.testing.assert_close(b @ a, expected, rtol=1e-10, atol=1e-10)


@given(adapter_sets(min_adapters=2), WEIGHTS)
def test_residual_norm(adapters, weights):
    first, *others = adapters.factors("layer.0")
    weights = weights[: len(others)]
    expected = first.delta() - sum(w * update for w, update in zip(weights, dense(others), strict=True))
    torch.testing.assert_close(residual_norm(first, others, weights), expected.norm(), rtol=1e-6, atol=1e-6)


def test_residual_norm_of_nothing_is_the_norm():
    torch.manual_seed(0)
    update = (torch.randn(3, 8, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64))
    torch.testing.assert_close(residual_norm(update, [], []), (update[1] @ update[0]).norm())


def test_float32_differences_do_not_drown():
    """Equal updates in different factors: float32 accumulation would leave 1e-3 here."""
    torch.manual_seed(0)
    a, b = torch.randn(8, 400), torch.randn(300, 8)
    assert residual_norm((a, b), [(2 * a, b / 2)], [1.0]) < 1e-5 * frobenius_norm((a, b))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.sampled_from([torch.float32, torch.float64]))
def test_ranks_above_the_widths(d_in, d_out, rank, dtype):
    rng = torch.Generator().manual_seed(rank)
    update = torch.randn(rank, d_in, generator=rng).to(dtype), torch.randn(d_out, rank, generator=rng).to(dtype)
    a, b = narrowed(update)
    assert a.shape[0] == b.shape[1] == min(rank, d_in, d_out)
    torch.testing.assert_close(b.double() @ a.double(), update[1].double() @ update[0].double())


def test_a_rank_far_above_the_widths_needs_no_square_of_it():
    """Of 200,000 on 3 x 2, r x r is 320 GB."""
    rng = torch.Generator().manual_seed(0)
    updates = [(torch.randn(200_000, 3, generator=rng), torch.randn(2, 200_000, generator=rng)) for _ in range(2)]
    flat = torch.stack([(b.double() @ a.double()).flatten() for a, b in updates])
    torch.testing.assert_close(gram_matrix(updates), flat @ flat.T)
    torch.testing.assert_close(inner_product(*updates), flat[0] @ flat[1])
    u, v, cores = core_space(updates)
    torch.testing.assert_close(u @ cores[0] @ v.T, updates[0][1] @ updates[0][0], rtol=1e-4, atol=1e-2)
