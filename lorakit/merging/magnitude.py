"""Magnitude pruning: keep the largest entries, average."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..linalg import keep_above, magnitude_threshold
from ..linalg.sparsify import Norm
from ._elementwise import ElementwiseMerger, norm_factor, scaled


class MagnitudeMerger(ElementwiseMerger):
    r"""Magnitude pruning: keep the largest entries of each update, zero the rest, average.

    .. math:: W' = \sum_i w_i\, m_i \odot W_i

    where :math:`m_i` marks the ``density`` largest magnitudes of :math:`W_i`, at least one: the trimming of
    :class:`TiesMerger` without its election of signs. PEFT's "magnitude_prune" gives the same for weights that sum
    to 1. With ``density=1`` the result is the mean of the updates.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.5
        Share of the entries of each update that is kept, in (0, 1].
    space : {'delta', 'factors', 'core', 'core_factors', 'knots'}, default='delta'
        The tensors on which the rule acts. 'delta': the updates B A; one module at a time, the result is cut to rank k
        by SVD. 'core': the updates in common orthonormal bases of their inputs and of their outputs, R x R, where R is
        the sum of the ranks. 'core_factors': the same in the bases of Core Space [1]_, which are the singular vectors
        of the factors as the files hold them; 'core' takes the balanced factors of each update instead. 'knots': the
        updates in a common basis of their outputs, R x d_in [2]_. 'factors': A and B separately; needs one rank.
        All but 'factors' take any ranks. 'delta', 'core' and 'knots' depend on the updates alone; 'core_factors' and
        'factors' give another result when a file factors the same update in another way.
    rescale : {'l1', 'l2'} or None, default=None
        Norm that the trimmed tensor of each module is given back, as an option of mergekit does. None leaves what was
        kept as it is. (The largest magnitude, mergekit's "linf", is kept by the trim itself.)
    svd_solver : {'auto', 'exact', 'randomized'}, default='auto'
        In space 'delta', how the merged update is cut to rank k. 'auto' takes randomised subspace iteration for wide
        modules and small k, a full SVD otherwise.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they are
        merged. A negative one subtracts, 0 leaves the adapter out. What the rule leaves of them is added
        up, not averaged.
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
    BreadcrumbsMerger : Drops the very largest entries too.
    SVDMerger : Truncates the mean of the whole updates.
    TiesMerger : Elects a sign per entry after trimming.

    References
    ----------
    .. [1] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
    .. [2] Stoica et al., "Model merging with SVD to tie the Knots" (KnOTS), arXiv 2410.19735.

    Examples
    --------
    >>> from lorakit import MagnitudeMerger
    >>> from lorakit.testing import make_adapters
    >>> MagnitudeMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('magnitude', modules=2, rank=6, dtype=float32)
    """

    method = "magnitude"
    _draws = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "density": [Interval(Real, 0, 1, closed="right")],
        "rescale": [StrOptions({"l1", "l2"}), None],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.5,
        space: str = "delta",
        rescale: Norm | None = None,
        svd_solver: str = "auto",
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
        self.density = density
        self.space = space
        self.rescale = rescale
        self.svd_solver = svd_solver
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

    def _measure(self, x: Tensor, adapter: int, rng: np.random.RandomState) -> tuple[float, float]:
        threshold = magnitude_threshold(x, self.density)
        return threshold, norm_factor(x, lambda part: keep_above(part, threshold), self.rescale)

    def _sparsify(self, x: Tensor, measured: tuple[float, float], rng: np.random.RandomState) -> Tensor:
        threshold, factor = measured
        return scaled(keep_above(x, threshold), factor)

    def _combine(self, stack: Tensor, weights: Tensor, survey: None) -> Tensor:
        return torch.tensordot(weights, stack, dims=1)
