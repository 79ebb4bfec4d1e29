"""TIES: trim, elect a sign, average what agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .._execution import map_modules, read_module
from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..factors import LoraFactors
from ..linalg import (
    disjoint_max,
    disjoint_mean,
    disjoint_sum,
    elect_sign,
    keep_above,
    magnitude_threshold,
    tally_votes,
)
from ..linalg.signs import Vote
from ..linalg.sparsify import Norm
from ._elementwise import ElementwiseMerger, norm_factor, scaled
from ._global_trim import model_thresholds


def _disjoint_total(stack: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    return disjoint_sum(stack, sign, weights * len(weights))  # of mean 1, as all sums here: the authors' size


_DISJOINT = {"mean": disjoint_mean, "sum": _disjoint_total, "max": disjoint_max}


class TiesMerger(ElementwiseMerger):
    r"""TIES-Merging [1]_: keep the largest entries, elect a sign per entry, average the entries that have it.

    Three steps. *Trim*: keep the ``density`` largest magnitudes of each update, at least one, and set the rest to zero.
    *Elect*: for each entry, take the sign of the weighted sum over the adapters. *Merge*: for each entry, average the
    adapters whose entry has that sign.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.2
        Share of the entries of each update that is kept, in (0, 1].
    space : {'delta', 'factors', 'core', 'core_factors', 'knots'}, default='delta'
        The tensors on which the rule acts. 'delta': the updates B A; one module at a time, the result is cut to rank k
        by SVD. 'core': the updates in common orthonormal bases of their inputs and of their outputs, R x R, where R is
        the sum of the ranks. 'core_factors': the same in the bases of Core Space [2]_, which are the singular vectors
        of the factors as the files hold them; 'core' takes the balanced factors of each update instead. 'knots': the
        updates in a common basis of their outputs, R x d_in [3]_. 'factors': A and B separately; needs one rank.
        All but 'factors' take any ranks. 'delta', 'core' and 'knots' depend on the updates alone; 'core_factors' and
        'factors' give another result when a file factors the same update in another way.
    vote : {'total', 'frequency'}, default='total'
        How an entry elects its sign. 'total': by the weighted sum, so that large values count more. 'frequency': by the
        weights of the adapters that are positive there and of those that are negative, whatever their values. Both
        names are PEFT's.
    disjoint : {'mean', 'sum', 'max'}, default='mean'
        What becomes of the values that have the elected sign: their weighted mean; their sum, with weights of mean 1;
        or the one of largest magnitude. The authors' code has all three, as "dis-mean", "dis-sum" and "dis-max".
    trim_scope : {'module', 'model'}, default='module'
        Keep the share ``density`` of each module's entries, or of all that the adapter has, as the authors' code does:
        modules with large entries then keep more of them.
    convention : {'exact', 'official'}, default='exact'
        'exact' keeps ``int(density * n)`` entries, and a vote of exactly zero elects plus, as PEFT and mergekit do.
        'official' is the authors' code: it keeps one entry more, and a vote of exactly zero elects the sign that most
        entries elected, of the module or with ``trim_scope='model'`` of the model.
    rescale : {'l1', 'l2'} or None, default=None
        Norm that the trimmed tensor of each module is given back, as an option of mergekit does. None leaves what was
        kept as it is. (The largest magnitude, mergekit's "linf", is kept by the trim itself.)
    svd_solver : {'auto', 'exact', 'randomized'}, default='auto'
        In space 'delta', how the merged update is cut to rank k. 'auto' takes randomised subspace iteration for wide
        modules and small k, a full SVD otherwise.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice; not for ``disjoint='sum'``, which has one term more for a copy.
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

    See Also
    --------
    DareMerger, DellaMerger : Drop entries at random.
    MagnitudeMerger : Trims, and averages without an election.
    SCEMerger : Keeps the places at which the updates differ most.

    References
    ----------
    .. [1] Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", arXiv 2306.01708.
    .. [2] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
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
        "vote": [StrOptions({"total", "frequency"})],
        "disjoint": [StrOptions(set(_DISJOINT))],
        "trim_scope": [StrOptions({"module", "model"})],
        "convention": [StrOptions({"exact", "official"})],
        "rescale": [StrOptions({"l1", "l2"}), None],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.2,
        space: str = "delta",
        vote: Vote = "total",
        disjoint: str = "mean",
        trim_scope: str = "module",
        convention: str = "exact",
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
        self.vote = vote
        self.disjoint = disjoint
        self.trim_scope = trim_scope
        self.convention = convention
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
    def weights_as_copies(self) -> bool:
        """Whether what agrees is averaged: a sum grows with each copy."""
        return self.disjoint != "sum"

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        if self.trim_scope == "module":
            return self
        worker = copy(self)
        worker._thresholds = model_thresholds(
            X,
            partial(self._entries, weights=weights),
            self.density,
            extra=int(self._official),
            n_jobs=self.n_jobs,
            device=self.device,
        )
        if self._official:
            elected = map_modules(partial(worker._elected, weights=weights), X, n_jobs=self.n_jobs, verbose=0)
            worker._majority = float(np.sign(sum(elected)))
        return worker

    @property
    def _official(self) -> bool:
        return bool(self.convention == "official")

    def _entries(self, updates: Sequence[LoraFactors], weights: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """Yield all that the rule sees of one module, as pairs of an adapter's position and a block."""
        there = [i for i, update in enumerate(updates) if update.rank]
        for matrices in self._seen(updates, weights) if there else ():
            for rows in matrices.tiles:
                stack = matrices.stacked(rows, lambda i, x: x)
                yield from ((i, stack[i]) for i in there)

    def _elected(self, X: AdapterSet, module: str, *, weights: np.ndarray) -> float:
        """Count the entries of one module that elect plus, less those that elect minus."""
        updates = read_module(X, module, self.device)
        w = torch.tensor(weights).to(updates[0].A)
        total, streams = 0.0, [np.random.RandomState(0)] * len(updates)  # nothing draws from them
        for matrices in self._seen(updates, weights) if any(update.rank for update in updates) else ():
            blocks = self._sparse(matrices, streams, matrices.empty())
            total += self._balance((stack for _, stack in blocks(streams)), w)
        return total

    def _measure(self, x: Tensor, adapter: int, rng: np.random.RandomState) -> tuple[float, float]:
        if self.trim_scope == "model":
            threshold = self._thresholds[adapter]
        else:
            threshold = magnitude_threshold(x, self.density, count="official" if self._official else "exact")
        return threshold, norm_factor(x, lambda part: keep_above(part, threshold), self.rescale)

    def _sparsify(self, x: Tensor, measured: tuple[float, float], rng: np.random.RandomState) -> Tensor:
        threshold, factor = measured
        return scaled(keep_above(x, threshold), factor)

    def _survey(self, blocks: Callable[[], Iterator[Tensor]], weights: Tensor) -> float:
        """Return the sign of the entries that elect none."""
        if not self._official:
            return 1.0
        return self._majority if self.trim_scope == "model" else float(np.sign(self._balance(blocks(), weights)))

    def _balance(self, blocks: Iterable[Tensor], weights: Tensor) -> float:
        """Count the entries that elect plus, less those that elect minus."""
        votes = (tally_votes(x, weights, vote=self.vote).sum(dtype=torch.float64).item() for x in blocks)
        return float(sum(votes))

    def _combine(self, stack: Tensor, weights: Tensor, survey: float) -> Tensor:
        return _DISJOINT[self.disjoint](stack, elect_sign(stack, weights, vote=self.vote, undecided=survey), weights)
