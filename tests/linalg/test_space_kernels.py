"""The common bases of Core Space and of KnOTS: exact, orthonormal, and functions of the updates alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg import align_svd, core_space, knots_space, truncate_wide
from lorakit.linalg import spaces as spaces_module

pytestmark = pytest.mark.usefixtures("one_blas_thread")


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(ranks, d_in, d_out, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(normal(r, d_in, generator=generator), normal(d_out, r, generator=generator)) for r in ranks]


def in_core(updates):
    u, v, cores = core_space(updates)
    return u, cores, [u @ core @ v.mT for core in cores], v


def in_knots(updates):
    space = knots_space(updates)
    u = space.expand(torch.eye(space.basis.shape[1]))  # in no other place is it formed
    tensors = torch.stack([c @ a for a, c in space.representations])
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
    mine, tensors, _, _ = in_knots(updates)
    sign = (mine * u[:, :12]).sum(dim=0)
    torch.testing.assert_close(sign.abs(), torch.ones(12, dtype=torch.float64))
    expected = (sign * s[:12])[:, None] * vh[:12]
    torch.testing.assert_close(torch.cat(list(tensors), dim=1), expected, rtol=0, atol=1e-10)


def in_single(updates):
    return [(a.float(), b.float()) for a, b in updates]


@SPACES
@pytest.mark.parametrize("ranks", [(3, 3, 3), (3, 5, 4), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("widths", [(30, 26), (200, 150), (7, 6)], ids=str)
def test_single_precision_finds_the_same_spaces(space, ranks, widths):
    """It takes another way there: Gram matrices, in double precision."""
    single = in_single(made(ranks, *widths))
    double = [(a.double(), b.double()) for a, b in single]
    (u, tensors, _, _), (expected_u, expected, _, _) = space(single), space(double)
    assert u.dtype == tensors.dtype == torch.float32
    scale = float(expected.abs().max())
    torch.testing.assert_close(tensors.double(), expected, rtol=0, atol=2e-5 * scale)
    torch.testing.assert_close(u.double(), expected_u, rtol=0, atol=2e-5)


@SPACES
def test_single_precision_of_hard_updates(space):
    """Units of very unequal length, units that nearly depend on one another, unused ones, and an untrained update."""
    generator = torch.Generator().manual_seed(3)
    (a, b), (c, d), (e, f), (g, h) = made((4, 4, 4, 4), 60, 50)
    mixed = torch.eye(4, dtype=torch.float64) + 3e3 * torch.ones(4, 4, dtype=torch.float64)
    e[3], f[:, 2] = 0, 0
    unequal = torch.tensor([1.0, 1e-1, 1e-2, 1e-5], dtype=torch.float64)
    updates = in_single([(a * unequal[:, None], b), (mixed @ c, d @ torch.linalg.inv(mixed)), (e, f), (g, 0 * h)])
    _, _, recovered, _ = space(updates)
    largest = max(float((b @ a).abs().max()) for a, b in updates)
    tolerance = 1e-6 if space is in_core else 2e-3  # KnOTS has A as it is given, where large units cancel
    for (a, b), again in zip(updates, recovered, strict=True):
        torch.testing.assert_close(again.double(), b.double() @ a.double(), rtol=0, atol=tolerance * largest)
    order = torch.randperm(4, generator=generator).tolist()
    _, _, other, _ = space([updates[i] for i in order])
    for i, again in zip(order, other, strict=True):
        torch.testing.assert_close(again, recovered[i], rtol=0, atol=tolerance * largest)


def test_balanced_factors_are_those_of_align_svd():
    updates = in_single(made((3, 5, 3, 0, 1), 40, 30))
    updates.append((updates[0][0] * torch.tensor([1.0, 1.0, 1e-7])[:, None], updates[0][1]))
    updates.append((0 * updates[0][0], updates[0][1]))
    found = spaces_module._balanced(updates)
    assert [a.dtype == torch.float64 for a, _ in found] == [True, True, True, False, True, False, False]
    for (a, b), update in zip(found, updates, strict=True):
        expected_a, expected_b = align_svd((update[0].double(), update[1].double()))
        for mine, expected in ((a.mT @ a, expected_a.mT @ expected_a), (b @ b.mT, expected_b @ expected_b.mT)):
            torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 40), (12, 12), (12, 5), (1, 9), (0, 9)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0, 3.0])  # powers of ten from one singular value to the next
@pytest.mark.parametrize("k", [1, 4, 20])
def test_truncation_of_a_wide_matrix_is_optimal_and_balanced(dtype, shape, decay, k):
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(normal(*shape, generator=generator), full_matrices=False)
    s = (1 + torch.rand(len(vh), generator=generator, dtype=torch.float64)) * 10 ** (-decay * torch.arange(len(vh)))
    s = s.sort(descending=True).values
    matrix = ((u * s) @ vh).to(dtype)
    a, b = truncate_wide(matrix, k)
    kept = min(k, len(s))
    assert (a.shape, b.shape) == ((kept, shape[1]), (shape[0], kept))
    assert a.dtype == b.dtype == dtype
    if kept:
        eps = 2e-6 if dtype == torch.float32 else 1e-12
        left = (matrix.double() - b.double() @ a.double()).norm()
        assert abs(left - s[k:].norm()) < eps * s[0]
        assert (a.amax(dim=1) >= -a.amin(dim=1)).all()
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-3, atol=0)
        well = int((s[:kept] > 0.5e-3 * s[0]).sum())
        root = s[:well].sqrt()
        for half in (a[:well].double() / root[:, None], (b[:, :well].double() / root).mT):
            identity = torch.eye(well, dtype=torch.float64)
            torch.testing.assert_close(
                half @ half.mT, identity, rtol=0, atol=5 * eps if dtype == torch.float32 else 1e-9
            )
