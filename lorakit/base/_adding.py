"""Differences of whole parameters in a merge: added up where the result is a sum of updates, with the same factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._validation import check_strengths
from ..adapter_set import AdapterSet
from ..differences import MemoryDifferences, added_up, rounded


class AddedDifferences:
    """What a merge comes to at the parameters without factors, before its scale.

    Parameters
    ----------
    merger : BaseMerger
        One that adds them up.
    X : AdapterSet
        The adapters.
    """

    def __init__(self, merger: Any, X: AdapterSet) -> None:
        _, weights, _ = merger._weighed(X)
        positions = np.flatnonzero(weights)
        counted, weights = X[positions], weights[positions]
        factors = merger._coefficients(weights)
        assert factors is not None  # the adapters are refused otherwise
        strengths = np.ones(len(counted))
        if merger.strengths is not None:
            strengths = check_strengths(merger.strengths, X.names)[positions]
        self.dtype: torch.dtype = counted.dtype
        self.weights = np.abs(weights)
        self.sums, own = added_up(counted, (factors * strengths).tolist())
        self.norms: dict[str, np.ndarray] = {}  # of the sum, and of what each adapter adds; if they are to be matched
        if merger.scale == "match":
            for name, total in self.sums.items():
                self.norms[name] = np.array([float(total.norm()), *(own[name] * np.abs(strengths))])

    def scaled(self, merger: Any, of_model: float | None) -> MemoryDifferences | None:
        """Return what the merge adds to the parameters.

        Parameters
        ----------
        merger : BaseMerger
            With a ``scale``.
        of_model : float or None
            The one factor that matches the norm of the whole model, if that is what is matched.
        """
        scales = dict.fromkeys(self.sums, merger.scale if of_model is None else of_model)
        if merger.scale == "match" and of_model is None:
            scales = {name: merger._matching_scale(self.norms[name], self.weights) for name in self.sums}
        return rounded({name: total * float(scales[name]) for name, total in self.sums.items()}, self.dtype)
