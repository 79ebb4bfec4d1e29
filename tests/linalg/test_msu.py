"""Minimal semantic units: pooling, splitting, and the two alignments that remove gauge freedom."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg import align_svd, balance_msus, pool_msus, split_msus
from lorakit.testing import adapter_sets

SEED = st.integers(0, 2**31 - 1)


@given(adapter_sets(missing_modules=False))
def test_pool_holds_rows_of_a_and_columns_of_b(adapters):
    updates = adapters.factors("layer.0")
    units = pool_msus(updates)
    d_in = updates[0].d_in
    start = 0
    for update in updates:
        a, b = split_msus(units[start : start + update.rank], d_in)
        assert torch.equal(a, update.A)
        assert torch.equal(b, update.B)
        start += update.rank
    assert start == len(units)


@given(adapter_sets(), SEED)
def test_a_pool_in_another_order(adapters, seed):
    for module in adapters.module_names:
        updates = adapters.factors(module)
        pool = pool_msus(updates)
        places = np.random.RandomState(seed).permutation(len(pool))
        placed = pool_msus(updates, places)
        assert torch.equal(placed[torch.from_numpy(places)], pool)


@given(adapter_sets(max_adapters=1, missing_modules=False), SEED)
def test_balance_undoes_positive_rescaling(adapters, seed):
    update = adapters.factors("layer.0")[0]
    scale = torch.rand(update.rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10 + 0.1
    a, b = balance_msus(update)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))
    torch.testing.assert_close(b @ a, update.delta())
    for x, y in zip(balance_msus((scale[:, None] * update.A, update.B / scale)), (a, b), strict=True):
        torch.testing.assert_close(x, y)


def test_balance_of_a_dead_unit_is_zero():
    a, b = balance_msus((torch.ones(2, 3), torch.tensor([[0.0, 2.0]])))
    assert torch.equal(a[0], torch.zeros(3))
    assert torch.isfinite(a).all()
    torch.testing.assert_close(b @ a, torch.full((1, 3), 2.0))


@given(adapter_sets(max_adapters=1, missing_modules=False), SEED)
def test_align_svd_depends_on_the_update_alone(adapters, seed):
    """Any invertible change of gauge G: A -> G A, B -> B G^-1."""
    update = adapters.factors("layer.0")[0]
    gauge = torch.randn(update.rank, update.rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gauge += 3 * torch.eye(update.rank, dtype=torch.float64) * torch.sign(torch.linalg.det(gauge))
    if torch.linalg.cond(gauge) > 100:
        return  # too near to singular for the tolerance
    a, b = align_svd(update)
    torch.testing.assert_close(b @ a, update.delta())
    changed = align_svd((gauge @ update.A, update.B @ torch.linalg.inv(gauge)))
    for x, y in zip(changed, (a, b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
