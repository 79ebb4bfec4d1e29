"""DARE: drop entries at random, rescale the rest."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval
from ._random_drop import RandomDropMerger


class DareMerger(RandomDropMerger):
    r"""DARE [1]_: drop entries at random, rescale those that are left, average.

    .. math:: \tilde w = \frac{m}{density} w, \qquad m \sim \mathrm{Bernoulli}(density)

    Each entry of an update is kept with probability ``density`` and divided by ``density``, so that the expectation of
    what is left is the update. Then the weighted mean is taken, or with ``sign_election`` the steps of
    :class:`TiesMerger` that come after its trimming: one sign for each entry, and the mean of the entries that have it.

    The draws add noise of ``(1 - density) / density`` times each update's squared norm. In space 'delta' the noise is
    spread over all directions, of which the result keeps only k. 'core' and 'knots' have fewer directions, so that
    more of the noise stays in the result.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.5
        Probability of keeping an entry, in (0, 1]. The paper drops up to nine tenths of the entries of large models.
    sign_election : bool or 'frequency', default=False
        False: average all entries that are left, which PEFT and mergekit call "dare_linear". True: elect a sign for
        each entry by the weighted sum, and average only the entries that have it, their "dare_ties". 'frequency': elect
        by the weights of the adapters that are positive there and of those that are negative, whatever their values.
    space : {'delta', 'factors', 'core', 'core_factors', 'knots'}, default='delta'
        The tensors on which the rule acts. 'delta': the updates B A; one module at a time, the result is cut to rank k
        by SVD. 'core': the updates in common orthonormal bases of their inputs and of their outputs, R x R, where R is
        the sum of the ranks. 'core_factors': the same in the bases of Core Space [2]_, which are the singular vectors
        of the factors as the files hold them; 'core' takes the balanced factors of each update instead. 'knots': the
        updates in a common basis of their outputs, R x d_in [3]_. 'factors': A and B separately; needs one rank.
        All but 'factors' take any ranks. 'delta', 'core' and 'knots' depend on the updates alone; 'core_factors' and
        'factors' give another result when a file factors the same update in another way.
    rescale : {'expectation', 'l1', 'l2', 'linf'} or None, default='expectation'
        What the kept entries are multiplied by. 'expectation': one over ``density``, the published method. 'l1', 'l2',
        'linf': what gives each module's tensor back its sum of magnitudes, Euclidean norm or largest magnitude;
        mergekit's "rescale" is 'l1'. None: 1.
    svd_solver : {'auto', 'exact', 'randomized'}, default='auto'
        In space 'delta', how the merged update is cut to rank k. 'auto' takes randomised subspace iteration for wide
        modules and small k, a full SVD otherwise.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 does not equal
        listing the adapter twice: every adapter that is listed has draws of its own.
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
    random_state : int, RandomState or None, default=None
        Seeds the draws. Each module draws its own stream from it, and each adapter in it, so that neither ``n_jobs``
        nor the adapters' order changes the result. Pass an int for the same result on every call.
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
    DellaMerger : Keeps large entries with a higher probability.
    TiesMerger : Keeps the largest entries.

    References
    ----------
    .. [1] Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch"
       (DARE), arXiv 2311.03099.
    .. [2] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
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
        **RandomDropMerger._parameter_constraints,
        "density": [Interval(Real, 0, 1, closed="right")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.5,
        sign_election: bool | str = False,
        space: str = "delta",
        rescale: str | None = "expectation",
        svd_solver: str = "auto",
        weights: Any = None,
        strengths: Any = None,
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
        self.rescale = rescale
        self.svd_solver = svd_solver
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def averages(self) -> bool:
        """Whether no sign is elected."""
        return self.sign_election is False

    def _keep(self, x: Tensor) -> float:
        return float(self.density)
