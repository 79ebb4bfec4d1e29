"""Iso: one value for all singular values of the sum, so that no direction drowns another."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..factors import LoraFactors
from ..linalg import isotropic_sum, task_svds
from ..linalg.spectral import Svd
from ._spectral import SpectralMerger


class IsoMerger(SpectralMerger):
    r"""Isotropic merging [1]_: sum the updates, then replace every singular value by their mean.

    .. math:: W' = \bar\sigma \, U V^\top, \qquad \sum_i T w_i W_i = U \, \mathrm{diag}(\sigma) \, V^\top

    The sum is dominated by the few directions that several tasks share; with equal singular values the other tasks'
    directions weigh as much. The mean is over the n = min(R, d_out, d_in) values that a sum of updates of rank R in all
    can have (Core Space [2]_).

    With ``variant='cts'`` the smallest directions of the sum are replaced by task-specific ones: the leading directions
    of the part of each update whose outputs are orthogonal to the leading directions of the sum. All directions are
    then orthogonalised, as by :class:`TSVMerger`, before their singular values are made equal.

    The result is cut to rank k last. As the singular values are equal then, the cut keeps the directions whose values
    were largest before.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, to which the merged update is cut by SVD. None: the sum of the ranks, at which nothing is
        cut. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    variant : {'c', 'cts'}, default='c'
        'c': directions of the sum (common). 'cts': common and task-specific ones.
    common_share : float, default=0.8
        For ``variant='cts'``: share of the n directions that are common, in [0, 1], rounded as in the authors' code so
        that every adapter gets as many of the others: ``round((n - int(n * common_share)) / T)``. That is none, and the
        result as of 'c', where n is small for the number of adapters.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 does not equal
        listing the adapter twice: the sum would have one term more, and n would count the copy's ranks.
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
    Isotropizer : Makes the singular values equal of what any other merger made.
    TSVMerger : Changes the singular vectors instead of the values.
    SVCMerger : Scales down only those singular values that several adapters add to.

    References
    ----------
    .. [1] Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
       arXiv 2502.04959.
    .. [2] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.

    Examples
    --------
    >>> from lorakit import IsoMerger
    >>> from lorakit.testing import make_adapters
    >>> merger = IsoMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0))
    >>> merger.merged_
    Adapter('iso', modules=2, rank=6, dtype=float32)
    >>> len(set(merger.singular_values_["layer.0"].tolist()))
    1
    """

    method = "iso"
    paper = "arXiv 2502.04959"
    _nested = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SpectralMerger._parameter_constraints,
        "variant": [StrOptions({"c", "cts"})],
        "common_share": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        variant: str = "c",
        common_share: float = 0.8,
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
        self.variant = variant
        self.common_share = common_share
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
        """False: a sum grows with the number of its terms."""
        return False

    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        return isotropic_sum(
            task_svds(updates, weights), common_share=self.common_share if self.variant == "cts" else 1.0
        )
