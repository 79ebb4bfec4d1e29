"""Differences of whole parameters in a merge: added up where the result is a sum of updates, with the same factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import check_strengths
from ..adapter_set import AdapterSet
from ..differences import MemoryDifferences, merged_differences


def added_differences(merger: Any, X: AdapterSet) -> MemoryDifferences | None:
    """Return the differences of what a merger makes of adapters; None if they have none.

    Parameters
    ----------
    merger : BaseMerger
        One that adds them up, with a number for ``scale``.
    X : AdapterSet
        The adapters.
    """
    _, weights, _ = merger._weighed(X)
    positions = np.flatnonzero(weights)
    found = merger._coefficients(weights[positions])
    assert found is not None  # the adapters are refused otherwise
    factors = np.zeros(len(X))
    factors[positions] = found * float(merger.scale)
    if merger.strengths is not None:
        factors *= check_strengths(merger.strengths, X.names)
    return merged_differences(list(X), factors.tolist(), X[positions].dtype)
