"""RegMean: the merge whose outputs are nearest to each adapter's on that adapter's own inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np

from .._ranks import Rank
from .._sklearn import Interval
from ..activations import Gram
from ..adapter_set import AdapterSet
from ..base import BaseMerger, Learned
from ..factors import LoraFactors
from ..linalg import regression_mean, svd_of_sum
from ._common import largest_rank, svd_cuts
from ._given_grams import check_grams
from ._running_moments import RunningMomentsMixin


class RegMeanMerger(RunningMomentsMixin, BaseMerger):
    r"""Least squares on outputs: each adapter's are kept as well as possible on the inputs of its own task.

    .. math:: W' = \Big(\sum_i w_i W_i \tilde G_i\Big) \Big(\sum_i w_i \tilde G_i\Big)^{-1}

    with :math:`G_i = X_i^T X_i / N_i`, the second moments of the inputs that module has in task i, and
    :math:`\tilde G_i` the same after ``offdiagonal`` and ``ridge``. RegMean [1]_, on thin factors: B is the
    concatenation of the :math:`B_i`, only A is new, so that the rank is at most the sum of the ranks. With equal
    :math:`G_i` this is the mean of the updates (:class:`SVDMerger`); where tasks use different input directions, each
    keeps its own outputs in full.

    It needs data, though no labels: :func:`lorakit.collect_grams` runs the model on some inputs of each task.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, at most the sum of the ranks. None: the largest rank among the adapters. If the
        ranks sum to less than k, the module is kept exactly. A share of the energy, 'auto' or a
        :class:`~lorakit.RankBudget` gives each module a rank of its own.
    grams : dict of str to Grams
        For each adapter's name what :func:`lorakit.collect_grams` returned. It may name more adapters than are
        merged, so that it stays valid on the subsets that cross-validation makes. An adapter that lacks a module
        counts there as an update of zero if its Grams have the module, and is left out there otherwise.
    offdiagonal : float, default=0.9
        Factor in [0, 1] on the entries of each G off its diagonal. The paper found that 1 degrades some models. It
        reports 0.9 for its smaller encoders and 0.1 for T5 and DeBERTa; the authors' configurations have 0.1 for
        RoBERTa too.
    ridge : float, default=1e-6
        Added to the diagonal of every G, in means of the diagonal of their sum. Input directions that no task uses get
        the mean of the updates. With 0 those are an error.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they are
        merged. A negative one subtracts, 0 leaves the adapter out. The Grams stay as they are.
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
        All singular values of the solution, by module, before ``scale``.
    truncation_error_ : dict of str to float
        Frobenius norm of what was cut off, by module, before ``scale``: the root of the sum of the squares of the
        singular values beyond k.

    See Also
    --------
    collect_grams : Gathers what this needs.
    SVDMerger : The same without data.

    References
    ----------
    .. [1] Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", arXiv 2212.09849.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import RegMeanMerger
    >>> from lorakit.activations import Grams
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), random_state=0)
    >>> inputs = {"task0": np.ones((24, 24)), "task1": np.eye(24)}  # in place of what collect_grams gathers
    >>> grams = {name: Grams({"layer.0": gram, "layer.1": gram}) for name, gram in inputs.items()}
    >>> RegMeanMerger(k=6, grams=grams).fit(adapters).merged_
    Adapter('regmean', modules=2, rank=6, dtype=float32)
    """

    method = "regmean"
    paper = "arXiv 2212.09849"
    needs_data = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "grams": [dict, None],
        "offdiagonal": [Interval(Real, 0, 1, closed="both")],
        "ridge": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        grams: Any = None,
        offdiagonal: float = 0.9,
        ridge: float = 1e-6,
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
        self.grams = grams
        self.offdiagonal = offdiagonal
        self.ridge = ridge
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        """Check the Grams of all modules before any is merged."""
        check_grams(X, self.grams)
        return self

    def _for_module(self, module: str) -> Self:
        worker = copy(self)
        worker.grams = {name: {module: grams[module]} for name, grams in self.grams.items() if module in grams}
        return worker

    def _fit_module(self, X: AdapterSet, module: str, **options: Any) -> Any:
        self._module_grams = [self.grams.get(name, {}).get(module) for name in X.names]  # of the copy: see _for_module
        return super()._fit_module(X, module, **options)

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        known: list[Gram | None] = self._module_grams
        voting = [i for i, gram in enumerate(known) if gram is not None]
        share = weights[voting] / weights[voting].sum()
        moments = [gram.tensors(updates[0].A.device) for i in voting if (gram := known[i]) is not None]
        a, b = regression_mean(
            [updates[i] for i in voting],
            share.tolist(),
            moments,
            offdiagonal=self.offdiagonal,
            ridge=self.ridge,
        )
        own = largest_rank(updates)
        return svd_cuts(svd_of_sum([(a, b)], [1.0]), [own if k is None else k for k in ks])
