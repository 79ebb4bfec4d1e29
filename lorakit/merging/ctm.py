"""CtM, compress then merge: common bases of k inputs and k outputs first, then a rule on k x k matrices."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..base import Learned
from ..factors import LoraFactors
from ..linalg import (
    core_space,
    disjoint_mean,
    drop_randomly,
    elect_sign,
    flatten_spectrum,
    tally_votes,
    trim,
    tucker2,
)
from ..linalg.sparsify import Count
from ..linalg.spectral import Svd
from ._common import largest_rank
from ._draws import streams, uniform_like
from ._spectral import SpectralMerger


class CtMMerger(SpectralMerger):
    r"""Compress, then merge [1]_: a rule on k x k matrices in common bases that hold most of all updates.

    .. math:: W' = U \, \mathrm{rule}(U^\top W_1 V, \dots, U^\top W_T V) \, V^\top, \qquad
       U, V = \arg\max \sum_i w_i \|U^\top \tilde W_i V\|_F^2

    U and V have k orthonormal columns. They are the Tucker-2 decomposition of the stacked :math:`\tilde W_i`, computed
    by alternating SVDs (HOOI) that start from those of the stack (HOSVD). The bases are learned on rescaled updates,

    .. math:: \tilde W_i = \frac{W_i}{\|W_i\|_F} \left( \beta \|W_i\|_F + (1 - \beta) \bar n \right), \qquad
       \bar n = \text{weighted mean of } \|W_i\|_F,

    so that updates of large norm do not take them all; the rule then merges the original :math:`W_i`.

    Other mergers cut to rank k after their rule acted, and lose part of what it built. Here the rule acts on what the
    result can hold. When k is the sum of the ranks, the bases hold all updates exactly.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result and number of directions in and out. None: the largest rank among the adapters. A share of
        the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    rule : {'ties', 'dare_ties', 'mean', 'iso'}, default='ties'
        The rule on the k x k matrices. 'ties': trim, elect signs, average what agrees, as :class:`TiesMerger`.
        'dare_ties': drop entries at random and rescale the others, as :class:`DareMerger`, then 'ties'. 'mean': the
        weighted mean. 'iso': the sum with its singular values replaced by their mean over the k directions, as
        :class:`IsoMerger`.
    density : float, default=0.2
        For 'ties' and 'dare_ties': share of the entries of each k x k matrix that is kept, in (0, 1]; at least one
        entry is. 1 leaves the trimming out.
    convention : {'exact', 'official'}, default='exact'
        For 'ties' and 'dare_ties': 'exact' keeps ``int(density * k**2)`` entries, and a vote of exactly zero elects
        plus. 'official' is the authors' code: one entry more, and the sign that most entries elected.
    dare_density : float, default=0.7
        For 'dare_ties': probability of keeping an entry before the trimming, in (0, 1]. The authors drop .3.
    beta : float, default=0.0
        Share of its own norm with which an update takes part when the bases are learned, in [0, 1]. 0 gives all
        updates the same norm, the default of the authors' code, which searches from 0 to .75. 1 learns the bases on
        the updates as they are.
    max_iter : int, default=100
        Largest number of rounds. In each round, each basis in turn becomes the best one for the other.
    tol : float, default=1e-6
        The rounds end when a round adds no more than this share to what the bases hold of the updates. Bases that hold
        nearly the same can differ: a larger ``tol`` saves rounds and gives another merge, mostly where updates have
        little in common.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice; not for ``rule='iso'``, where the sum would have one term more, nor for ``rule='dare_ties'``,
        where the copy would have draws of its own.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they are
        merged. A negative one subtracts, 0 leaves the adapter out. With ``rule='mean'`` they are added up,
        not averaged.
    scale : float or 'match', default=1.0
        Factor on the merged update. 'match' gives it ``scale_target`` times the mean norm of the adapters' updates.
    scale_target : float, default=1.0
        For ``scale='match'``: the wanted norm, in mean norms of the adapters.
    scale_scope : {'module', 'model'}, default='module'
        For ``scale='match'``: match each module's norm, or one factor for the whole model. An adapter that lacks a
        module counts there with norm zero.
    random_state : int, RandomState or None, default=None
        Seeds the draws of 'dare_ties'. Each module draws its own stream from it, and each adapter in it, so that
        neither ``n_jobs`` nor the adapters' order changes the result. Pass an int for the same result on every call.
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
        "rule": [StrOptions({"ties", "dare_ties", "mean", "iso"})],
        "density": [Interval(Real, 0, 1, closed="right")],
        "convention": [StrOptions({"exact", "official"})],
        "dare_density": [Interval(Real, 0, 1, closed="right")],
        "beta": [Interval(Real, 0, 1, closed="both")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        rule: str = "ties",
        density: float = 0.2,
        convention: Count = "exact",
        dare_density: float = 0.7,
        beta: float = 0.0,
        max_iter: int = 100,
        tol: float = 1e-6,
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
        self.rule = rule
        self.density = density
        self.convention = convention
        self.dare_density = dare_density
        self.beta = beta
        self.max_iter = max_iter
        self.tol = tol
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
        """Whether the rule is the mean."""
        return bool(self.rule == "mean")

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        worker = copy(self)
        # from the updates themselves: in the frames in which the rule sees them, coordinates depend on the factors
        worker._streams = streams(updates, weights, rng)
        return super(CtMMerger, worker)._merge_module_path(updates, weights, ks, rng)

    @property
    def weights_as_copies(self) -> bool:
        """Whether the rule is a mean of the updates: a sum grows with each copy, and each copy has its own draws."""
        return self.rule in ("ties", "mean")

    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        return self._merged_svds(updates, weights, [k])[0]

    def _merged_svds(self, updates: Sequence[LoraFactors], weights: list[float], ks: Sequence[int | None]) -> list[Svd]:
        outputs, inputs, stack = core_space(updates)
        w = torch.tensor(weights, dtype=stack.dtype, device=stack.device)
        targets = stack * self._rescaling(stack, w)[:, None, None]
        svds = []
        for k in ks:
            u, v, _ = tucker2(targets, w, k or largest_rank(updates), max_iter=self.max_iter, tol=self.tol)
            left, s, right = torch.linalg.svd(self._rule(u.mT @ stack @ v, w / len(w)), full_matrices=False)
            if self.rule == "iso":
                s = flatten_spectrum(s * len(w), len(s))
            svds.append((outputs @ (u @ left), s, (right @ v.mT) @ inputs.mT))
        return svds

    def _rescaling(self, stack: Tensor, weights: Tensor) -> Tensor:
        """Factors by which the updates are multiplied when the bases are learned: (T, p, q) to (T,)."""
        norms = stack.flatten(1).norm(dim=1)
        there = norms > 1e-15 * norms.max()  # what is no update has no direction, and no say in the mean
        mean = (weights * norms)[there].sum() / weights[there].sum()
        return torch.where(there, self.beta + (1 - self.beta) * mean / torch.where(there, norms, 1), 1)

    def _rule(self, cores: Tensor, weights: Tensor) -> Tensor:
        if self.rule in ("mean", "iso") or not cores.numel():  # there is no core where every update is zero
            return torch.tensordot(weights, cores, dims=1)
        if self.rule == "dare_ties":
            uniforms = [uniform_like(x, deepcopy(rng)) for x, rng in zip(cores, self._streams, strict=True)]
            cores = drop_randomly(cores, self.dare_density, torch.stack(uniforms))
        cores = trim(cores, self.density, count=self.convention)
        official = self.convention == "official"
        undecided = float(tally_votes(cores, weights).sum().sign()) if official else 1.0
        return disjoint_mean(cores, elect_sign(cores, weights, undecided=undecided), weights)
