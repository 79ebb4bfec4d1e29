"""Task arithmetic: the sum of the updates, times one coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..base import OVERLAP, Learned
from ..factors import LoraFactors
from ..linalg import svd_and_overlap
from ._common import svd_cuts
from ._elementwise import ElementwiseMerger
from ._running import RunningSumMixin


class TaskArithmeticMerger(RunningSumMixin, ElementwiseMerger):
    r"""Task arithmetic [1]_: add the updates up and multiply by one coefficient.

    .. math:: W' = \mathrm{SVD}_k\Big(p \sum_i c_i B_i A_i\Big)
              \qquad\text{or}\qquad A' = p \sum_i c_i A_i,\; B' = p \sum_i c_i B_i

    in spaces 'delta' and 'factors' [2]_. :math:`c_i` is adapter i's weight over the mean of the absolute values of all
    weights that are not zero: 1 for every adapter when the weights are equal. In 'delta' this is :class:`SVDMerger`
    times p and the number of adapters: QR of the concatenated factors gives it without forming an update.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    coefficient : float or None, default=None
        The factor p. The papers choose it on validation data. None: 0.4, which is what TIES [3]_ compares with where
        there is none; 1 with ``strengths``, which are such factors themselves.
    space : {'delta', 'factors', 'core', 'knots'}, default='delta'
        What is added up. 'delta': the updates B A, never formed, and the sum is cut to rank k by SVD; any ranks. 'core'
        and 'knots' are taken too, so that one grid goes over all rules: for a sum they are the same. 'factors': A and B
        separately, as LoRA-LEGO's appendix has it; it needs one rank, the coefficient acts twice, and the result
        depends on how the files factor the updates.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Relative weights: only their ratios count. A negative one subtracts the update, which unlearns its task; not
        in space 'factors', where the signs of A and B would cancel. None: every adapter counts once. A weight of 2 does
        not equal listing the adapter twice: the sum would have one term more.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: the factors :math:`c_i` as they stand. A negative one subtracts, 0 leaves the adapter
        out.
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
    AverageMerger : The mean of the A and the mean of the B.
    SVDMerger : The mean of the updates.

    References
    ----------
    .. [1] Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089.
    .. [2] Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through
       Rank-Wise Clustering", arXiv 2409.16167, appendix C.
    .. [3] Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", arXiv 2306.01708.

    Examples
    --------
    >>> from lorakit import TaskArithmeticMerger
    >>> from lorakit.testing import make_adapters
    >>> TaskArithmeticMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('task_arithmetic', modules=2, rank=6, dtype=float32)
    """

    method = "task_arithmetic"
    paper = "arXiv 2212.04089"
    _draws = False
    _fills = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "space": [StrOptions({"factors", "delta", "core", "knots"})],
        "coefficient": [Interval(Real, None, None, closed="neither"), None],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        coefficient: float | None = None,
        space: str = "delta",
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
        self.coefficient = coefficient
        self.space = space
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def _signed_weights(self) -> bool:  # type: ignore[override]  # a class attribute elsewhere
        return self.space != "factors"

    @property
    def weights_as_copies(self) -> bool:
        """False: a sum has a term for each adapter that is listed, and grows with it."""
        return False

    @property
    def _p(self) -> float:
        if self.coefficient is not None:
            return self.coefficient
        return 0.4 if self.strengths is None else 1.0

    def _check_partial(self) -> int:
        if self.space == "factors":
            raise ValueError("partial_fit adds updates; in space='factors' A and B are added, which needs fit")
        return super()._check_partial()

    def _sum_factor(self, n: int, weight: float) -> float:
        return self._p * n / weight

    def _coefficients(self, weights: np.ndarray) -> np.ndarray | None:
        return None if self.space == "factors" else weights * (self._p * len(weights))

    def _merge_active(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        if self.space == "factors":
            return super()._merge_active(updates, weights, ks, rng)
        total = weights * (self._p * len(updates))
        svd, overlap = svd_and_overlap(updates, total.tolist(), max(ks))
        return [
            (factors, {OVERLAP: partial(overlap, k)}) for (factors, _), k in zip(svd_cuts(svd, ks), ks, strict=True)
        ]

    def _combine(self, stack: Tensor, weights: Tensor, survey: None) -> Tensor:
        return torch.tensordot(weights * (self._p * len(stack)), stack, dims=1)
