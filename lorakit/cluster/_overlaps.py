"""Inner products of an update of centroids with those that its units are from, by the Gram matrices of the units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..linalg import Overlap
from ._rows import Floats, Ints


class Grams(NamedTuple):
    """Gram matrices of the two parts of m units, (m, m) each, in float64; their sum is that of the units."""

    inputs: Tensor
    outputs: Tensor


class Mixture(NamedTuple):
    """An update whose units are mixtures of units of others.

    Parameters
    ----------
    mix : ndarray of shape (k, m)
        What of each distinct unit a unit of the update holds.
    grams : Grams
        Of the distinct units.
    inverse : ndarray of int of shape (R,)
        Which distinct unit each unit of the others is, but for its sign.
    ranks : sequence of int
        Their numbers of units, one update after the other; they sum to R.
    """

    mix: Floats
    grams: Grams
    inverse: Ints
    ranks: Sequence[int]

    def overlap(self) -> Overlap:
        """Return the inner products of the update and the others, exact but for round-off."""
        mix = torch.from_numpy(self.mix).to(self.grams.inputs)
        inputs, outputs = mix @ self.grams.inputs, mix @ self.grams.outputs
        squared = float(((inputs @ mix.mT) * (outputs @ mix.mT)).sum())
        products = self.grams.inputs * self.grams.outputs  # a sign of a unit is one of both its parts
        with_each = (inputs * outputs).sum(dim=0).cpu().numpy()
        inner, given = [], []
        for own in np.split(self.inverse, np.cumsum(self.ranks)[:-1]):
            inner.append(float(with_each[own].sum()))
            at = torch.from_numpy(own).to(products.device)
            given.append(max(0.0, float(products[at[:, None], at].sum())))
        return Overlap(max(0.0, squared), np.array(inner), np.array(given))
