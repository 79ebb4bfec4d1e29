"""Base of the rules on singular values and vectors (TSV, Iso, SVC, CtM, WUDI)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from ..base import BaseMerger, Learned
from ..factors import LoraFactors
from ..linalg import compress, split_svd
from ..linalg.spectral import Svd


class SpectralMerger(BaseMerger):
    """A rule that gives the merged update as an SVD, of which the k largest triples are kept.

    The papers sum the updates. The weights of the rule are therefore of mean 1, not of sum 1: all are 1 where the
    adapters weigh the same, and ``scale=1`` is the papers' size.
    """

    @abstractmethod
    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        """Merge the adapters whose weight is not zero.

        Parameters
        ----------
        updates : sequence of LoraFactors
            T updates; of rank 0 where the adapter lacks the module.
        weights : list of float
            Positive weights of mean 1.
        k : int or None
            Rank of the result, for the rules that need to know it before.

        Returns
        -------
        U, S, Vh : Tensor
            SVD of the merged update, of any rank.
        """

    def _merge_module(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, k: int | None, rng: np.random.RandomState
    ) -> tuple[LoraFactors, Learned]:
        active = np.flatnonzero(weights)  # an adapter of weight 0 is not there: none of its directions counts
        mean_one = (weights[active] * len(active)).tolist()
        small = compress([updates[int(i)] for i in active])  # the rules do not see the width of the module
        u, s, vh = self._merged_svd([LoraFactors(*update) for update in small.updates], mean_one, k)
        merged = small.expand(split_svd(u, s, vh, len(s) if k is None else k))
        return LoraFactors(*merged), {"singular_values": s.cpu().numpy()}
