"""The common bases of Core Space and of KnOTS: exact, orthonormal, and functions of the updates alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit._execution import one_thread
from lorakit.linalg import core_space, knots_space


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():  # of many, most would wait: the matrices are small
        yield


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(ranks, d_in, d_out, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(normal(r, d_in, generator=generator), normal(d_out, r, generator=generator)) for r in ranks]


def in_core(updates):
    u, v, cores = core_space(updates)
    return u, cores, [u @ core @ v.mT for core in cores], v


def in_knots(updates):
    u, parts = knots_space(updates)
    tensors = torch.stack([c @ a for a, c in parts])
    return u, tensors, [u @ x for x in tensors], None


SPACES = pytest.mark.parametrize("space", [in_core, in_knots])


@SPACES
@given(
    ranks=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 10**6),
)
def test_every_update_is_recovered(space, ranks, widths, seed):
    """Also where the ranks add up to more than the widths."""
    updates = made(ranks, *widths, seed=seed)
    u, tensors, recovered, v = space(updates)
    scale = max((b @ a).abs().max() for a, b in updates if len(a))
    for (a, b), again in zip(updates, recovered, strict=True):
        torch.testing.assert_close(again, b @ a, rtol=0, atol=1e-10 * float(scale))
    for basis in (u, v) if v is not None else (u,):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
        assert basis.shape[1] <= sum(ranks)
    assert tensors.shape[0] == len(ranks)


def changed(updates, seed=1):
    """The same updates, factored differently."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for a, b in updates:
        g = torch.eye(len(a), dtype=torch.float64) + 0.3 * normal(len(a), len(a), generator=generator)
        g = 4 * g[torch.randperm(len(a), generator=generator)]
        out.append((g @ a, b @ torch.linalg.inv(g)))
    return out


@SPACES
@pytest.mark.parametrize("seed", range(5))
def test_only_the_updates_matter(space, seed):
    updates = made((3, 5, 4), 30, 26, seed=seed)
    u, tensors, _, _ = space(updates)
    for other, order in (
        (changed(updates), [0, 1, 2]),
        (updates[::-1], [2, 1, 0]),
        (changed(updates)[::-1], [2, 1, 0]),
    ):
        u2, tensors2, _, _ = space(other)
        torch.testing.assert_close(u2, u, rtol=0, atol=1e-8)  # signs too
        torch.testing.assert_close(tensors2[order], tensors, rtol=0, atol=1e-7)


def test_core_of_raw_factors_would_not_do():
    """Why the factors are balanced first: the bases of raw ones rotate with the factoring."""
    updates = made((3, 5, 4), 30, 26)
    raw = [
        torch.linalg.svd(torch.cat([b for _, b in x], dim=1), full_matrices=False).U
        for x in (updates, changed(updates))
    ]
    assert (raw[0].abs() - raw[1].abs()).abs().max() > 0.1


@SPACES
def test_copies_need_no_more_directions(space):
    (update,) = made((4,), 20, 18)
    u, tensors, recovered, _ = space([update] + changed([update]) * 2)
    assert u.shape[1] == 4
    assert tensors.shape[:2] == (3, 4)
    torch.testing.assert_close(recovered[2], update[1] @ update[0])


@SPACES
def test_zero_updates(space):
    a = torch.ones(2, 6, dtype=torch.float64)
    u, tensors, recovered, _ = space([(a, torch.zeros(5, 2, dtype=torch.float64))] * 2)  # B as LoRA starts with
    assert u.shape == (5, 0)
    assert tensors.shape[:2] == (2, 0)
    assert torch.equal(torch.stack(recovered), torch.zeros(2, 5, 6, dtype=torch.float64))


def test_knots_is_the_svd_of_the_updates_side_by_side():
    updates = made((3, 5, 4), 30, 26)
    dense = torch.cat([b @ a for a, b in updates], dim=1)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    mine, parts = knots_space(updates)
    sign = (mine * u[:, :12]).sum(dim=0)
    torch.testing.assert_close(sign.abs(), torch.ones(12, dtype=torch.float64))
    expected = (sign * s[:12])[:, None] * vh[:12]
    torch.testing.assert_close(torch.cat([c @ a for a, c in parts], dim=1), expected, rtol=0, atol=1e-10)
