"""TIES: trim, elect a sign, average what agrees with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..linalg import disjoint_mean, elect_sign, keep_above, magnitude_threshold
from ._elementwise import ElementwiseMerger
from ._global_trim import model_thresholds


class TiesMerger(ElementwiseMerger):
    r"""TIES-Merging [1]_: keep the largest entries, elect a sign per entry, average the entries that have it.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.2
        Share of the entries of each update that is kept, in (0, 1].
    space : {'delta', 'factors', 'core', 'knots'}, default='delta'
        Where the rule acts. 'delta': on the updates B A, one module at a time, and the result is cut to rank k by
        SVD. 'core': on the updates in common orthonormal bases of their inputs and outputs, R x R [2]_. 'knots': in
        a common basis of their outputs [3]_. These take any ranks and depend on the updates alone. 'factors': on A
        and on B separately; it needs one rank, and its result depends on how the files factor the updates.
    trim_scope : {'module', 'model'}, default='module'
        Keep the share ``density`` of each module's entries, or of all that the adapter has, as the authors' code does:
        modules with large entries then keep more of them.
    convention : {'exact', 'official'}, default='exact'
        'exact' keeps ``int(density * n)`` entries, and a vote of exactly zero elects plus, as PEFT and mergekit do.
        'official' is the authors' code: one entry more, and the sign that most entries elected.
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
    DareMerger, DellaMerger : Drop entries at random.
    MagnitudeMerger : Trims, and averages without an election.

    References
    ----------
    .. [1] Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", arXiv 2306.01708.
    .. [2] "Core Space", arXiv 2509.17786.
    .. [3] Stoica et al., "Model merging with SVD to tie the Knots" (KnOTS), arXiv 2410.19735.

    Examples
    --------
    >>> from lorakit import TiesMerger
    >>> from lorakit.testing import make_adapters
    >>> TiesMerger(k=6, density=0.5).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('ties', modules=2, rank=6, dtype=float32)
    """

    method = "ties"
    paper = "arXiv 2306.01708"
    _draws = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "density": [Interval(Real, 0, 1, closed="right")],
        "trim_scope": [StrOptions({"module", "model"})],
        "convention": [StrOptions({"exact", "official"})],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.2,
        space: str = "delta",
        trim_scope: str = "module",
        convention: str = "exact",
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
        self.space = space
        self.trim_scope = trim_scope
        self.convention = convention
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
        if self.trim_scope == "module":
            return self
        worker = copy(self)
        extra = int(self.convention == "official")
        worker._thresholds = model_thresholds(
            X[np.flatnonzero(weights)],
            self._blocks,
            self.density,
            extra=extra,
            n_jobs=self.n_jobs,
            device=self.device,
        )
        return worker

    def _measure(self, x: Tensor, adapter: int) -> float:
        if self.trim_scope == "model":
            return self._thresholds[adapter]
        return magnitude_threshold(x, self.density, count="official" if self.convention == "official" else "exact")

    def _sparsify(self, x: Tensor, measured: float, rng: np.random.RandomState) -> Tensor:
        return keep_above(x, measured)

    @property
    def _surveys(self) -> bool:
        return self.convention == "official"  # the sign that most entries elected is known once all have

    def _survey(self, stack: Tensor, weights: Tensor) -> Tensor:
        return _vote(stack, weights).sum(dtype=torch.float64)

    def _combine(self, stack: Tensor, weights: Tensor, survey: Tensor | None) -> Tensor:
        if survey is None:
            return disjoint_mean(stack, elect_sign(stack, weights), weights)
        sign = _vote(stack, weights)
        return disjoint_mean(stack, torch.where(sign == 0, torch.sign(survey).to(sign), sign), weights)


def _vote(stack: Tensor, weights: Tensor) -> Tensor:
    return torch.sign(torch.tensordot(weights, stack, dims=1))
