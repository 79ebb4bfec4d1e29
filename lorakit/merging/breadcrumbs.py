"""Model Breadcrumbs: drop the largest and the smallest entries, average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..linalg import keep_between, keep_middle, magnitude_window
from ..linalg.sparsify import Norm
from ._elementwise import SIGN_ELECTION, ElementwiseMerger, consensus, norm_factor, scaled


class BreadcrumbsMerger(ElementwiseMerger):
    r"""Model Breadcrumbs [1]_: drop the largest entries of each update and the smallest, average the rest.

    .. math:: W' = \sum_i w_i\, m_i \odot W_i

    where :math:`m_i` leaves out the ``gamma`` n largest of the n magnitudes of :math:`W_i`, taken for outliers, and
    then the smallest, so that ``density`` n are left, at least one. The paper adds the updates up and multiplies the
    sum by :math:`\alpha`: with equal weights that is ``scale`` = :math:`\alpha` times the number of adapters.

    In the spaces 'core', 'core_factors' and 'knots' most of an update's norm is in a few large entries. These are no
    outliers: use a ``gamma`` near zero there.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.15
        Share of the entries of each update that is kept, in (0, 1]. The authors' search starts at .15 and goes from .05
        to .2; the examples of mergekit keep .9.
    gamma : float, default=0.006
        Share of the entries, the largest, that is dropped; at most ``1 - density``. The authors' search starts at .006
        and goes from .001 to .01; mergekit's default is .01.
    sign_election : bool or 'frequency', default=False
        False: average all that is left. True: elect a sign for each entry by the weighted sum, and average only the
        entries that have it, as mergekit's "breadcrumbs_ties". 'frequency': elect by the weights of the adapters that
        are positive there and of those that are negative, whatever their values.
    trim_scope : {'module', 'row'}, default='module'
        Count the shares in each module's whole tensor, as mergekit does, or in each of its rows, as the authors' code
        does.
    space : {'delta', 'factors', 'core', 'core_factors', 'knots'}, default='delta'
        The tensors on which the rule acts. 'delta': the updates B A; one module at a time, the result is cut to rank k
        by SVD. 'core': the updates in common orthonormal bases of their inputs and of their outputs, R x R, where R is
        the sum of the ranks. 'core_factors': the same in the bases of Core Space [2]_, which are the singular vectors
        of the factors as the files hold them; 'core' takes the balanced factors of each update instead. 'knots': the
        updates in a common basis of their outputs, R x d_in [3]_. 'factors': A and B separately; needs one rank.
        All but 'factors' take any ranks. 'delta', 'core' and 'knots' depend on the updates alone; 'core_factors' and
        'factors' give another result when a file factors the same update in another way.
    rescale : {'l1', 'l2', 'linf'} or None, default=None
        Norm that the sparse tensor of each module is given back: the sum of magnitudes, the Euclidean norm or the
        largest magnitude, as options of mergekit do. None leaves what was kept as it is.
    svd_solver : {'auto', 'exact', 'randomized'}, default='auto'
        In space 'delta', how the merged update is cut to rank k. 'auto' takes randomised subspace iteration for wide
        modules and small k, a full SVD otherwise.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they are
        merged. A negative one subtracts, 0 leaves the adapter out. What the rule leaves of them is added
        up and not averaged, unless there is a ``sign_election``.
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
    MagnitudeMerger : Keeps the largest entries.

    References
    ----------
    .. [1] Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
       arXiv 2312.06795.
    .. [2] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
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
        "sign_election": SIGN_ELECTION,
        "trim_scope": [StrOptions({"module", "row"})],
        "rescale": [StrOptions({"l1", "l2", "linf"}), None],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.15,
        gamma: float = 0.006,
        sign_election: bool | str = False,
        trim_scope: str = "module",
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
        self.gamma = gamma
        self.sign_election = sign_election
        self.trim_scope = trim_scope
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
        """Whether no sign is elected."""
        return self.sign_election is False

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        if self.density + self.gamma > 1 + 1e-12:  # not for 0.9 + 0.1 and its like
            raise ValueError(
                f"density={self.density} and gamma={self.gamma} keep and drop more than there is; "
                f"choose a gamma of at most {1 - self.density:.3g}"
            )
        return self

    def _measure(self, x: Tensor, adapter: int, rng: np.random.RandomState) -> tuple[tuple[float, float], float]:
        window = (0.0, 0.0) if self.trim_scope == "row" else magnitude_window(x, self.density, self.gamma)
        return window, norm_factor(x, lambda part: self._kept(part, window), self.rescale)

    @property
    def _measures(self) -> bool:
        return self.trim_scope == "module" or self.rescale is not None

    def _kept(self, x: Tensor, window: tuple[float, float]) -> Tensor:
        if self.trim_scope == "row":
            return keep_middle(x, self.density, self.gamma)
        return keep_between(x, *window)

    def _sparsify(self, x: Tensor, measured: Any, rng: np.random.RandomState) -> Tensor:
        window, factor = measured or ((0.0, 0.0), 1.0)
        return scaled(self._kept(x, window), factor)

    def _combine(self, stack: Tensor, weights: Tensor, survey: None) -> Tensor:
        return consensus(stack, weights, self.sign_election)
