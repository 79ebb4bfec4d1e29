"""How near one update is to another, as three sums: made where the products are there anyway, or of two adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch

from ._execution import map_modules
from ._html import html_table
from .adapter_set import AdapterSet
from .adapters import Adapter
from .linalg import Overlap, inner_product


@dataclass(frozen=True)
class Comparison:
    """Two adapters' updates over the same modules, as three sums.

    Parameters
    ----------
    inner : float
        ``<X, Y>``, Frobenius.
    squared_x, squared_y : float
        ``||X||^2`` and ``||Y||^2``.
    """

    inner: float
    squared_x: float
    squared_y: float

    @property
    def cosine(self) -> float:
        """Cosine between X and Y; 0 if either is zero."""
        norms = sqrt(self.squared_x) * sqrt(self.squared_y)
        return self.inner / norms if norms else 0.0

    @property
    def relative_error(self) -> float:
        """``||X - Y|| / ||Y||``; infinite if Y is zero and X is not."""
        squared = max(self.squared_x - 2 * self.inner + self.squared_y, 0.0)
        if self.squared_y:
            return sqrt(squared / self.squared_y)
        return float("inf") if squared else 0.0

    @property
    def norm_ratio(self) -> float:
        """``||X|| / ||Y||``; infinite if Y is zero and X is not."""
        if self.squared_y:
            return sqrt(self.squared_x / self.squared_y)
        return float("inf") if self.squared_x else 1.0

    def __repr__(self) -> str:
        return (
            f"Comparison(cosine={self.cosine:.4g}, relative_error={self.relative_error:.4g}, "
            f"norm_ratio={self.norm_ratio:.4g})"
        )

    def _repr_html_(self) -> str:
        numbers = [f"{value:.4g}" for value in (self.cosine, self.relative_error, self.norm_ratio)]
        return html_table("Comparison of two updates", ("", "cosine", "relative error", "ratio of norms"),
                          [("X to Y", *numbers)])  # fmt: skip

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(self.inner + other.inner, self.squared_x + other.squared_x, self.squared_y + other.squared_y)


def compared_to_each(x: Adapter, others: Sequence[Adapter], *, n_jobs: int | None) -> list[Comparison]:
    """Compare one adapter's update with those of several others; see :func:`lorakit.metrics.compare_to_each`."""
    found = map_modules(overlap_at_module, AdapterSet([x, *others]), n_jobs=n_jobs, verbose=0)
    return summed(found, len(others))


def overlap_at_module(X: AdapterSet, module: str) -> Overlap:
    """Inner products of the first adapter's update at one module with itself and with each of the others'."""
    x, *others = (factors.to(torch.float64) for factors in X.factors(module))
    # in one and the same way: then the difference of two equal updates is exactly zero
    inner, given = ([inner_product(x, y).item() for y in others], [inner_product(y, y).item() for y in others])
    return Overlap(inner_product(x, x).item(), np.array(inner), np.array(given))


def summed(overlaps: Sequence[Overlap], n: int) -> list[Comparison]:
    """Compare a merged update with each of n others, all modules as one vector."""
    totals = [Comparison(0.0, 0.0, 0.0)] * n
    for found in overlaps:
        parts = (
            Comparison(i, found.squared, g) for i, g in zip(found.inner.tolist(), found.given.tolist(), strict=True)
        )
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
    return totals
