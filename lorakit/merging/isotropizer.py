"""Isotropy after any merge: one value for all singular values of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._ranks import Rank
from ..base import BaseMerger
from ..factors import LoraFactors
from ..linalg import flatten_spectrum
from ..linalg.spectral import Svd
from ._after import RespacedMerger
from .concat import ConcatMerger


class Isotropizer(RespacedMerger):
    r"""Replace the singular values of what another merger made by their mean [1]_.

    .. math:: W' = \bar\sigma \, U V^\top, \qquad W = U \, \mathrm{diag}(\sigma) \, V^\top

    W is the merge. Iso-C sums the updates and then makes their sum isotropic; here any rule stands in the place of the
    sum. Directions that the merge holds little of then weigh as much as those that dominate it. The mean is over
    n = min(r, d_out, d_in) values, where r is the rank of the merged adapter; values that are zero count. Of the mean
    of T updates the result is :class:`IsoMerger`'s, divided by T.

    A cut to rank k comes after. Among equal singular values it keeps the directions whose values were largest.

    Parameters
    ----------
    merger : BaseMerger, default=None
        The merger whose result is made isotropic, unfitted; it is cloned. Its parameters are set by names such as
        ``merger__density``. Its own ``weights`` must be None. None stands for the exact mean, :class:`ConcatMerger`.
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, to which the isotropic update is cut; at most the rank of the merge, which ``merger__k``
        sets. None cuts nothing. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a
        rank of its own.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Weights of the adapters in the merge, normalised so that their absolute values sum to 1. Negative ones are
        allowed where ``merger`` allows them. None weighs all adapters equally. A weight of 2 equals listing the adapter
        twice where it does so for ``merger``; not for ConcatMerger without a ``k``, whose rank counts the copy.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before ``merger``
        merges them. A negative one subtracts, 0 leaves the adapter out.
    scale : float or 'match', default=1.0
        Factor on the isotropic update. 'match' gives it ``scale_target`` times the mean norm of the adapters' updates.
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
        Singular values of the isotropic update, by module, before it is cut to rank k and before ``scale``.

    See Also
    --------
    IsoMerger : The same of the sum of the updates, without a merger before it; also Iso-CTS.
    SVCCalibrator : Scales down only those singular values of a merge that several adapters add to.

    References
    ----------
    .. [1] Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
       arXiv 2502.04959.

    Examples
    --------
    >>> from lorakit import Isotropizer, TiesMerger
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), random_state=0)
    >>> isotropic = Isotropizer(TiesMerger(k=12)).fit(adapters)
    >>> isotropic.merged_
    Adapter('isotropizer', modules=2, rank=12, dtype=float32)
    >>> len(set(isotropic.singular_values_["layer.0"].tolist()))
    1
    """

    method = "isotropizer"
    paper = "arXiv 2502.04959"

    def __init__(
        self,
        merger: BaseMerger | None = None,
        *,
        k: Rank = None,
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
        """As for the merger that comes first, unless its rank, over which the mean is taken, counts the copies."""
        first = self._first
        return first.weights_as_copies and not (isinstance(first, ConcatMerger) and first.k is None)

    def _respaced(self, merged: Svd, rank: int, updates: Sequence[LoraFactors], weights: np.ndarray) -> Svd:
        u, s, vh = merged
        return u, flatten_spectrum(s, min(rank, len(u), vh.shape[1])), vh
