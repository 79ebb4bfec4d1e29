"""Base of the rules on singular values and vectors (TSV, Iso, SVC, CtM, WUDI)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from ..base import OVERLAP, BaseMerger, Learned, leading_msus
from ..factors import LoraFactors
from ..linalg import compress, overlap_of, split_svd
from ..linalg.spectral import Svd


class SpectralMerger(BaseMerger):
    """A rule that gives the merged update as an SVD, of which the k largest triples are kept.

    The papers sum the updates. The weights of the rule are therefore of mean 1, not of sum 1: all are 1 where the
    adapters weigh the same, and ``scale=1`` is the papers' size.
    """

    _nested: ClassVar[bool] = False  # whether the rule does not look at k: what it gives is only cut to it

    @abstractmethod
    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        """Merge the adapters.

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

    def _merged_svds(self, updates: Sequence[LoraFactors], weights: list[float], ks: Sequence[int | None]) -> list[Svd]:
        """Merge for several ranks; where nothing can be shared, one after another."""
        return [self._merged_svd(updates, weights, k) for k in ks]

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        mean_one = (weights * len(weights)).tolist()
        small = compress(updates)  # the rules do not see the width of the module
        given = [LoraFactors(*update) for update in small.updates]
        # a rule that does not look at k merges once, and what is expanded is cut
        rules: Sequence[int | None] = [None] if self._nested else ks
        merged = []
        for (u, s, vh), rule_k in zip(self._merged_svds(given, mean_one, rules), rules, strict=True):
            ranks = [len(s) if k is None else k for k in (ks if self._nested else [rule_k])]
            inside = LoraFactors(*split_svd(u, s, vh, max(ranks)))
            widest = LoraFactors(*small.expand(inside))
            for k in ranks:
                # in orthonormal frames, products are those of the updates themselves
                overlap = partial(overlap_of, leading_msus(inside, k), given)
                merged.append((leading_msus(widest, k), {"singular_values": s.cpu().numpy(), OVERLAP: overlap}))
        return merged
