"""Base of the rules that drop entries at random (DARE, DELLA)."""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .._sklearn import StrOptions
from ..linalg import drop_randomly
from ._draws import uniform_like
from ._elementwise import SIGN_ELECTION, ElementwiseMerger, consensus, norm_factor, scaled


class RandomDropMerger(ElementwiseMerger):
    """Keep entries at random, multiply what is kept, and average, with an election of signs or without."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "sign_election": SIGN_ELECTION,
        "rescale": [StrOptions({"expectation", "l1", "l2", "linf"}), None],
    }

    @abstractmethod
    def _keep(self, x: Tensor) -> Tensor | float:
        """Return the probability of each entry of some rows, (rows, n), or the one of all."""

    @property
    def _measures(self) -> bool:
        return self.rescale not in ("expectation", None)  # else one pass does

    def _measure(self, x: Tensor, adapter: int, rng: np.random.RandomState) -> float:
        foreseen = deepcopy(rng)
        return norm_factor(x, lambda part: self._dropped(part, foreseen), self.rescale)

    def _dropped(self, x: Tensor, rng: np.random.RandomState) -> Tensor:
        keep, uniform = self._keep(x), uniform_like(x, rng)
        return drop_randomly(x, keep, uniform) if self.rescale == "expectation" else x * (uniform < keep)

    def _sparsify(self, x: Tensor, measured: float | None, rng: np.random.RandomState) -> Tensor:
        return scaled(self._dropped(x, rng), measured or 1.0)

    def _combine(self, stack: Tensor, weights: Tensor, survey: None) -> Tensor:
        return consensus(stack, weights, self.sign_election)
