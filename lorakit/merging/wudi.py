"""WUDI: the update that agrees with each adapter on the inputs that the adapter acts on."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

from .._ranks import Rank
from .._sklearn import Interval
from ..factors import LoraFactors
from ..linalg import least_interference, task_svds
from ..linalg.spectral import Svd
from ._spectral import SpectralMerger


class WUDIMerger(SpectralMerger):
    r"""WUDI [1]_ in closed form: the least interference on the inputs that each adapter acts on.

    .. math:: W' = \arg\min_X \sum_i \frac{w_i}{\|W_i\|_F^2} \|(X - W_i) W_i^\top\|_F^2 + \rho \|X\|_F^2
       = \Big(\sum_i \tfrac{w_i}{\|W_i\|^2} W_i W_i^\top W_i\Big) (H + \rho I)^{-1}, \qquad
       H = \sum_i \tfrac{w_i}{\|W_i\|^2} W_i^\top W_i

    The rows of an update lie in the span of its task's inputs, so the update can stand in for data: this is RegMean
    with :math:`W_i^\top W_i` in place of the Gram matrix of the inputs. The paper minimises the same function by
    gradient descent, from the sum, for a fixed number of steps. No matrix of size d x d is formed, not even H.

    The norm of the merged update is that of the sum where the adapters do not overlap, and several times that of any
    adapter where their inputs do. ``scale='match'`` sets it.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, to which the merged update is cut by SVD. None: the sum of the ranks, at which nothing is
        cut. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    ridge : float, default=0.01
        :math:`\rho`, in means of the eigenvalues of H that are not zero, so that listing an adapter twice does not
        change it. Without a ridge, inputs that two adapters act on in nearly the same way are told apart by their
        difference, which amplifies it. 0 takes the pseudo-inverse; the larger the ridge, the smaller the merged update.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
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
    TSVMerger : Also keeps the adapters from interfering; the sum where they do not overlap.

    References
    ----------
    .. [1] Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task
       Vectors", arXiv 2503.08099.

    Examples
    --------
    >>> from lorakit import WUDIMerger
    >>> from lorakit.testing import make_adapters
    >>> WUDIMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('wudi', modules=2, rank=6, dtype=float32)
    """

    method = "wudi"
    paper = "arXiv 2503.08099"
    _nested = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SpectralMerger._parameter_constraints,
        "ridge": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        ridge: float = 0.01,
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
        self.ridge = ridge
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        return least_interference(task_svds(updates, [1.0] * len(updates)), weights, ridge=self.ridge)
