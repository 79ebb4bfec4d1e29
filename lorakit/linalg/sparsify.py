"""Which entries of an update to keep."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Count = Literal["exact", "official"]

_SAMPLE = 2**14  # entries that a threshold is first looked for in
_CHUNK = 2**16  # entries taken at a time, which stay in the cache


def magnitude_threshold(values: Tensor, density: float, *, count: Count = "exact") -> float:
    """Smallest magnitude that is kept when the largest ``density`` of the entries is.

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    density : float in (0, 1]
        Share of the entries to keep.
    count : {'exact', 'official'}, default='exact'
        ``int(density * n)`` entries as in PEFT and mergekit, or ``int(density * n) + 1`` as in the TIES authors' code.

    Returns
    -------
    float
        Keep ``abs(values) >= threshold``. Infinite where nothing is kept.
    """
    n = values.numel()
    keep = min(int(density * n) + (count == "official"), n)
    if keep == 0:
        return float("inf")
    return _kth_magnitude(values, n - keep + 1)


def magnitude_window(values: Tensor, density: float, gamma: float) -> tuple[float, float]:
    """Magnitudes between which entries are kept when the largest and the smallest are dropped.

    Model Breadcrumbs (Davari and Belilovsky, arXiv 2312.06795).

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    density : float in (0, 1]
        Share of the entries to keep: ``int(density * n)`` of them.
    gamma : float in [0, 1)
        Share of the entries, the largest, to drop: ``int(gamma * n)`` of them.

    Returns
    -------
    low, high : float
        Keep where ``low <= abs(values) <= high``. (inf, 0) where nothing is kept.
    """
    n = values.numel()
    top = n - int(gamma * n)
    keep = min(int(density * n), top)
    if keep == 0:
        return float("inf"), 0.0
    return _kth_magnitude(values, top - keep + 1), _kth_magnitude(values, top)


def _kth_magnitude(values: Tensor, k: int) -> float:
    """The k-th smallest magnitude, counted from 1."""
    if values.device.type != "cpu":
        return float(values.abs().flatten().kthvalue(k).values)
    flat = values.detach().flatten()
    between = _near_kth(flat, k) if len(flat) > 8 * _SAMPLE else None
    array, k = between or (flat.abs().numpy(), k)
    array.partition(k - 1)  # ours to reorder: kthvalue is slower here, and takes four times the memory
    return float(array[k - 1])


def _near_kth(flat: Tensor, k: int) -> tuple[NDArray[Any], int] | None:
    """Few magnitudes among which the k-th smallest is, and which it is of them; None where a sample misjudged it.

    Floyd and Rivest's idea (1975): the quantile of a sample, give or take five standard deviations, leaves few to sort,
    and counting the rest is much faster than moving it. What it finds is exact.
    """
    sample = np.sort(flat[:: len(flat) // _SAMPLE | 1].abs().numpy())
    place, slack = k / len(flat) * len(sample), 2.5 * len(sample) ** 0.5
    low = sample[int(place - slack)] if place > slack else 0.0
    high = sample[int(place + slack)] if place + slack < len(sample) else np.inf
    n_below, between = 0, []
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].abs().numpy()
        below = part < low
        n_below += int(np.count_nonzero(below))
        between.append(part[below ^ (part <= high)])
    found = np.concatenate(between)
    return (found, k - n_below) if 0 < k - n_below <= len(found) else None


def keep_above(values: Tensor, threshold: float) -> Tensor:
    """Keep the entries whose magnitude is at least a threshold, zero the rest; a new tensor.

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    threshold : float
        Of those that the entries' dtype has.
    """
    # hardshrink, one pass, keeps what is strictly above
    below = torch.tensor(threshold, dtype=values.dtype).nextafter(torch.tensor(-1.0, dtype=values.dtype))
    return torch.nn.functional.hardshrink(values, below.item())


def drop_randomly(values: Tensor, keep: Tensor | float, uniform: Tensor) -> Tensor:
    """Keep each entry with a probability of its own, and divide it by that: the expectation is unchanged.

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    keep : Tensor of the same shape, or float
        Probabilities, in (0, 1]: one for all entries in DARE (Yu et al., arXiv 2311.03099), those of
        :func:`rank_probabilities` in DELLA.
    uniform : Tensor of the same shape
        Uniform draws from [0, 1): an entry is kept where its draw is below its probability.

    Returns
    -------
    Tensor of the same shape
        A new tensor.
    """
    return values * (uniform < keep) / keep


def rank_probabilities(values: Tensor, density: float, epsilon: float) -> Tensor:
    r"""Probabilities of keeping entries that grow with the rank of their magnitude within their row.

    DELLA's MagPrune (Deep et al., arXiv 2406.11617): with magnitudes ranked ascending, :math:`\rho = 1 \dots n`,

    .. math:: \pi = (density - \epsilon) + 2 \epsilon \frac{\rho - 1}{n - 1}

    Parameters
    ----------
    values : Tensor of shape (..., n)
        Rows of entries.
    density : float in (0, 1]
        Mean probability of a row.
    epsilon : float
        Half the difference between the largest entry's probability and the smallest's.

    Returns
    -------
    Tensor of the same shape
        A row of one entry has ``density``.
    """
    n = values.shape[-1]
    if n < 2:
        return torch.full_like(values, density)
    order = values.abs().argsort(dim=-1, stable=True)
    rising = torch.linspace(density - epsilon, density + epsilon, n, dtype=values.dtype, device=values.device)
    return torch.empty_like(values).scatter_(-1, order, rising.expand_as(values))


def trim(stack: Tensor, density: float, *, count: Count = "exact") -> Tensor:
    """Keep the entries of largest magnitude of each update, zero the rest.

    The first step of TIES (Yadav et al., arXiv 2306.01708). Entries that tie with the last one kept are kept too.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        One update a leading index; each is trimmed on its own.
    density : float in (0, 1]
        Share of the entries to keep.
    count : {'exact', 'official'}, default='exact'
        As in :func:`magnitude_threshold`.

    Returns
    -------
    Tensor of the same shape
        A new tensor.
    """
    return torch.stack([keep_above(x, magnitude_threshold(x, density, count=count)) for x in stack])
