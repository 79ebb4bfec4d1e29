"""What rounding the numbers of A and B leaves open of the update ``B @ A``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import frexp, inf

import torch
from torch import Tensor

from .frames import frame_of
from .products import Update, narrowed

# What is left of a number after it was stored in a dtype, relative to it. The narrow dtypes round once, and that is
# all; between two ways to the same float32 or float64 numbers lie sums of thousands of terms in another order.
ROUNDING = {torch.float64: 2.0**-40, torch.float32: 2.0**-19, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# How far rounding may excuse a difference: units that cancel can be at most so many times as large as what is left of
# them, and what rounding leaves open at most an eighth of the update. Else two huge units that cancel would let any
# other update pass for the same.
MOST_CANCELLING, MOST_OPEN = 2.0**12, 0.125

_LARGEST_POWER = 1000  # of two, of which float64 has the inverse too
_ZERO = 1e-14  # of the units: what is below it is the round-off of float64
_CHUNK = 2**16
_SHARE = 4  # the share of the rows of B that a first look takes for all of them
_PROBES, _SLACK = 4, 8.0  # vectors by which a norm is estimated, and how far off the estimate is taken to be


def exponent_of(factors: Iterable[Tensor]) -> int:
    """Return the power of two that makes the largest number of some factors about 1, so that nothing overflows."""
    largest = max(float(factor.abs().max()) if factor.numel() else 0.0 for factor in factors)
    return max(-_LARGEST_POWER, min(frexp(largest)[1], _LARGEST_POWER))


def surely_sound(update: Update, stored: torch.dtype) -> bool:
    """Whether one look shows that all numbers are finite, and that units do not cancel as in :func:`units_cancel`.

    It passes over A and B about as often as a check for values that are not finite does alone. Nearly all updates pass
    it; one that does not may still be in order.

    Parameters
    ----------
    update, stored
        As in :func:`units_cancel`, but the numbers may be anything.
    """
    a, b = update
    if not a.numel() or not b.numel():
        return False
    # At least the units together, and little more where the rows of A are of one length, as training leaves them. What
    # is not finite makes these norms so.
    units = float(torch.linalg.vector_norm(a, dim=1).max()) * float(torch.linalg.vector_norm(b))
    if not units < inf:
        return False
    some = b[: -(-len(b) // _SHARE)]  # the other rows cannot be of less than no length: at most twice too much
    estimate = float(torch.linalg.vector_norm(some @ (a @ _probes(a.shape[1])[0].to(a)))) * (len(b) / len(some)) ** 0.5
    return bool(units * (_SLACK / _most(stored)) <= estimate < inf)


def _most(stored: torch.dtype) -> float:
    """Return how many times as large as the update its units may be together."""
    return min(MOST_OPEN / ROUNDING[stored], MOST_CANCELLING)


def units_cancel(update: Update, stored: torch.dtype) -> bool:
    """Whether units cancel to so little that rounding them swamps the update.

    The rounding errors of units are independent of one another, so their squares add up. Rounding to ``stored`` then
    leaves open at most an eighth of the update, and in the wide dtypes far less, if the units together are not many
    times as large as it is.

    Parameters
    ----------
    update : (A, B)
        Factors of one module, A of shape (r, d_in), B of shape (d_out, r), with finite numbers.
    stored : torch.dtype
        In which the numbers of A and B are, or were, stored.

    Examples
    --------
    >>> a, b = torch.randn(1, 64), torch.randn(48, 1)
    >>> small = torch.randn(1, 64), torch.randn(48, 1)
    >>> units_cancel((torch.cat([small[0], a, a]), torch.cat([small[1], 1e6 * b, -1e6 * b], dim=1)), torch.float32)
    True
    >>> units_cancel((torch.cat([small[0], a]), torch.cat([small[1], b], dim=1)), torch.bfloat16)
    False
    """
    a, b = update
    most = _most(stored)
    # Estimates of the norm cost little more than a look at each number, and few updates need more.
    if b.numel() <= _CHUNK:
        squares = b.square().sum(dim=0)
    else:  # squares of a few rows stay in the cache
        rows = max(1, _CHUNK // b.shape[1])
        squares = torch.stack([part.square().sum(dim=0) for part in torch.split(b, rows)]).sum(dim=0)
    units = torch.linalg.vector_norm(torch.linalg.vector_norm(a, dim=1) * squares.sqrt()).item()
    for probe in _probes(a.shape[1]):
        estimate = torch.linalg.vector_norm(b @ (a @ probe.to(a))).item()
        if units * (_SLACK / most) <= estimate < inf:
            return False
    a, b = (factor.double() * 2.0 ** -exponent_of([factor]) for factor in (a, b))
    together = float((a.square().sum(dim=1) * b.square().sum(dim=0)).sum().sqrt())
    a, b = narrowed((a, b))
    # by QR: of units that cancel, inner products have no digits left
    left = float((frame_of([b], gram=False).blocks[0] @ frame_of([a.mT], gram=False).blocks[0].mT).norm())
    return left > _ZERO * together and together > most * left


@lru_cache(maxsize=64)
def _probes(d_in: int) -> Tensor:
    """Return vectors of random signs, (n, d_in): the squared norm of ``W @ probe`` is on average that of W."""
    generator = torch.Generator().manual_seed(d_in)
    return torch.randint(0, 2, (_PROBES, d_in), generator=generator, dtype=torch.float32) * 2 - 1
