"""DARE: drop entries at random, rescale the rest."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval
from ..linalg import disjoint_mean, drop_randomly, elect_sign
from ._elementwise import ElementwiseMerger, uniform_like


class DareMerger(ElementwiseMerger):
    r"""DARE [1]_: drop entries at random, rescale those that are left, average.

    .. math:: \tilde w = \frac{m}{density} w, \qquad m \sim \mathrm{Bernoulli}(density)

    Every entry of every update is kept with probability ``density`` and divided by it, so that the expectation of each
    update is that update. The weighted mean of what is left follows, or with ``sign_election`` the steps of
    :class:`TiesMerger` that come after its trimming: one sign an entry, and the mean of the entries that have it.

    The draws add noise of ``(1 - density) / density`` times each update's squared norm. In space 'delta' it is spread
    over all directions, few of which are among the result's k; 'core' and 'knots' have fewer to spread it over.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.5
        Probability of keeping an entry, in (0, 1]. The paper drops up to nine tenths of the entries of large models.
    sign_election : bool, default=False
        Elect a sign per entry from the weighted sum, and average only the entries that have it.
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
    random_state : int, RandomState or None, default=None
        Seeds the draws. Each module draws its own stream from it, and each adapter in it, so that neither ``n_jobs``
        nor the adapters' order changes the result. Pass an int for the same result on every call.
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
    DellaMerger : Keeps large entries with a higher probability.
    TiesMerger : Keeps the largest entries.

    References
    ----------
    .. [1] Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch"
       (DARE), arXiv 2311.03099.
    .. [2] "Core Space", arXiv 2509.17786.
    .. [3] Stoica et al., "Model merging with SVD to tie the Knots" (KnOTS), arXiv 2410.19735.

    Examples
    --------
    >>> from lorakit import DareMerger
    >>> from lorakit.testing import make_adapters
    >>> DareMerger(k=6, random_state=0).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('dare', modules=2, rank=6, dtype=float32)
    """

    method = "dare"
    paper = "arXiv 2311.03099"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "density": [Interval(Real, 0, 1, closed="right")],
        "sign_election": ["boolean"],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.5,
        sign_election: bool = False,
        space: str = "delta",
        svd_solver: str = "auto",
        weights: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        random_state: Any = None,
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.density = density
        self.sign_election = sign_election
        self.space = space
        self.svd_solver = svd_solver
        self.weights = weights
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _sparsify(self, x: Tensor, measured: None, rng: np.random.RandomState) -> Tensor:
        return drop_randomly(x, self.density, uniform_like(x, rng))

    def _combine(self, stack: Tensor, weights: Tensor, survey: None) -> Tensor:
        if self.sign_election:
            return disjoint_mean(stack, elect_sign(stack, weights), weights)
        return torch.tensordot(weights, stack, dims=1)
