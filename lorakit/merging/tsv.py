"""TSV: every task keeps its singular values, and gets singular vectors that do not overlap with another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._ranks import Rank
from ..factors import LoraFactors
from ..linalg import merge_singular_vectors, task_svds
from ..linalg.spectral import Svd
from ._spectral import SpectralMerger


class TSVMerger(SpectralMerger):
    r"""Task Singular Vectors [1]_: make the tasks' singular vectors orthogonal to one another, then add the updates.

    .. math:: W' = U_\perp \, \mathrm{diag}(S_1, \dots, S_T) \, V_\perp^\top, \qquad T w_i W_i = U_i S_i V_i^\top

    with :math:`U_\perp` the polar factor of :math:`[U_1 \dots U_T]`, the nearest matrix whose columns are orthonormal
    (or whose rows are, where the ranks sum to more than the width), and :math:`V_\perp` likewise. Updates that act on
    the same directions no longer interfere; where no two do, the result is the sum. All singular triples of every
    adapter are kept, as in Core Space [2]_, whose results this method gives: the paper cuts updates of full rank, and
    those of LoRA are of low rank already. The result depends on the updates alone.

    The updates are summed as in the paper, not averaged: for T adapters of about one norm that do not overlap, the
    result has :math:`\sqrt T` times that norm. ``scale='match'`` sets it. A weight scales an adapter's singular values;
    its directions count in full, unless it is zero. Where adapters depend on one another exactly, they share directions
    and none is invented: T copies of an adapter give that adapter.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, to which the merged update is cut by SVD. None: the sum of the ranks, at which nothing is
        cut. A share of the energy, 'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 does not equal
        listing the adapter twice: the copies would share their directions, and the sum would have one term
        more.
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
    SVDMerger : The best rank-k approximation of the plain mean.
    IsoMerger : Changes the singular values instead of the vectors.

    References
    ----------
    .. [1] Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", arXiv 2412.00081.
    .. [2] Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", arXiv 2509.17786.

    Examples
    --------
    >>> from lorakit import TSVMerger
    >>> from lorakit.testing import make_adapters
    >>> X = make_adapters(ranks=(4, 8), random_state=0)
    >>> TSVMerger(k=6).fit(X).merged_
    Adapter('tsv', modules=2, rank=6, dtype=float32)
    >>> TSVMerger().fit(X).merged_
    Adapter('tsv', modules=2, rank=12, dtype=float32)
    """

    method = "tsv"
    paper = "arXiv 2412.00081"
    _nested = True

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
    def weights_as_copies(self) -> bool:
        """False: copies share directions, and a sum grows with the number of its terms."""
        return False

    def _merged_svd(self, updates: Sequence[LoraFactors], weights: list[float], k: int | None) -> Svd:
        return merge_singular_vectors(task_svds(updates, weights))
