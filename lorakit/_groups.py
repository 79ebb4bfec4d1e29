"""Merging many adapters in groups, and the results again: for methods whose cost grows with the square of the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from ._validation import check_adapters, check_weights
from .adapter_set import AdapterSet
from .adapters import Adapter
from .base import BaseMerger

__all__ = ["merge_in_groups"]


def merge_in_groups(
    merger: BaseMerger,
    adapters: AdapterSet | Iterable[Adapter],
    *,
    size: int = 16,
    weights: ArrayLike | Mapping[str, float] | None = None,
) -> Adapter:
    """Merge adapters in groups, and what comes of them in groups again, until one is left.

    No merge sees more than ``size`` adapters at a time, so that time grows in proportion to their number, and memory
    with the size of a group. The result is another one than that of a merge of all at once: a cut to rank ``k`` of each
    group loses what is small in its group, and a rule that weighs adapters against one another sees only those of a
    group. :doc:`/results/many` measures how much that is.

    Parameters
    ----------
    merger : BaseMerger
        The method; it is cloned for each merge, and must have neither ``weights`` nor ``strengths``. ``k`` is the rank
        of every merge on the way. None lets many methods add up ranks, so give a number.
    adapters : AdapterSet or list of Adapter
        The adapters, grouped in their order.
    size : int, default=16
        Most adapters of a group, at least 2.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights. A group counts with the sum of the weights of its members.

    Returns
    -------
    Adapter
        The last merge.

    Raises
    ------
    TypeError
        If ``merger`` is no merger.
    ValueError
        If ``size`` is below 2, ``weights`` are wrong, or the merger has weights or strengths of its own.

    See Also
    --------
    SVDMerger.partial_fit : The mean of any number of adapters, with a bound of its error.

    Examples
    --------
    >>> from lorakit import TSVMerger, merge_in_groups
    >>> from lorakit.testing import make_adapters
    >>> merge_in_groups(TSVMerger(k=4), make_adapters(9, ranks=4, random_state=0), size=3)
    Adapter('tsv', modules=2, rank=4, dtype=float32)
    """
    if not isinstance(merger, BaseMerger):
        raise TypeError(f"merger must be a merger such as TSVMerger(k=16), got {type(merger).__name__}")
    if size < 2:
        raise ValueError(f"size must be 2 or more, got {size}")
    if merger.weights is not None or merger.strengths is not None:
        raise ValueError("weights and strengths of the merger go with one set; pass weights to merge_in_groups")
    X = check_adapters(adapters)
    left = list(zip(X, check_weights(weights, X.names, signed=False).tolist(), strict=True))
    left = [(adapter, weight) for adapter, weight in left if weight]
    while len(left) > 1:
        left = [_merged(merger, left[start : start + size]) for start in range(0, len(left), size)]
    return left[0][0]


def _merged(merger: Any, group: list[tuple[Adapter, float]]) -> tuple[Adapter, float]:
    """Merge one group; its weight is the sum of its members'."""
    adapters, weights = zip(*group, strict=True)
    if len(adapters) == 1:  # what is left over at the end
        return group[0]
    named = AdapterSet(adapter.renamed(f"{i}-{adapter.name}") for i, adapter in enumerate(adapters))
    own = clone(merger).set_params(weights=list(weights))
    if isinstance(own.k, int | np.integer):  # a small group may have fewer ranks in all: then it is kept whole
        own.set_params(k=min(own.k, max(own._limits(named).values())))
    merged: Adapter = own.fit(named).merged_
    return merged, float(sum(weights))
