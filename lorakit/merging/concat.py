"""The exact ensemble: concatenate the MSUs of all adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._ranks import Rank
from ..base import BaseMerger, Learned
from ..factors import LoraFactors
from ..linalg import weighted_concat
from ._common import cuts


class ConcatMerger(BaseMerger):
    r"""Concatenate the adapters: the exact weighted mean of their updates, at the sum of their ranks.

    .. math:: B' A' = \sum_i w_i B_i A_i, \qquad A' = [\ldots \sqrt{w_i} A_i \ldots], \;
        B' = [\ldots \sqrt{w_i} B_i \ldots]

    By the concatenation-summation equivalence (Property 2.2 of [1]_) one adapter of rank :math:`R = \sum r_i` gives
    the mean of the outputs of T adapters: the *ensemble* of the papers, and PEFT's "cat". It takes any ranks.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None keeps the sum of the ranks, which is exact; a smaller one truncates by SVD, which is
        what :class:`SVDMerger` does. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module
        a rank of its own.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Weights, normalised so that their absolute values sum to 1; a negative one subtracts. None weighs all
        adapters equally, which gives their mean. A weight of 2 equals listing the adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand. The result is :math:`\sum_i c_i B_i A_i`, not a mean. A negative
        one subtracts, 0 leaves the adapter out.
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

    See Also
    --------
    SVDMerger : The same update at a rank of choice.

    References
    ----------
    .. [1] Zhao et al., "Merging LoRAs like Playing LEGO", arXiv 2409.16167.

    Examples
    --------
    >>> from lorakit import ConcatMerger
    >>> from lorakit.testing import make_adapters
    >>> merger = ConcatMerger().fit(make_adapters(ranks=(4, 8), random_state=0))
    >>> merger.merged_
    Adapter('concat', modules=2, rank=12, dtype=float32)
    """

    method = "concat"
    paper = "arXiv 2409.16167"
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
        mean = LoraFactors(*weighted_concat(updates, weights.tolist()))
        return [(factors, {}) for factors in cuts(mean, ks)]
