"""SVC after any merge: scale down the singular values of the result that several adapters add to."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from .._ranks import Rank
from .._sklearn import Interval
from ..base import BaseMerger
from ..factors import LoraFactors
from ..linalg import calibrate
from ..linalg.spectral import Svd
from ._after import RespacedMerger


class SVCCalibrator(RespacedMerger):
    r"""Singular value calibration [1]_ of what another merger made.

    .. math:: s_r^i = \frac{\langle u_r^\top W, u_r^\top W_i \rangle}{\|u_r^\top W_i\|^2}, \qquad
       \sigma_r' = \frac{\sigma_r}{\sum_i w_i \max(\alpha, s_r^i)}, \qquad
       W = U \, \mathrm{diag}(\sigma) \, V^\top

    W is the merge, and :math:`W_i` are the adapters' updates. :math:`s_r^i` says how many times over W holds what task
    i does in direction :math:`u_r`. Singular vectors stay as they are. A task without any response in a direction
    (:math:`u_r^\top W_i = 0`) counts :math:`\alpha` there.

    Calibration of the mean of the updates gives the result of :class:`SVCMerger`. The authors also calibrate what task
    arithmetic, TIES, DARE, TSV and Iso give.

    Parameters
    ----------
    merger : BaseMerger, default=None
        The merger whose result is calibrated, unfitted; it is cloned. Its parameters are set by names such as
        ``merger__density``. Its own ``weights`` must be None. None stands for the exact mean,
        :class:`ConcatMerger`.
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, to which the calibrated update is cut by SVD; at most the rank of the merge, which
        ``merger__k`` sets. None cuts nothing. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives
        each module a rank of its own.
    alpha : float or None, default=None
        Smallest :math:`s_r^i` that an adapter reports, positive. None is 1 / T for T adapters, as the authors set it
        for every merge of the size of a mean; for TSV, whose result is of the size of a sum, they set 1.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Weights of the adapters, in the merge and in the calibration, normalised so that their absolute values sum
        to 1. Negative ones are allowed where ``merger`` allows them, and stand for the negated update. None weighs all
        adapters equally. A weight of 2 does not equal listing the adapter twice: the singular values are compared with
        each update that is listed.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before ``merger``
        merges them. A negative one subtracts, 0 leaves the adapter out.
    scale : float or 'match', default=1.0
        Factor on the calibrated update. 'match' gives it ``scale_target`` times the mean norm of the adapters' updates.
    scale_target : float, default=1.0
        For ``scale='match'``: the wanted norm, in mean norms of the adapters.
    scale_scope : {'module', 'model'}, default='module'
        For ``scale='match'``: match each module's norm, or one factor for the whole model. An adapter that lacks a
        module counts there with norm zero.
    n_jobs : int, default=None
        Modules merged at a time; None means 1 unless in a ``joblib.parallel_config`` context. If it is given,
        ``merger`` uses it too.
    device : str, default=None
        Torch device of the algebra; None is the CPU. If it is given, ``merger`` uses it too.
    verbose : int, default=0
        From 1, a progress bar over the modules; above 1, joblib's messages too. If it is not 0, ``merger`` uses it
        too.

    Attributes
    ----------
    merged_ : Adapter
        The result.
    module_names_in_ : tuple of str
        Modules merged.
    n_adapters_in_ : int
        Number of adapters merged.

    singular_values_ : dict of str to ndarray
        Singular values after calibration, by module, before the update is cut to rank k and before ``scale``.

    See Also
    --------
    SVCMerger : The same of the sum of the updates, without a merger before it.
    Isotropizer : Makes all singular values of a merge equal.

    References
    ----------
    .. [1] Li et al., "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", arXiv 2602.05536.

    Examples
    --------
    >>> from lorakit import SVCCalibrator, TiesMerger
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), random_state=0)
    >>> SVCCalibrator(TiesMerger(k=12), k=6).fit(adapters).merged_
    Adapter('svc_calibrator', modules=2, rank=6, dtype=float32)
    """

    method = "svc_calibrator"
    paper = "arXiv 2602.05536"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **RespacedMerger._parameter_constraints,
        "alpha": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        merger: BaseMerger | None = None,
        *,
        k: Rank = None,
        alpha: float | None = None,
        weights: Any = None,
        strengths: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.merger = merger
        self.k = k
        self.alpha = alpha
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def weights_as_copies(self) -> bool:
        """False: a copy is one more update that the singular values are compared with."""
        return False

    def _respaced(self, merged: Svd, rank: int, updates: Sequence[LoraFactors], weights: np.ndarray) -> Svd:
        mean_one = weights * len(weights)
        weighted = [update.scaled(w) for update, w in zip(updates, mean_one.tolist(), strict=True)]
        alpha = 1 / len(weights) if self.alpha is None else self.alpha
        return calibrate(merged, weighted, np.abs(mean_one).tolist(), alpha=alpha)
