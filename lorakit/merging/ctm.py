"""CtM, compress then merge: common bases of k inputs and k outputs first, then a rule on k x k matrices."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..factors import LoraFactors
from ..linalg import core_space, disjoint_mean, elect_sign, flatten_spectrum, trim, tucker2
from ..linalg.spectral import Svd
from ._common import largest_rank
from ._spectral import SpectralMerger


class CtMMerger(SpectralMerger):
    r"""Compress, then merge [1]_: a rule on k x k matrices in common bases that hold most of all updates.

    .. math:: W' = U \, \mathrm{rule}(U^\top W_1 V, \dots, U^\top W_T V) \, V^\top, \qquad
       U, V = \arg\max \sum_i w_i \|U^\top W_i V\|_F^2

    over orthonormal U and V of k columns: the Tucker-2 decomposition of the stacked updates, by alternating SVDs
    (HOOI) from that of the stack (HOSVD). Other rules are cut to rank k after they acted, and lose what was built at
    full rank; here the rule knows what is left. At the sum of the ranks it acts in the core space of all updates.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget or None, default=None
        Rank of the result and number of directions in and out. None: the largest rank among the adapters. A share of
        the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    rule : {'ties', 'mean', 'iso'}, default='ties'
        'ties': trim, elect signs, average what agrees, as :class:`TiesMerger`. 'mean': the weighted mean. 'iso': the
        sum with its singular values replaced by their mean over the k directions, as :class:`IsoMerger`.
    density : float, default=0.2
        For ``rule='ties'``: share of the entries of each k x k matrix that is kept, in (0, 1].
    max_iter : int, default=100
        Most rounds, in each of which either basis is made the best for the other.
    tol : float, default=1e-6
        The rounds end once one adds no more than this share to what the bases hold of the updates. Bases that hold
        nearly the same can differ: a larger ``tol`` saves rounds and gives another merge, mostly where updates have
        little in common.
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

    singular_values_ : dict of str to ndarray
        Singular values of the merged update, by module, before it is cut to rank k and before ``scale``.

    See Also
    --------
    TiesMerger : The rule on the whole updates, or in the core space.
    SVDMerger : The best rank-k approximation of the plain mean.

    References
    ----------
    .. [1] He et al., "Compress then Merge: From Multiple LoRAs into One Low-Rank Adapter", arXiv 2606.03723.

    Examples
    --------
    >>> from lorakit import CtMMerger
    >>> from lorakit.testing import make_adapters
    >>> CtMMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('ctm', modules=2, rank=6, dtype=float32)
    """

    method = "ctm"
    paper = "arXiv 2606.03723"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SpectralMerger._parameter_constraints,
        "rule": [StrOptions({"ties", "mean", "iso"})],
        "density": [Interval(Real, 0, 1, closed="right")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        rule: str = "ties",
        density: float = 0.2,
        max_iter: int = 100,
        tol: float = 1e-6,
        weights: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.rule = rule
        self.density = density
        self.max_iter = max_iter
        self.tol = tol
        self.weights = weights
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        return self._merged_svds(updates, weights, [k])[0]

    def _merged_svds(self, updates: Sequence[LoraFactors], weights: list[float], ks: Sequence[int | None]) -> list[Svd]:
        outputs, inputs, stack = core_space(updates)
        w = torch.tensor(weights, dtype=stack.dtype, device=stack.device)
        svds = []
        for k in ks:
            u, v, cores = tucker2(stack, w, k or largest_rank(updates), max_iter=self.max_iter, tol=self.tol)
            left, s, right = torch.linalg.svd(self._rule(cores, w / len(w)), full_matrices=False)
            if self.rule == "iso":
                s = flatten_spectrum(s * len(w), len(s))
            svds.append((outputs @ (u @ left), s, (right @ v.mT) @ inputs.mT))
        return svds

    def _rule(self, cores: Tensor, weights: Tensor) -> Tensor:
        if self.rule == "ties" and cores.numel():  # there is no core where every update is zero
            cores = trim(cores, self.density)
            return disjoint_mean(cores, elect_sign(cores, weights), weights)
        return torch.tensordot(weights, cores, dims=1)
