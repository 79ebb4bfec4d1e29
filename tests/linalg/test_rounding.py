"""The first look at an update: it passes no update whose units cancel, and none with numbers that are not finite."""

import pytest
import torch

from lorakit.linalg.rounding import MOST_OPEN, ROUNDING, surely_sound, units_cancel

DTYPES = list(ROUNDING)


def drawn(rank, d_in=96, d_out=130, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_ordinary_updates_pass(rank, dtype):
    assert surely_sound(drawn(rank), dtype)
    a, b = drawn(rank)
    assert surely_sound((a * torch.linspace(1, 0.7, rank)[:, None], b * torch.linspace(1, 0.1, rank)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["everywhere", "in the first rows", "in the last rows"])
def test_no_update_passes_whose_units_cancel(where, dtype):
    """Also where the rows that the look takes for all hold all of what is left."""
    (a, b), (left_a, left_b) = drawn(3), drawn(2, seed=1)
    if where != "everywhere":
        left_b[slice(40, None) if where == "in the first rows" else slice(-20)] = 0
    size = float((a.square().sum(dim=1) * b.square().sum(dim=0)).sum().sqrt())
    left = float((left_b @ left_a).norm())
    for times in (2.0, 8.0, 64.0, 2.0**14):  # beyond what may cancel, by so much
        factor = times * min(MOST_OPEN / ROUNDING[dtype], 2.0**12) * left / size
        update = torch.cat([a, a, left_a]).double(), torch.cat([factor * b, -factor * b, left_b], dim=1).double()
        assert units_cancel(update, dtype)
        assert not surely_sound(update, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_nothing_passes_that_is_not_finite(side, value):
    for place in ((0, 0), (-1, -1), (2, 3)):
        update = drawn(5)
        update[side][place] = value
        assert not surely_sound(update, torch.float32)
    update = drawn(5)
    update[1 - side].zero_()
    update[side][1, 1] = value
    assert not surely_sound(update, torch.float32)


def test_what_one_look_cannot_tell_does_not_pass():
    a, b = drawn(4)
    assert not surely_sound((1e30 * a, 1e30 * b), torch.bfloat16)
    assert not units_cancel((1e30 * a, 1e30 * b), torch.bfloat16)
    assert not surely_sound((a[:0], b[:, :0]), torch.bfloat16)


def test_an_update_of_zero_passes():
    a, b = drawn(4)
    assert surely_sound((a, 0 * b), torch.bfloat16)
