"""SVC: scale down the singular values of the sum that several adapters add to."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

from .._ranks import Rank
from .._sklearn import Interval
from ..factors import LoraFactors
from ..linalg import calibrate_sum, task_svds
from ..linalg.spectral import Svd
from ._spectral import SpectralMerger


class SVCMerger(SpectralMerger):
    r"""Singular value calibration [1]_: divide each singular value of the sum by how much the sum over-counts it.

    .. math:: s_r^i = \frac{\langle u_r^\top W, u_r^\top W_i \rangle}{\|u_r^\top W_i\|^2}, \qquad
       \sigma_r' = \sigma_r \, \frac{1}{\sum_i w_i \max(\alpha, s_r^i)}, \qquad
       W = \sum_i T w_i W_i = U \, \mathrm{diag}(\sigma) \, V^\top

    :math:`s_r^i` says how many times over the sum holds what task i does in direction :math:`u_r`. It is 1 where one
    adapter acts alone, and T where T adapters agree: T copies of an adapter give that adapter. Singular vectors stay as
    they are. Where an adapter has no response (:math:`u_r^\top W_i = 0`) it counts :math:`\alpha`.

    This is the paper's formula, and that of its code since March 2026. Before, the code took the maximum after the mean
    over the tasks, and changed only those singular values that no task opposes.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, to which the merged update is cut by SVD. None: the sum of the ranks, at which nothing is
        cut. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    alpha : float, default=1.0
        Smallest over-counting that is assumed of an adapter; positive. At 1 singular values only shrink. With less, the
        singular values of directions that the sum holds less of than the adapters do can grow. It is relative to the
        sum: the paper, which starts from the mean, writes ``alpha / T``.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 does not equal
        listing the adapter twice: the sum would have one term more, which the floor ``alpha`` does not
        scale with.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they are
        merged. A negative one subtracts, 0 leaves the adapter out.
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
        Singular values of the merged update, by module, before it is cut to rank k and before ``scale``.

    See Also
    --------
    SVCCalibrator : The same of what any other merger made.
    IsoMerger : Makes all singular values equal.

    References
    ----------
    .. [1] Li et al., "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", arXiv 2602.05536.

    Examples
    --------
    >>> from lorakit import SVCMerger
    >>> from lorakit.testing import make_adapters
    >>> SVCMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('svc', modules=2, rank=6, dtype=float32)
    """

    method = "svc"
    paper = "arXiv 2602.05536"
    _nested = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SpectralMerger._parameter_constraints,
        "alpha": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        alpha: float = 1.0,
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
        """False: a sum grows with the number of its terms, and ``alpha`` does not."""
        return False

    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        return calibrate_sum(task_svds(updates, weights), weights, alpha=self.alpha)
