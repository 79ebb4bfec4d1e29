"""Model Breadcrumbs: drop the largest and the smallest entries, average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval
from ..adapter_set import AdapterSet
from ..linalg import keep_between, magnitude_window
from ._elementwise import ElementwiseMerger


class BreadcrumbsMerger(ElementwiseMerger):
    r"""Model Breadcrumbs [1]_: drop the largest entries of each update and the smallest, average the rest.

    .. math:: W' = \sum_i w_i\, m_i \odot W_i

    where :math:`m_i` leaves out the ``gamma`` n largest magnitudes of :math:`W_i`, taken for outliers, and of the
    others the smallest, so that ``density`` n are left. The paper adds them up and multiplies by :math:`\alpha`: with
    equal weights that is ``scale`` = :math:`\alpha` times the number of adapters. Spaces 'core' and 'knots' gather an
    update's weight in few large entries, which are no outliers there: use a ``gamma`` near zero.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.9
        Share of the entries of each update that is kept, in (0, 1].
    gamma : float, default=0.01
        Share of the entries, the largest, that is dropped; at most ``1 - density``.
    space : {'delta', 'factors', 'core', 'knots'}, default='delta'
        Where the rule acts. 'delta': on the updates B A, one module at a time, and the result is cut to rank k by
        SVD. 'core': on the updates in common orthonormal bases of their inputs and outputs, R x R [2]_. 'knots': in
        a common basis of their outputs [3]_. These take any ranks and depend on the updates alone. 'factors': on A
        and on B separately; it needs one rank, and its result depends on how the files factor the updates.
    svd_solver : {'auto', 'exact', 'randomized'}, default='auto'
        In space 'delta', how the merged update is cut to rank k. 'auto' takes randomised subspace iteration for wide
        modules and small k, a full SVD otherwise.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally.
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
        Verbosity of joblib.

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
    MagnitudeMerger : Keeps the largest entries.

    References
    ----------
    .. [1] Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
       arXiv 2312.06795.
    .. [2] "Core Space", arXiv 2509.17786.
    .. [3] Stoica et al., "Model merging with SVD to tie the Knots" (KnOTS), arXiv 2410.19735.

    Examples
    --------
    >>> from lorakit import BreadcrumbsMerger
    >>> from lorakit.testing import make_adapters
    >>> BreadcrumbsMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('breadcrumbs', modules=2, rank=6, dtype=float32)
    """

    method = "breadcrumbs"
    paper = "arXiv 2312.06795"
    _draws = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "density": [Interval(Real, 0, 1, closed="right")],
        "gamma": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.9,
        gamma: float = 0.01,
        space: str = "delta",
        svd_solver: str = "auto",
        weights: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.density = density
        self.gamma = gamma
        self.space = space
        self.svd_solver = svd_solver
        self.weights = weights
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        if self.density + self.gamma > 1 + 1e-12:  # not for 0.9 + 0.1 and its like
            raise ValueError(
                f"density={self.density} and gamma={self.gamma} keep and drop more than there is; "
                f"choose a gamma of at most {1 - self.density:.3g}"
            )
        return self

    def _measure(self, x: Tensor, adapter: int) -> tuple[float, float]:
        return magnitude_window(x, self.density, self.gamma)

    def _sparsify(self, x: Tensor, measured: tuple[float, float], rng: np.random.RandomState) -> Tensor:
        return keep_between(x, *measured)

    def _combine(self, stack: Tensor, weights: Tensor, survey: None) -> Tensor:
        return torch.tensordot(weights, stack, dims=1)
