"""SCE: select the places where the updates differ, weigh the adapters by what is there, erase minorities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..linalg import disjoint_mean, elect_sign, variance_threshold, weighted_variance
from ._elementwise import ElementwiseMerger


class _Selection(NamedTuple):
    least: float  # variance from which an entry is selected
    weights: Tensor  # (T,): the adapters' weights times the squares of what is selected of their updates


class SCEMerger(ElementwiseMerger):
    r"""SCE [1]_: select the entries that differ most, weigh adapters by their energy there, erase minority signs.

    Three steps in each module. *Select*: keep the ``density`` entries whose variance over the adapters is largest, the
    same entries of every update, at least one. *Calculate*: weigh each adapter by the sum of squares of its selected
    entries. *Erase*: for each entry, elect a sign by the sum over the adapters, and average the adapters whose entry
    has that sign with those weights:

    .. math:: W'_{pq} = \frac{\sum_{i \in A_{pq}} w_i c_i \, W_{i,pq}}{\sum_{i \in A_{pq}} w_i c_i}, \qquad
       c_i = \sum_{(p, q) \text{ selected}} W_{i,pq}^2

    where :math:`A_{pq}` are the adapters that have the elected sign at a selected entry.

    Entries at which all updates are equal have no variance and are never selected. If no entry has a variance, as with
    a single adapter, all entries are kept.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None: the largest rank among the adapters (in 'factors', their one rank). A share of the
        energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    density : float, default=0.1
        Share of the entries with a variance that is selected, in (0, 1]. The default is that of the published merges;
        mergekit calls the parameter "select_topk", with a default of 1.
    space : {'delta', 'factors', 'core', 'core_factors', 'knots'}, default='delta'
        The tensors on which the rule acts. 'delta': the updates B A; one module at a time, the result is cut to rank k
        by SVD. 'core': the updates in common orthonormal bases of their inputs and of their outputs, R x R, where R is
        the sum of the ranks. 'core_factors': the same in the bases of Core Space [2]_, which are the singular vectors
        of the factors as the files hold them; 'core' takes the balanced factors of each update instead. 'knots': the
        updates in a common basis of their outputs, R x d_in [3]_. 'factors': A and B separately; needs one rank.
        All but 'factors' take any ranks. 'delta', 'core' and 'knots' depend on the updates alone; 'core_factors' and
        'factors' give another result when a file factors the same update in another way.
    convention : {'exact', 'official'}, default='exact'
        'exact' merges the selected entries, as the paper and mergekit do. 'official' is the authors' code: the
        selection enters the adapters' weights only, and all entries are merged.
    svd_solver : {'auto', 'exact', 'randomized'}, default='auto'
        In space 'delta', how the merged update is cut to rank k. 'auto' takes randomised subspace iteration for wide
        modules and small k, a full SVD otherwise.
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

    See Also
    --------
    TiesMerger : Trims each update on its own, and weighs adapters alike.

    Notes
    -----
    mergekit weighs all adapters alike where the mean squares of the selected entries add up to less than 1e-6, which is
    common for LoRA updates. Here that is done only where all are zero, as in the authors' code.

    References
    ----------
    .. [1] Wan et al., "FuseChat: Knowledge Fusion of Chat Models", arXiv 2408.07990.
    .. [2] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.
    .. [3] Stoica et al., "Model merging with SVD to tie the Knots" (KnOTS), arXiv 2410.19735.

    Examples
    --------
    >>> from lorakit import SCEMerger
    >>> from lorakit.testing import make_adapters
    >>> SCEMerger(k=6).fit(make_adapters(ranks=(4, 8), random_state=0)).merged_
    Adapter('sce', modules=2, rank=6, dtype=float32)
    """

    method = "sce"
    paper = "arXiv 2408.07990"
    _draws = False

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ElementwiseMerger._parameter_constraints,
        "density": [Interval(Real, 0, 1, closed="right")],
        "convention": [StrOptions({"exact", "official"})],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        density: float = 0.1,
        space: str = "delta",
        convention: str = "exact",
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
        self.convention = convention
        self.svd_solver = svd_solver
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _survey(self, blocks: Callable[[], Iterator[Tensor]], weights: Tensor) -> _Selection:
        least = 0.0
        if self.density < 1:
            least = variance_threshold(torch.cat([weighted_variance(x, weights) for x in blocks()]), self.density)
        squares = sum(self._selected(x, weights, least).double().square().sum(dim=(1, 2)) for x in blocks())
        assert isinstance(squares, Tensor)  # there is a block at least
        energies = squares if squares.any() else torch.ones_like(squares)
        counted = weights.double() * energies / energies.max()  # float32 holds them, however small the updates
        return _Selection(least, counted.to(weights))

    def _selected(self, stack: Tensor, weights: Tensor, least: float) -> Tensor:
        return stack if least == 0 else stack * (weighted_variance(stack, weights) >= least)

    def _combine(self, stack: Tensor, weights: Tensor, survey: _Selection) -> Tensor:
        if self.convention == "exact":
            stack = self._selected(stack, weights, survey.least)
        return disjoint_mean(stack, elect_sign(stack, weights), survey.weights)
