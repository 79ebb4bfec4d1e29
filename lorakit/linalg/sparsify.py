"""Which entries of an update to keep, and what the kept ones are multiplied by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Count = Literal["exact", "official"]
Norm = Literal["l1", "l2", "linf"]

_ORDERS: dict[Norm, float] = {"l1": 1, "l2": 2, "linf": np.inf}
_MANY = 2**17  # with more entries than this, a threshold is first estimated from a sample
_CHUNK = 2**16  # entries taken at a time, which stay in the cache


def magnitude_threshold(values: Tensor, density: float, *, count: Count = "exact") -> float:
    """Smallest magnitude that is kept when only a given share of the entries, the largest ones, is kept.

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    density : float in (0, 1]
        Share of the entries to keep.
    count : {'exact', 'official'}, default='exact'
        ``int(density * n)`` entries as in PEFT and mergekit, or ``int(density * n) + 1`` as in the TIES authors' code;
        at least one in either case.

    Returns
    -------
    float
        Keep ``abs(values) >= threshold``. Infinite where there are no entries.
    """
    n = values.numel()
    keep = kept_entries(n, density, extra=int(count == "official"))
    return _kth_magnitudes(values, [n - keep + 1])[0] if keep else float("inf")


def kept_entries(n: int, density: float, *, extra: int = 0) -> int:
    """Number of entries that a trim keeps of n: ``int(density * n) + extra``, at least one, at most all."""
    return min(max(int(density * n) + extra, 1), n)


def magnitude_window(values: Tensor, density: float, gamma: float) -> tuple[float, float]:
    """Magnitudes between which entries are kept when the largest and the smallest are dropped.

    Model Breadcrumbs (Davari and Belilovsky, arXiv 2312.06795).

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    density : float in (0, 1]
        Share of the entries to keep: ``int(density * n)`` of them, at least one.
    gamma : float in [0, 1)
        Share of the entries, the largest, to drop: ``int(gamma * n)`` of them, at most all but one.

    Returns
    -------
    low, high : float
        Keep where ``low <= abs(values) <= high``. (inf, 0) where there are no entries.
    """
    n = values.numel()
    if n == 0:
        return float("inf"), 0.0
    bottom, top = _window(n, density, gamma)
    low, high = _kth_magnitudes(values, [bottom + 1, top])
    return low, high


def keep_middle(values: Tensor, density: float, gamma: float) -> Tensor:
    """Keep the entries of each row that :func:`magnitude_window` would keep of the row alone; a new tensor.

    This is the mask of the Model Breadcrumbs authors' code, which works row by row. Among equal magnitudes, later
    entries rank higher.

    Parameters
    ----------
    values : Tensor of shape (..., n)
        Rows of entries.
    density, gamma : float
        As in :func:`magnitude_window`, of the n entries of a row.
    """
    if values.numel() == 0:
        return values.clone()
    bottom, top = _window(values.shape[-1], density, gamma)
    places = _rising_order(values)[..., bottom:top]
    return torch.zeros_like(values).scatter_(-1, places, values.gather(-1, places))


def _window(n: int, density: float, gamma: float) -> tuple[int, int]:
    """Start and end of the window that is kept, among n > 0 entries in rising order."""
    top = max(n - int(gamma * n), 1)
    return top - min(kept_entries(n, density), top), top


def _kth_magnitudes(values: Tensor, ks: Sequence[int]) -> list[float]:
    """The k-th smallest magnitudes, counted from 1."""
    flat = values.detach().flatten()
    if values.device.type != "cpu":
        return [float(flat.abs().kthvalue(k).values) for k in ks]
    near = _near_kth(flat.numpy(), ks) if len(flat) > _MANY else [None] * len(ks)
    kth = []
    for k, found in zip(ks, near, strict=True):
        array, place = found or (flat.abs().numpy(), k)
        array.partition(place - 1)  # a copy, so it may be reordered; kthvalue is slower and takes four times the memory
        kth.append(float(array[place - 1]))
    return kth


def _near_kth(flat: NDArray[Any], ks: Sequence[int]) -> list[tuple[NDArray[Any], int] | None]:
    """Narrow each k-th smallest magnitude down to a few candidates; return these, and its place among them.

    After Floyd and Rivest (1975): nearly always the k-th smallest lies within three standard deviations of a sample's
    quantile. Only the entries in that interval are sorted; those below it are counted, which is much faster. The
    result is exact, or None where the interval does not hold the k-th smallest.
    """
    sample = np.abs(flat[:: _sample_step(len(flat))])
    ends = []
    for k in ks:
        share = k / len(flat)
        place, slack = share * len(sample), 3 * (share * (1 - share) * len(sample)) ** 0.5 + 1
        ends.append((int(place - slack), int(place + slack)))
    sample.partition([i for pair in ends for i in pair if 0 < i < len(sample)])
    bounds = [(sample[i] if i > 0 else 0.0, sample[j] if j < len(sample) else np.inf) for i, j in ends]
    n_below = [0] * len(ks)
    between: list[list[NDArray[Any]]] = [[] for _ in ks]
    # The buffers are reused: allocating memory would take longer than the work in it
    part, below, mid = np.empty(_CHUNK, flat.dtype), np.empty(_CHUNK, bool), np.empty(_CHUNK, bool)
    for start in range(0, len(flat), _CHUNK):
        size = min(_CHUNK, len(flat) - start)
        part, below, mid = part[:size], below[:size], mid[:size]
        np.abs(flat[start : start + size], out=part)
        for i, (low, high) in enumerate(bounds):
            np.less(part, low, out=below)
            n_below[i] += int(np.count_nonzero(below))
            np.not_equal(below, np.less_equal(part, high, out=mid), out=mid)
            between[i].append(part.compress(mid))
    found = [(np.concatenate(parts), k - n) for parts, k, n in zip(between, ks, n_below, strict=True)]
    return [(few, place) if 0 < place <= len(few) else None for few, place in found]


def _sample_step(n: int) -> int:
    """Step between the sampled ones of n entries; odd, because the widths of most modules are even."""
    return round(float(np.cbrt(n))) | 1  # sorting a sample of n^(2/3) takes about as long as sorting the candidates


def keep_above(values: Tensor, threshold: float) -> Tensor:
    """Keep the entries whose magnitude is at least a threshold, zero the rest; a new tensor.

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    threshold : float
        A number that the entries' dtype can hold.
    """
    # hardshrink, one pass, keeps what is strictly above
    kind = np.float64 if values.dtype == torch.float64 else np.float32
    below = np.nextafter(kind(threshold), kind(-1))
    return torch.nn.functional.hardshrink(values, float(below))


def keep_between(values: Tensor, low: float, high: float) -> Tensor:
    """Keep the entries whose magnitude is from ``low`` to ``high``, zero the rest; a new tensor.

    Parameters
    ----------
    values : Tensor
        Entries, of any shape.
    low, high : float
        Numbers that the entries' dtype can hold.
    """
    if low > high:
        return torch.zeros_like(values)
    return keep_above(values, low).sub_(torch.nn.functional.hardshrink(values, high))


def drop_randomly(values: Tensor, keep: Tensor | float, uniform: Tensor) -> Tensor:
    """Keep each entry with a given probability and divide it by that probability: the expectation is unchanged.

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


def weighted_variance(stack: Tensor, weights: Tensor) -> Tensor:
    """Variance of each entry over the updates, zero where it is round-off.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates.
    weights : Tensor of shape (T,)
        Positive weights. Listing an update twice is the same as doubling its weight.

    Returns
    -------
    Tensor of shape (...)
        The weighted mean of the squared deviations from the weighted mean.
    """
    share = weights / weights.sum()
    deviations = (stack - torch.tensordot(share, stack, dims=1)).square_()
    variance: Tensor = torch.tensordot(share, deviations, dims=1)
    round_off = (len(weights) * torch.finfo(stack.dtype).eps) ** 2 * stack.square().amax(dim=0)
    return variance.mul_(variance > round_off)


def variance_threshold(variance: Tensor, density: float) -> float:
    """Smallest variance that is kept when only a share ``density`` of the non-zero ones, the largest, is kept.

    The select step of SCE (Wan et al., arXiv 2408.07990). If all variances are zero, the threshold is zero, and all are
    kept.
    """
    varying = int(torch.count_nonzero(variance))
    return _kth_magnitudes(variance, [variance.numel() - kept_entries(varying, density) + 1])[0] if varying else 0.0


def magnitude_norm(values: Tensor, norm: Norm) -> float:
    """Sum of magnitudes ('l1'), Euclidean norm ('l2') or largest magnitude ('linf') of all entries, in float64."""
    return float(torch.linalg.vector_norm(values, _ORDERS[norm], dtype=torch.float64)) if values.numel() else 0.0


def norm_ratio(pairs: Iterable[tuple[Tensor, Tensor]], norm: Norm) -> float:
    """Factor that gives a sparse tensor the norm that it had before, from pairs of blocks before and after.

    Parameters
    ----------
    pairs : iterable of (Tensor, Tensor)
        Blocks of the whole tensor, and the same blocks once entries were dropped.
    norm : {'l1', 'l2', 'linf'}
        As in :func:`magnitude_norm`.

    Returns
    -------
    float
        1 if every entry was dropped, or was zero before.
    """
    norms = [(magnitude_norm(before, norm), magnitude_norm(after, norm)) for before, after in pairs]
    before, after = (float(np.linalg.norm(column, _ORDERS[norm])) for column in zip(*norms, strict=True))
    return before / after if after > 0 else 1.0


def rank_probabilities(values: Tensor, density: float, epsilon: float) -> Tensor:
    r"""Probability of keeping each entry, which grows with the rank of its magnitude within its row.

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
        Probabilities; ``density`` where a row has one entry.
    """
    n = values.shape[-1]
    if n < 2:
        return torch.full_like(values, density)
    order = _rising_order(values)
    rising = torch.linspace(density - epsilon, density + epsilon, n, dtype=values.dtype, device=values.device)
    return torch.empty_like(values).scatter_(-1, order, rising.expand_as(values))


def _rising_order(values: Tensor) -> Tensor:
    """Indices that sort each row by magnitude, stably."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.abs().argsort(dim=-1, stable=True)
    # Non-negative floats are ordered as their bits are. With the index in the lower half no two keys are equal, and
    # NumPy sorts integers in a third of the time that torch takes to find a stable order.
    keys = values.detach().abs().numpy().view(np.uint32).astype(np.uint64) << 32
    keys |= np.arange(values.shape[-1], dtype=np.uint64)
    keys.sort(axis=-1)
    keys &= 2**32 - 1
    return torch.from_numpy(keys.view(np.int64))


def trim(stack: Tensor, density: float, *, count: Count = "exact") -> Tensor:
    """Keep the entries of largest magnitude of each update, zero the rest.

    The first step of TIES (Yadav et al., arXiv 2306.01708). Entries that tie with the last one kept are kept too.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates along the first dimension; each is trimmed on its own.
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
