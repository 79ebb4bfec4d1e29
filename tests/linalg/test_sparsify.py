"""Which entries are kept, with which probabilities, and what the random rules expect."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit.linalg import (
    disjoint_mean,
    drop_randomly,
    elect_sign,
    keep_above,
    keep_between,
    keep_middle,
    kept_entries,
    magnitude_threshold,
    magnitude_window,
    norm_ratio,
    rank_probabilities,
    variance_threshold,
    weighted_variance,
)
from lorakit.linalg import sparsify as sparsify_module

SEED = st.integers(0, 10**6)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEED, st.floats(0.005, 1.0), st.sampled_from([torch.float32, torch.float64]))
def test_threshold_is_the_smallest_magnitude_kept(seed, density, dtype):
    x = normal(11, 13, seed=seed, dtype=dtype)
    falling = x.abs().flatten().sort(descending=True).values
    keep = int(density * 143)
    assert magnitude_threshold(x, density) == falling[max(keep, 1) - 1].item()
    assert magnitude_threshold(x, density, count="official") == falling[min(keep, 142)].item()


def test_threshold_leaves_its_input_and_takes_none():
    for x in (normal(60), normal(5, 12).mT):  # the second is not contiguous
        before = x.clone()
        magnitude_threshold(x, 0.4)
        magnitude_window(x, 0.4, 0.1)
        assert torch.equal(x, before)
    positive = normal(60).abs()  # whose magnitudes need no new tensor
    before = positive.clone()
    magnitude_threshold(positive, 0.4)
    assert torch.equal(positive, before)
    assert magnitude_threshold(torch.empty(0, 4), 0.5, count="official") == float("inf")


@given(SEED, st.floats(0.0, 0.6), st.floats(0.01, 0.4))
def test_window_drops_the_largest_and_keeps_the_next(seed, gamma, density):
    x = normal(9, 17, seed=seed)
    low, high = magnitude_window(x, density, gamma)
    kept = (x.abs() >= low) & (x.abs() <= high)
    falling = x.abs().flatten().argsort(descending=True)
    top, keep = int(gamma * 153), max(int(density * 153), 1)
    expected = torch.zeros(153, dtype=torch.bool)
    expected[falling[top : top + keep]] = True
    assert torch.equal(kept.flatten(), expected)


def test_window_of_all_or_one():
    x = normal(10)
    assert magnitude_window(x, 1.0, 0.0) == (x.abs().min().item(), x.abs().max().item())
    largest_left = x.abs().sort().values[4].item()  # at least one entry is kept
    assert magnitude_window(x, 0.05, 0.5) == (largest_left, largest_left)
    assert magnitude_window(x, 0.05, 1 - 1e-17) == (x.abs().min().item(), x.abs().min().item())
    assert magnitude_window(torch.empty(0), 0.5, 0.5) == (float("inf"), 0.0)


def test_dropping_is_exact_given_the_draws():
    x, u = normal(6, 8), uniform(6, 8)
    dropped = drop_randomly(x, 0.3, u)
    assert 0 < (u < 0.3).sum() < 48
    torch.testing.assert_close(dropped, torch.where(u < 0.3, x / 0.3, 0), rtol=1e-14, atol=0)
    assert torch.equal(drop_randomly(x, 1.0, u), x)
    assert drop_randomly(x.float(), 0.3, u).dtype == torch.float32
    each = rank_probabilities(x, 0.5, 0.2)
    torch.testing.assert_close(drop_randomly(x, each, u), torch.where(u < each, x / each, 0), rtol=1e-14, atol=0)


@given(SEED, st.integers(2, 12))
def test_probabilities_rise_with_the_rank_in_the_row(seed, n):
    x = normal(5, n, seed=seed)
    pi = rank_probabilities(x, 0.6, 0.25)
    for row, probabilities in zip(x, pi, strict=True):
        for entry, probability in zip(row, probabilities, strict=True):
            rho = 1 + int((row.abs() < entry.abs()).sum())
            assert probability.item() == pytest.approx(0.35 + 0.5 * (rho - 1) / (n - 1), abs=1e-12)
    torch.testing.assert_close(pi.mean(dim=1), torch.full((5,), 0.6, dtype=torch.float64))


@given(SEED, st.integers(2, 50), st.floats(0.5, 20))
def test_of_equal_magnitudes_the_first_ranks_lowest(seed, n, scale):
    """In both precisions, which sort in different ways."""
    x = (scale * normal(4, n, seed=seed)).round()  # many zeros, of both signs, and ties
    order = np.argsort(x.abs().numpy(), axis=1, kind="stable")
    rising = torch.linspace(0.35, 0.85, n, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        pi = rank_probabilities(x.to(dtype), 0.6, 0.25)
        assert pi.dtype == dtype
        for row, places in zip(pi, order, strict=True):
            torch.testing.assert_close(row[places].double(), rising, rtol=1e-6, atol=0)


def test_probabilities_of_rows_of_one_entry_or_none():
    assert rank_probabilities(normal(3, 1), 0.6, 0.25).tolist() == [[0.6]] * 3
    assert rank_probabilities(normal(0, 4), 0.6, 0.25).shape == (0, 4)
    assert rank_probabilities(torch.empty(4, 0), 0.6, 0.25).shape == (4, 0)
    assert torch.equal(rank_probabilities(normal(3, 4), 0.6, 0.0), torch.full((3, 4), 0.6, dtype=torch.float64))


@pytest.mark.parametrize("keep", [0.1, 0.5, "by rank"])
def test_dropping_is_unbiased(keep):
    """The mean over many draws is the tensor, within five standard errors, and the spread is what theory says."""
    n = 40_000
    x = normal(4, 6)
    p = rank_probabilities(x, 0.5, 0.4) if keep == "by rank" else torch.full_like(x, keep)
    draws = drop_randomly(x.expand(n, 4, 6), p, uniform(n, 4, 6))
    error = x.abs() * ((1 - p) / p / n).sqrt()
    assert ((draws.mean(dim=0) - x).abs() < 5 * error).all()
    torch.testing.assert_close(draws.std(dim=0), error * n**0.5, rtol=0.1, atol=0)


def test_a_shared_rescaling_would_be_biased():
    """What the test above can tell apart: DELLA's survivors divided by the mean probability instead of their own."""
    n = 40_000
    x = normal(4, 6)
    p = rank_probabilities(x, 0.5, 0.4)
    draws = x * (uniform(n, 4, 6) < p) / 0.5
    assert ((draws.mean(dim=0) - x).abs() > 5 * x.abs() * ((1 - p) / p / n).sqrt()).any()


@pytest.mark.interop
def test_dare_as_in_peft():
    """The same masks give the same merges, linear and with sign election."""
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    stack = normal(3, 7, 9)
    torch.manual_seed(3)
    masks = torch.stack([torch.bernoulli(torch.full_like(x, 0.4)) for x in stack])
    dropped = drop_randomly(stack, 0.4, 1 - masks)
    torch.manual_seed(3)
    linear = merge_utils.dare_linear(list(stack), torch.tensor([0.2, 0.3, 0.5]), 0.4)
    weights = torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close(torch.tensordot(weights.double(), dropped, dims=1), linear, rtol=1e-6, atol=1e-7)
    torch.manual_seed(3)
    elected = merge_utils.dare_ties(list(stack), torch.ones(3), 0.4)
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(disjoint_mean(dropped, elect_sign(dropped, equal), equal), elected, rtol=1e-12, atol=0)


def test_draws_are_numpy_and_torch_alike():
    """A kernel takes any uniform numbers: no global generator is touched."""
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drop_randomly(normal(5, 5), 0.5, torch.from_numpy(np.random.RandomState(0).random_sample((5, 5))))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("kind", ["normal", "few values", "sorted", "periodic", "mostly zero"])
@pytest.mark.parametrize("density", [1e-5, 0.2, 0.5, 0.9999])
def test_thresholds_of_many_entries_are_exact(kind, density):
    """They are looked for near what a sample suggests, which these samples do more or less well."""
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    if kind == "few values":
        x = (x * 2).round()
    elif kind == "sorted":
        x = x.sort().values
    elif kind == "periodic":
        x[:: sparsify_module._sample_step(len(x))] *= 1e-3  # all that the sample sees
    elif kind == "mostly zero":
        x[torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    keep, rising = int(density * len(x)), x.abs().sort().values
    assert magnitude_threshold(x.reshape(300, -1), density) == rising[-keep].item()
    drop = int(len(x) - keep) // 2
    window = magnitude_window(x.reshape(300, -1), density, drop / len(x))
    drop = int(drop / len(x) * len(x))
    assert window == (rising[-keep - drop].item(), rising[-1 - drop].item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_at_the_threshold_are_kept(dtype):
    x = torch.tensor([-3.0, 0.1, -0.1, 0.0, 2.0], dtype=dtype)
    for threshold in (0.0, x[1].item(), 2.0, 3.5, float("inf")):
        assert torch.equal(keep_above(x, threshold), x * (x.abs() >= threshold))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_at_either_end_of_a_window_are_kept(dtype):
    x = torch.tensor([-3.0, 0.1, -0.1, 0.0, 2.0, -2.0, 1.0], dtype=dtype)
    before = x.clone()
    for low in (0.0, x[1].item(), 1.0, 2.0, 3.5, float("inf")):
        for high in (0.0, x[1].item(), 1.0, 2.5, 3.0):
            kept = keep_between(x, low, high)
            assert torch.equal(kept, x * ((x.abs() >= low) & (x.abs() <= high)))
            assert kept.dtype == dtype
    assert torch.equal(x, before)


@given(SEED, st.floats(0.0, 0.6), st.floats(0.01, 0.4))
def test_the_middle_of_each_row_is_its_own_window(seed, gamma, density):
    x = normal(6, 17, seed=seed)
    rows = [keep_between(row, *magnitude_window(row, density, gamma)) for row in x]
    assert torch.equal(keep_middle(x, density, gamma), torch.stack(rows))


def test_the_middle_of_rows_of_ties_or_nothing():
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert keep_middle(x, 0.5, 0.25).tolist() == [[0, -1, 1, 0]]  # of equal magnitudes the later ones rank higher
    assert keep_middle(torch.empty(3, 0), 0.5, 0.25).shape == (3, 0)
    assert [kept_entries(n, 0.2) for n in (0, 1, 4, 10)] == [0, 1, 1, 2]
    assert kept_entries(4, 1.0, extra=1) == 4


@given(SEED, st.sampled_from(["l1", "l2", "linf"]), st.integers(1, 7))
def test_the_ratio_of_norms_is_that_of_the_whole(seed, norm, step):
    """Whatever the blocks in which it is computed."""
    x = normal(13, 6, seed=seed)
    kept = x * (x.abs() < 1)
    order = {"l1": 1, "l2": 2, "linf": float("inf")}[norm]
    expected = torch.linalg.vector_norm(x, order) / torch.linalg.vector_norm(kept, order)
    ratio = norm_ratio(zip(x.split(step), kept.split(step), strict=True), norm)
    assert ratio == pytest.approx(expected.item())
    assert norm_ratio([(x, 0 * x)], norm) == 1
    assert norm_ratio([(0 * x, 0 * x)], norm) == 1


@given(SEED, st.integers(1, 6))
def test_variance_over_the_updates(seed, n):
    stack = normal(n, 5, 4, seed=seed)
    weights = uniform(n, seed=seed) + 0.1
    share = weights / weights.sum()
    expected = np.einsum("i,ijk->jk", share, (stack - torch.einsum("i,ijk->jk", share, stack)) ** 2)
    torch.testing.assert_close(weighted_variance(stack, weights), torch.from_numpy(expected), rtol=1e-9, atol=1e-14)
    twice = torch.cat([stack, stack[:1]])
    doubled = torch.cat([weights, weights[:1]])
    heavy = weights.clone()
    heavy[0] *= 2
    torch.testing.assert_close(weighted_variance(twice, doubled), weighted_variance(stack, heavy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_entries_have_no_variance(n, dtype):
    """Not even that of round-off, which a selection would take for a difference."""
    stack = normal(1, 50, dtype=dtype).expand(n, 50)
    assert not weighted_variance(stack, torch.full((n,), 1 / n, dtype=dtype)).any()
    assert variance_threshold(torch.zeros(50), 0.1) == 0


def test_the_share_selected_is_of_what_varies():
    variance = torch.cat([torch.zeros(90), torch.arange(1.0, 11.0)])
    for density, kept in ((0.2, 2), (0.5, 5), (1.0, 10), (0.01, 1)):
        assert (variance >= variance_threshold(variance, density)).sum() == kept
