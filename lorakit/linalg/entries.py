"""Moments of the entries of an update, from its thin factors."""

from __future__ import annotations

from .frames import compress
from .products import Update


def entry_moments(update: Update) -> tuple[float, float]:
    """Mean and variance of the entries of ``B @ A``, without forming it.

    Parameters
    ----------
    update : (A, B)
        Factors of one module, A of shape (r, d_in), B of shape (d_out, r).

    Returns
    -------
    mean : float
    variance : float
        The mean squared deviation from ``mean``.
    """
    a, b = (x.double() for x in update)
    n = len(b) * a.shape[1]
    mean = (b.sum(dim=0) @ a.sum(dim=1)).item() / n
    # The mean is subtracted as one more unit: E[x^2] - E[x]^2 would lose the digits of a small variance
    shift = a.new_full((1, a.shape[1]), -mean), b.new_ones(len(b), 1)
    (small_a, small_b), (shift_a, shift_b) = compress([(a, b), shift]).updates
    centred = small_b @ small_a + shift_b @ shift_a
    return mean, centred.square().sum().item() / n
