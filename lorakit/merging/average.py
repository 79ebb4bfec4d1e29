"""Weight average: the mean of the A and the mean of the B (direct merge)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._ranks import Rank
from ..base import BaseMerger, Learned
from ..factors import LoraFactors
from ._common import cuts, stack_factors


class AverageMerger(BaseMerger):
    r"""Average A and B separately: the *direct* merge.

    .. math:: A' = \sum_i w_i A_i, \qquad B' = \sum_i w_i B_i

    The baseline of both papers. The product :math:`B' A'` holds cross terms :math:`B_i A_j` of different adapters,
    which [1]_ shows to be what makes it worse than averaging the products; :class:`SVDMerger` does that. The result
    depends on the order of the MSUs inside each adapter, and on every other choice of factors. PEFT's "linear" weighs
    by :math:`\sqrt{w_i}`: with equal weights its update is this one times the number of adapters.

    A negative weight negates both factors of its adapter, as LoraHub [2]_ has it: the signs of the cross terms change,
    and the adapter's own update :math:`w_i^2 B_i A_i` is still added. :class:`SVDMerger` subtracts updates.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None keeps the adapters' rank; a smaller one truncates by SVD. A share of the energy, 'auto'
        or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Weights, normalised so that their absolute values sum to 1. None weighs all adapters equally. A weight of 2
        equals listing the adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied. The A and the B
        are then added up, not averaged, which is PEFT's "linear". A negative one subtracts the update, 0 leaves the
        adapter out.
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
    ConcatMerger : The exact mean of the updates, at the sum of the ranks.
    SVDMerger : The exact mean of the updates, truncated to rank k.

    References
    ----------
    .. [1] "LoRA Merging with SVD: Understanding Interference and Preserving Performance".
    .. [2] Huang et al., "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", arXiv 2307.13269.

    Examples
    --------
    >>> from lorakit import AverageMerger
    >>> from lorakit.testing import make_adapters
    >>> AverageMerger().fit(make_adapters(ranks=(4, 4, 4), random_state=0)).merged_
    Adapter('average', modules=2, rank=4, dtype=float32)
    """

    method = "average"
    paper = "arXiv 2409.16167"
    _signed_weights = True

    def __init__(
        self,
        k: Rank = None,
        *,
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
        """True."""
        return True

    @property
    def needs_equal_ranks(self) -> bool:
        """True."""
        return True

    @property
    def invariances(self) -> frozenset[str]:
        """None: which unit meets which is a matter of order."""
        return frozenset()

    @property
    def _weights_degree(self) -> int:
        return 2  # A and B are each multiplied

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        a, b = stack_factors(updates)
        w = torch.tensor(weights).to(a)
        mean = LoraFactors(torch.tensordot(w, a, dims=1), torch.tensordot(w, b, dims=1))
        return [(factors, {}) for factors in cuts(mean, ks)]
