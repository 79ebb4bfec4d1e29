"""Base of the steps after a merge: another merger's result, with its singular values replaced."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import clone

from .._validation import check_rank
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BaseMerger, Learned, leading_msus
from ..factors import LoraFactors, promoted_dtype
from ..linalg import numerical_svd, split_svd
from ..linalg.spectral import Svd
from .concat import ConcatMerger


class RespacedMerger(BaseMerger):
    """A merger that fits another one and replaces the singular values of what that one made.

    The whole merge is made first, at its own ``k`` and ``scale``, of the adapters whose weight is not zero. Then its
    modules are changed one at a time. What is cut to the rank ``k`` of this estimator is the changed update.
    """

    merger: Any
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "merger": [BaseMerger, None],
    }

    @abstractmethod
    def _respaced(self, merged: Svd, rank: int, updates: Sequence[LoraFactors], weights: np.ndarray) -> Svd:
        """Replace the singular values of one module's merge.

        Parameters
        ----------
        merged : U, S, Vh
            SVD of the merge, cut to its numerical rank.
        rank : int
            Number of units that the merge has.
        updates : sequence of LoraFactors
            T updates; of rank 0 where the adapter lacks the module.
        weights : ndarray of shape (T,)
            Their weights, whose absolute values sum to 1.

        Returns
        -------
        U, S, Vh : Tensor
            In the order in which a cut keeps the directions.
        """

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether the merger that comes first needs them."""
        return self._first.needs_equal_ranks

    @property
    def invariances(self) -> frozenset[str]:
        """Those of the merger that comes first: singular values depend on its result alone."""
        return self._first.invariances

    @property
    def _signed_weights(self) -> bool:  # type: ignore[override]  # a class attribute elsewhere
        return self._first._signed_weights

    @property
    def _weights_degree(self) -> int:
        return self._first._weights_degree

    @property
    def _first(self) -> BaseMerger:
        return ConcatMerger() if self.merger is None else self.merger

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        """Make the merge that is to be changed."""
        first = clone(self._first)
        for name in ("weights", "strengths"):
            if getattr(first, name) is not None:
                raise ValueError(
                    f"{type(first).__name__} was given {name} of its own; give them to {type(self).__name__}, which "
                    "passes them on, so that the merge and what is done to it agree on them"
                )
        shared = {"n_jobs": self.n_jobs, "device": self.device, "verbose": self.verbose}
        first.set_params(weights=weights.tolist(), **{name: value for name, value in shared.items() if value})
        # Not rounded to half precision on its way
        exact = [adapter.astype(promoted_dtype([torch.float32, adapter.dtype])) for adapter in X]
        worker = copy(self)
        worker._whole = first.fit(exact).merged_
        limits = {module: info.rank for module, info in worker._whole.infos.items()}
        asked = max((k for ks in ranks.values() for k in ks if k is not None), default=None)
        check_rank(asked, limits, f"the largest rank of what the method {first.method} made, which is to be changed")
        return worker

    def _for_module(self, module: str) -> Self:
        worker = copy(self)
        worker.merger = None  # it can hold data of every module
        worker._whole = self._whole.select([module])
        return worker

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        (whole,) = self._whole.values()  # see _for_module
        merged = numerical_svd(whole.to(updates[0].dtype, updates[0].A.device))
        u, s, vh = self._respaced(merged, whole.rank, updates, weights)
        ranks = [len(s) if k is None else k for k in ks]
        widest = LoraFactors(*split_svd(u, s, vh, max(ranks)))
        return [(leading_msus(widest, k), {"singular_values": s.cpu().numpy()}) for k in ranks]

    _whole: Adapter  # of a worker alone: the first merger's result
