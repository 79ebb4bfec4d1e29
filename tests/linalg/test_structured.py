"""Entry-by-entry and Kronecker products as thin factors: the dense products, of no more rank than needed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg.structured import hadamard_factors, kronecker_factors, kronecker_svd, mode_product

widths, ranks, seeds = st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**16)


def update(rng, d_out, d_in, r):
    return torch.randn(r, d_in, generator=rng).double(), torch.randn(d_out, r, generator=rng).double()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(widths, widths, ranks, ranks, seeds)
def test_entry_by_entry(d_out, d_in, r, q, seed):
    rng = torch.Generator().manual_seed(seed)
    x, y = update(rng, d_out, d_in, r), update(rng, d_out, d_in, q)
    a, b = hadamard_factors(x, y)
    close(b @ a, (x[1] @ x[0]) * (y[1] @ y[0]))
    assert len(a) == b.shape[1] == min(r * q, d_out, d_in)


@given(widths, widths, widths, widths, ranks, ranks, st.booleans(), st.booleans(), seeds)
def test_kronecker(p, q, m, n, r, s, left_whole, right_whole, seed):
    rng = torch.Generator().manual_seed(seed)
    x, y = update(rng, p, q, r), update(rng, m, n, s)
    dense = x[1] @ x[0], y[1] @ y[0]
    a, b = kronecker_factors(dense[0] if left_whole else x, dense[1] if right_whole else y)
    close(b @ a, torch.kron(*dense))
    of_left, of_right = min(p, q) if left_whole else min(p, q, r), min(m, n) if right_whole else min(m, n, s)
    assert len(a) == b.shape[1] == of_left * of_right


def test_columns_of_any_strides():
    a, b = kronecker_factors(torch.ones(2, 2), (torch.ones(1, 8), torch.ones(1, 6).mT))
    assert b.shape == (12, 2)
    assert torch.equal(b @ a, torch.ones(12, 16))


def test_a_kernel_between_ranks():
    rng = torch.Generator().manual_seed(0)
    core, factor = torch.randn(3, 2, 4, 5, generator=rng), torch.randn(2, 6, generator=rng)
    found = mode_product(core, factor).reshape(3, 6, 4, 5)
    torch.testing.assert_close(found[1, 4], factor[0, 4] * core[1, 0] + factor[1, 4] * core[1, 1])


def test_low_ranks_stay_thin():
    a, b = hadamard_factors((torch.ones(2, 4000), torch.ones(3000, 2)), (torch.ones(2, 4000), torch.ones(3000, 2)))
    assert (a.untyped_storage().nbytes(), b.untyped_storage().nbytes()) == (4 * 4 * 4000, 4 * 4 * 3000)


@given(widths, widths, widths, widths, ranks, ranks, st.booleans(), st.booleans(), seeds)
def test_the_svd_of_a_kronecker_product(p, q, m, n, r, s, left_whole, right_whole, seed):
    rng = torch.Generator().manual_seed(seed)
    x, y = update(rng, p, q, r), update(rng, m, n, s)
    dense = x[1] @ x[0], y[1] @ y[0]
    product = torch.kron(*dense)
    left, right = dense[0] if left_whole else x, dense[1] if right_whole else y
    expected = torch.linalg.svdvals(product)
    for k in (None, 1, 2):
        u, values, vh = kronecker_svd(left, right, k)
        close(values, expected[: len(values)])
        assert not (expected[len(values) :] > 1e-10).any()
        eye = torch.eye(u.shape[1], dtype=u.dtype)
        close(u.mT @ u, eye)
        close(vh @ vh.mT, eye)
        error = (u * values[: u.shape[1]] @ vh - product).norm()
        close(error, expected[u.shape[1] :].norm())
