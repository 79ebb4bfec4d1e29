"""Kernels on singular values and vectors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg import (
    calibrate_sum,
    flatten_spectrum,
    isotropic_sum,
    least_interference,
    merge_singular_vectors,
    orthogonalize,
    task_svds,
    tucker2,
)

SEED = st.integers(0, 10**6)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def update(rank, seed=0, d_in=24, d_out=16, dtype=torch.float64):
    return normal(rank, d_in, seed=seed, dtype=dtype), normal(d_out, rank, seed=seed + 1, dtype=dtype)


def dense(svd):
    u, s, vh = svd
    return u @ torch.diag(s) @ vh


@given(SEED)
def test_orthogonalize_gives_the_nearest_orthonormal_columns(seed):
    x = normal(9, 4, seed=seed)
    q = orthogonalize(x)
    torch.testing.assert_close(q.T @ q, torch.eye(4, dtype=x.dtype))
    # nearest: x = q h with h symmetric and not negative
    h = q.T @ x
    torch.testing.assert_close(h, h.T)
    assert torch.linalg.eigvalsh(h).min() > 0
    torch.testing.assert_close(q @ h, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonalize_shares_what_is_equal(dtype):
    x = torch.linalg.qr(normal(9, 3, dtype=dtype)).Q
    q = orthogonalize(torch.cat([x, x], dim=1))
    torch.testing.assert_close(q, torch.cat([x, x], dim=1) / 2**0.5)


def test_orthogonalize_of_more_columns_than_rows():
    q = orthogonalize(normal(3, 5))
    torch.testing.assert_close(q @ q.T, torch.eye(3, dtype=q.dtype))


def test_orthogonalize_of_nothing():
    assert orthogonalize(torch.zeros(4, 0)).shape == (4, 0)
    assert orthogonalize(torch.zeros(4, 2)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_task_svds_have_the_rank_of_the_update(dtype):
    a, b = update(3, dtype=dtype)
    twice = torch.cat([a, a, torch.zeros_like(a)]), torch.cat([b, b, b], dim=1)
    (u, s, vh), (_, none, _) = task_svds([twice, (a, 0 * b)], [0.5, 1.0])
    assert len(s) == 3
    assert len(none) == 0
    torch.testing.assert_close(dense((u, s, vh)), b @ a)


@given(SEED)
def test_merged_singular_vectors_of_updates_that_do_not_overlap_are_their_sum(seed):
    q_in, q_out = torch.linalg.qr(normal(24, 7, seed=seed)).Q, torch.linalg.qr(normal(16, 7, seed=seed + 1)).Q
    x = normal(3, 3, seed=seed) @ q_in[:, :3].T, q_out[:, :3]
    y = normal(4, 4, seed=seed + 2) @ q_in[:, 3:].T, q_out[:, 3:]
    torch.testing.assert_close(dense(merge_singular_vectors(task_svds([x, y], [1, 2]))), x[1] @ x[0] + 2 * y[1] @ y[0])


@given(SEED, st.sampled_from([1.0, 0.8, 0.5, 0.0]))
def test_isotropic_sums_are_isotropic(seed, common_share):
    svds = task_svds([update(r, seed=seed + r) for r in (3, 5, 4)], [1, 1, 1])
    u, s, vh = isotropic_sum(svds, common_share=common_share)
    torch.testing.assert_close(s, s[:1].expand(len(s)), rtol=0, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(len(s), dtype=s.dtype))
    torch.testing.assert_close(vh @ vh.T, torch.eye(len(s), dtype=s.dtype))


def test_task_specific_directions_get_the_share_that_is_left():
    """n = 12 and share 0.5: 12 - 6 = 6 for three tasks, two each."""
    svds = task_svds([update(4, seed=10 * i) for i in range(3)], [1, 1, 1])
    leading = isotropic_sum(svds)[0][:, :6]
    u, _, _ = isotropic_sum(svds, common_share=0.5)
    torch.testing.assert_close(u @ (u.T @ leading), leading)  # the common ones are all there
    for u_i, s_i, vh_i in svds:
        w = u_i @ torch.diag(s_i) @ vh_i
        rest = torch.linalg.svd(w - leading @ leading.T @ w).U[:, :2]
        torch.testing.assert_close(u @ (u.T @ rest), rest)


def test_task_specific_directions_are_never_more_than_there_are():
    """n = 3 and share 0: round(3 / 2) = 2 for each of two tasks would be four."""
    svds = task_svds([update(1), update(2, seed=5)], [1, 1])
    values = torch.linalg.svdvals(sum(map(dense, svds)))[:1]
    leading = torch.linalg.svd(sum(map(dense, svds))).U[:, :1]
    outside = [torch.linalg.svdvals(dense(svd) - leading @ leading.T @ dense(svd))[:1] for svd in svds]
    _, s, _ = isotropic_sum(svds, common_share=0.0)
    assert len(s) == 3
    torch.testing.assert_close(s[0], torch.cat([values, *outside]).mean())


def test_calibration_ignores_responses_that_are_round_off():
    """The second and the third update cancel in the sum; in its directions the second one does nothing."""
    out, into = torch.linalg.qr(normal(16, 3)).Q.T, torch.linalg.qr(normal(24, 3, seed=1)).Q.T

    def ones(*rows):
        return torch.stack([into[i] for _, i, _ in rows]), torch.stack([c * out[o] for o, _, c in rows], dim=1)

    x, y, z = ones((0, 0, 2.0)), ones((1, 0, 1.0)), ones((1, 0, -1.0), (2, 2, 3.0))
    svds = task_svds([x, y, z], [1, 1, 1])
    torch.testing.assert_close(dense(calibrate_sum(svds, [1, 1, 1], alpha=1.0)), sum(map(dense, svds)))


def test_flatten_spectrum():
    assert flatten_spectrum(torch.tensor([5.0, 1.0]), 3).tolist() == [2.0, 2.0]
    assert flatten_spectrum(torch.zeros(0), 0).shape == (0,)


@given(SEED, st.integers(1, 7))
def test_tucker_bases_are_orthonormal_and_only_improve(seed, k):
    stack, weights = normal(3, 7, 9, seed=seed), torch.tensor([1.0, 2, 0.5], dtype=torch.float64)
    before = 0.0
    for max_iter in (1, 3, 30):
        u, v, cores = tucker2(stack, weights, k, max_iter=max_iter)
        torch.testing.assert_close(u.T @ u, torch.eye(k, dtype=u.dtype))
        torch.testing.assert_close(v.T @ v, torch.eye(k, dtype=v.dtype))
        torch.testing.assert_close(cores, u.T @ stack @ v)
        kept = float((weights * cores.square().sum(dim=(1, 2))).sum())
        assert kept >= before * (1 - 1e-12)
        before = kept
    assert kept <= float((weights * stack.square().sum(dim=(1, 2))).sum()) * (1 + 1e-12)


def test_tucker_stops_where_rounds_add_little():
    stack, weights = normal(5, 20, 20, seed=3), torch.ones(5, dtype=torch.float64)

    def kept(**options):
        return float(tucker2(stack, weights, 4, **options)[2].square().sum())

    best = kept(max_iter=2000, tol=0)
    assert kept() > best * (1 - 1e-4)
    assert kept(tol=1e-2) == kept(max_iter=max(n for n in range(1, 30) if kept(max_iter=n, tol=0) <= kept(tol=1e-2)))
    assert kept(tol=1e-2) < kept(max_iter=2000)


def test_tucker_finds_common_bases_that_hold_everything():
    u, v = torch.linalg.qr(normal(7, 2)).Q, torch.linalg.qr(normal(9, 2)).Q
    stack = u @ normal(4, 2, 2, seed=1) @ v.T
    found_u, found_v, cores = tucker2(stack, torch.ones(4, dtype=stack.dtype), 2)
    torch.testing.assert_close(found_u @ cores @ found_v.T, stack)


@given(SEED, st.sampled_from([0.0, 0.1]))
def test_least_interference_is_a_minimum(seed, ridge):
    updates, weights = [update(r, seed=seed + r) for r in (2, 4)], [0.3, 0.7]
    w = [b @ a for a, b in updates]
    h = sum(c * x.T @ x / x.norm() ** 2 for c, x in zip(weights, w, strict=True))
    rho = ridge * torch.trace(h) / 6  # six directions in all

    def loss(x):
        fit = sum(c * ((x - y) @ y.T).norm() ** 2 / y.norm() ** 2 for c, y in zip(weights, w, strict=True))
        return fit + rho * x.norm() ** 2

    x = dense(least_interference(task_svds(updates, [1, 1]), weights, ridge=ridge)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    assert gradient.norm() < 1e-8 * sum(y.norm() for y in w)
    assert loss(x) < loss(w[0])
    assert loss(x) < loss(w[0] + w[1])
