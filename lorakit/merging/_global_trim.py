"""Magnitude thresholds over a whole model whose entries are never held: radix selection on the bits of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .._execution import map_modules, read_module
from ..adapter_set import AdapterSet
from ..factors import LoraFactors
from ..linalg import kept_entries

Blocks = Callable[[Sequence[LoraFactors]], Iterator[tuple[int, Tensor]]]
_DIGIT = 16  # bits counted in one pass


def model_thresholds(
    X: AdapterSet, blocks: Blocks, density: float, *, extra: int, n_jobs: int | None, device: str | None
) -> list[float]:
    """Smallest magnitude that each adapter keeps when the largest ``density`` of all its entries is kept.

    The result is exact, and takes the memory of one module: non-negative floats are ordered as their bits are, so
    counting the entries by 16 bits at a time finds the threshold in two passes over float32 updates and in four over
    float64 ones.

    Parameters
    ----------
    X : AdapterSet
        The adapters.
    blocks : callable
        From one module's factors to pairs of an adapter's position and a block of its entries.
    density : float in (0, 1]
        Share of the entries to keep.
    extra : int
        Added to the number of entries kept, which is at least one.
    n_jobs, device
        As in the estimators.

    Returns
    -------
    list of float
        For each adapter: keep ``abs(entries) >= threshold``. Infinite where it has no entries.
    """
    double = X.dtype == torch.float64
    prefixes = [0] * len(X)  # the leading bits found so far
    above = [0] * len(X)  # entries known to be larger
    wanted: list[int] | None = None
    for shift in range((64 if double else 32) - _DIGIT, -1, -_DIGIT):
        task = partial(_count, blocks=blocks, prefixes=prefixes, shift=shift, double=double, device=device)
        counts = np.zeros((len(X), 2**_DIGIT), dtype=np.int64)
        for module in map_modules(task, X, n_jobs=n_jobs, verbose=0):
            for i, (digits, times) in enumerate(module):
                counts[i, digits] += times
        if wanted is None:
            wanted = [kept_entries(int(total), density, extra=extra) for total in counts.sum(axis=1)]
        for i, row in enumerate(counts):
            larger = above[i] + row[::-1].cumsum()  # entries at or above each digit, from the largest digit down
            digit = len(row) - 1 - int(np.searchsorted(larger, wanted[i]))
            digit = max(digit, 0)
            above[i] = int(larger[len(row) - 1 - digit] - row[digit])
            prefixes[i] = (prefixes[i] << _DIGIT) | digit
    assert wanted is not None
    kind = (np.uint64, np.float64) if double else (np.uint32, np.float32)
    found = [float(np.array(prefix, dtype=kind[0]).view(kind[1])) for prefix in prefixes]
    return [threshold if keep else float("inf") for threshold, keep in zip(found, wanted, strict=True)]


def _count(
    X: AdapterSet, module: str, *, blocks: Blocks, prefixes: list[int], shift: int, double: bool, device: str | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Count each adapter's entries by the digit at ``shift``, among those whose leading bits are the prefix.

    Returns the digits that occur and their counts. Few digits occur, which keeps the results small: the results of all
    modules are held at once.
    """
    kind = (torch.float64, torch.int64) if double else (torch.float32, torch.int32)
    counts = np.zeros((len(X), 2**_DIGIT), dtype=np.int64)
    for i, block in blocks(read_module(X, module, device)):
        bits = block.abs().to(kind[0]).flatten().view(kind[1])
        if shift + _DIGIT < (64 if double else 32):  # all prefixes are empty in the first pass
            bits = bits[(bits >> (shift + _DIGIT)) == prefixes[i]]
        counts[i] += torch.bincount((bits >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT).cpu().numpy()
    occurring = [np.flatnonzero(row).astype(np.uint16) for row in counts]
    return [(digits, row[digits]) for digits, row in zip(occurring, counts, strict=True)]
