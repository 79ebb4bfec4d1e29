"""Prune by truncated SVD."""

from __future__ import annotations

import numpy as np

from .._ranks import Rank
from ..adapters import Adapter
from ..base import BasePruner
from ..factors import LoraFactors
from ..linalg import split_svd, truncate


class SVDPruner(BasePruner):
    """Cut each adapter to its best rank-k approximation.

    By Eckart-Young no other adapter of rank k is nearer to the original in Frobenius norm.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank to keep. None: half of each module's rank. A module at or below it stays as it is. A share of the energy,
        'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    n_jobs : int, default=None
        Modules pruned at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    device : str, default=None
        Torch device of the algebra; None is the CPU.
    verbose : int, default=0
        From 1, a progress bar over the modules; above 1, joblib's messages too.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.

    See Also
    --------
    LegoPruner : Clusters the adapter's MSUs instead.

    Examples
    --------
    >>> from lorakit import SVDPruner
    >>> from lorakit.testing import make_adapters
    >>> SVDPruner(k=3).fit_transform(make_adapters(ranks=(4, 8), random_state=0))
    AdapterSet(['task0' r=3, 'task1' r=3], modules=2, dtype=float32)
    """

    method = "svd"

    def __init__(
        self,
        k: Rank = None,
        *,
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _prune_module(self, update: LoraFactors, k: int, rng: np.random.RandomState) -> LoraFactors:
        return LoraFactors(*truncate(update, k))

    def _prune_stored(self, adapter: Adapter, module: str, k: int) -> LoraFactors | None:
        found = adapter.svd(module, k)
        return None if found is None else LoraFactors(*split_svd(*found, k))
