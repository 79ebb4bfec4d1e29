"""Minimal semantic units (MSUs): row i of A joined with column i of B.

Zhao et al., "Merging LoRAs like Playing LEGO" (arXiv 2409.16167), Definition 1. The method section of the paper writes
``A[:, l]`` for a unit's part of A. That contradicts the definition, which this module follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .products import Update
from .svd import split_svd, svd_of_sum


def pool_msus(updates: Sequence[Update], places: np.ndarray | None = None) -> Tensor:
    """Stack the MSUs of T updates.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    places : ndarray of int of shape (R,), default=None
        The row of the result that each MSU becomes: a permutation. None keeps the order of the updates.

    Returns
    -------
    Tensor of shape (R, d_in + d_out)
        A row is ``[A[l, :], B[:, l]]`` of one update.
    """
    pairs = [(a, b) for a, b in updates]
    if places is None:
        return torch.cat([torch.cat([a, b.mT], dim=1) for a, b in pairs])
    d_in, d_out = pairs[0][0].shape[1], pairs[0][1].shape[0]
    pool = pairs[0][0].new_empty(len(places), d_in + d_out)
    to_a, to_b = pool[:, :d_in], pool[:, d_in:]
    for (a, b), own in zip(pairs, np.split(places, np.cumsum([len(a) for a, _ in pairs])[:-1]), strict=True):
        if pool.device.type == "cpu":  # NumPy takes half of torch's time here
            to_a.numpy()[own], to_b.numpy()[own] = a.numpy(), b.numpy().T
        else:
            rows = torch.from_numpy(own).to(pool.device)
            to_a[rows], to_b[rows] = a, b.mT
    return pool


def split_msus(units: Tensor, d_in: int) -> tuple[Tensor, Tensor]:
    """Take a pool of MSUs apart: the inverse of :func:`pool_msus` for one update.

    Parameters
    ----------
    units : Tensor of shape (k, d_in + d_out)
        One MSU a row.
    d_in : int
        Number of columns that belong to A.

    Returns
    -------
    A : Tensor of shape (k, d_in)
    B : Tensor of shape (d_out, k)
    """
    return units[:, :d_in].contiguous(), _turned(units[:, d_in:])


def _turned(rows: Tensor) -> Tensor:
    """Return ``rows.T``, contiguous in memory."""
    turned = rows.new_empty(rows.shape[1], rows.shape[0])
    # Few rows at a time: entries of one column often lie a power of 2 apart, and a cache holds only eight such entries
    for few, place in zip(torch.split(rows, 8), torch.split(turned, 8, dim=1), strict=True):
        place.copy_(few.mT)
    return turned


def balance_msus(update: Update) -> tuple[Tensor, Tensor]:
    """Rescale every MSU so that its two parts have equal norm, ``||a|| = ||b||``; the update is unchanged.

    If one part of a unit is zero, its update is zero, and both parts become zero.
    """
    a, b = update
    norm_a, norm_b = a.norm(dim=1), b.norm(dim=0)
    alive = (norm_a > 0) & (norm_b > 0)
    ratio = torch.where(alive, norm_b, 1) / torch.where(alive, norm_a, 1)
    root = ratio.sqrt()
    return a * (root * alive)[:, None], b * (alive / root)


def align_svd(update: Update) -> tuple[Tensor, Tensor]:
    """Replace the factors by ``sqrt(S) V^T`` and ``U sqrt(S)`` of the update's own SVD, signs fixed.

    The result depends on ``B @ A`` alone, and not on which of its many factorizations the file holds: permuting,
    negating or rescaling the units, or mixing them by any invertible matrix, gives the same result.
    """
    a, b = update
    u, s, vh = svd_of_sum([(a, b)], [1.0])
    return split_svd(u, s, vh, len(s))
