"""Multiplied merge, truncated by SVD, without ever forming a product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._ranks import Rank
from ..base import BaseMerger, Learned
from ..factors import LoraFactors
from ..linalg import svd_and_overlap
from ._common import largest_rank, svd_cuts
from ._running import RunningSumMixin


class SVDMerger(RunningSumMixin, BaseMerger):
    r"""Best rank-k approximation of the weighted mean of the updates.

    .. math:: B' A' = \mathrm{SVD}_k\Big(\sum_i w_i B_i A_i\Big)

    "LoRA Merging with SVD" [1]_. By Eckart-Young no other adapter of rank k is nearer to the mean update; at the
    adapters' rank it is never further from it than the direct merge (:class:`AverageMerger`). The d_out x d_in product
    is never formed: QR of the concatenated factors and the SVD of their small core give the same answer in
    :math:`O((d_{in} + d_{out}) R^2)`. The result depends on the updates alone, not on how the files factor them.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, at most the sum of the ranks. None: the largest rank among the adapters. If the
        ranks sum to less than k, the module is kept exactly. A share of the energy, 'auto' or a
        :class:`~lorakit.RankBudget` gives each module a rank of its own.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Weights, normalised so that their absolute values sum to 1; a negative one subtracts. None weighs all
        adapters equally, which gives their mean. A weight of 2 equals listing the adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand. What is approximated is :math:`\sum_i c_i B_i A_i`, not a
        mean. A negative one subtracts, 0 leaves the adapter out.
    scale : float or 'match', default=1.0
        Factor on the merged update. 'match' gives it ``scale_target`` times the mean norm of the adapters' updates.
    scale_target : float, default=1.0
        For ``scale='match'``: the wanted norm, in mean norms of the adapters.
    scale_scope : {'module', 'model'}, default='module'
        For ``scale='match'``: match each module's norm, or one factor for the whole model. An adapter that lacks a
        module counts there with norm zero.
    n_jobs : int, default=None
        Modules merged at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    device : str, default=None
        Torch device of the algebra; None is the CPU.
    verbose : int, default=0
        From 1, a progress bar over the modules; above 1, joblib's messages too.

    Attributes
    ----------
    merged_ : Adapter
        The result.
    module_names_in_ : tuple of str
        Modules merged.
    n_adapters_in_ : int
        Number of adapters merged.

    singular_values_ : dict of str to ndarray
        All singular values of the weighted sum, by module, before ``scale``.
    truncation_error_ : dict of str to float
        Frobenius norm of what was cut off, by module, before ``scale``: the root of the sum of the squares of the
        singular values beyond k.

    See Also
    --------
    ConcatMerger : No truncation.
    LegoMerger : Clusters MSUs instead.

    References
    ----------
    .. [1] "LoRA Merging with SVD: Understanding Interference and Preserving Performance".

    Examples
    --------
    >>> from lorakit import SVDMerger
    >>> from lorakit.testing import make_adapters
    >>> merger = SVDMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0))
    >>> merger.merged_
    Adapter('svd', modules=2, rank=6, dtype=float32)
    >>> merger.singular_values_["layer.0"].shape
    (12,)
    """

    method = "svd"
    paper = "LoRA Merging with SVD"
    _signed_weights = True

    def __init__(
        self,
        k: Rank = None,
        *,
        weights: Any = None,
        strengths: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def averages(self) -> bool:
        """True."""
        return True

    def _coefficients(self, weights: np.ndarray) -> np.ndarray:
        return weights

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        ranks = [largest_rank(updates) if k is None else k for k in ks]
        svd, overlap = svd_and_overlap(updates, weights.tolist(), max(ranks))
        return svd_cuts(svd, ranks, overlap)
