"""How far apart minimal semantic units (MSUs) are, within an adapter and between adapters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._execution import map_modules, read_module
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..linalg import pool_msus
from ..linalg.frames import frame_of

UnitMetric = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class MSUDistances:
    """Mean distances between units, by module and pair of adapters.

    Parameters
    ----------
    names : tuple of str
        The adapters.
    modules : tuple of str
        The modules.
    between : ndarray of shape (n_modules, n_adapters, n_adapters)
        Mean distance of the pairs that take one unit from each adapter; on the diagonal, of the pairs of different
        units of one adapter. NaN where there is no pair: one unit alone, or a module that an adapter lacks.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    between: NDArray[np.float64]

    @property
    def within(self) -> NDArray[np.float64]:
        """Mean distance between the units of each adapter, of shape (n_modules, n_adapters)."""
        return np.diagonal(self.between, axis1=1, axis2=2)


def msu_distances(
    adapters: AdapterSet | Iterable[Adapter], *, metric: UnitMetric = "euclidean", n_jobs: int | None = None
) -> MSUDistances:
    """Measure the mean distance between the MSUs of each adapter, and between those of every two adapters.

    Small distances within an adapter say that its units resemble one another, so that merging it with a copy of itself
    in another order does little harm. Distances between adapters that are no larger than those within them say that
    their units mix. The units depend on how an update is factored, so compare adapters that were trained in the same
    way.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        Of any ranks.
    metric : {'euclidean', 'cosine'}, default='euclidean'
        Distance of two units: Euclidean, or 1 minus their cosine, which ignores their lengths. The cosine distance from
        a zero unit is 1.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    MSUDistances

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters do not fit together.
    ValueError
        If ``metric`` is not one of these, or a weight is not finite.

    See Also
    --------
    lorakit.plotting.MSUMapDisplay : Draws the units themselves.

    Examples
    --------
    >>> from lorakit.metrics import msu_distances
    >>> from lorakit.testing import make_adapters
    >>> found = msu_distances(make_adapters(ranks=(4, 8), random_state=0))
    >>> found.within.round(1)
    array([[9.1, 9.1],
           [8.6, 8.6]])
    >>> found.between[0].round(1)
    array([[9.1, 9. ],
           [9. , 9.1]])
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric must be 'euclidean' or 'cosine', got {metric!r}")
    X = check_adapters(adapters)
    found = map_modules(partial(_mean_distances, metric=metric), X, n_jobs=n_jobs, verbose=0)
    return MSUDistances(X.names, X.module_names, np.stack(found))


def _mean_distances(X: AdapterSet, module: str, *, metric: UnitMetric) -> NDArray[np.float64]:
    updates = read_module(X, module, None)
    distances = _distances(pool_msus(updates), metric).numpy()  # (R, R)
    member = np.zeros((len(updates), len(distances)))
    ranks = [update.rank for update in updates]
    member[np.repeat(np.arange(len(updates)), ranks), np.arange(len(distances))] = 1
    pairs = np.outer(ranks, ranks) - np.diag(ranks)  # a unit is not paired with itself
    with np.errstate(invalid="ignore"):  # no pairs: 0 / 0
        means: NDArray[np.float64] = member @ distances @ member.T / pairs
    return means


def _distances(units: Tensor, metric: UnitMetric) -> Tensor:
    """Return the distances between all units, (R, R), from their coordinates in an orthonormal frame."""
    if len(units) == 0:
        return torch.zeros(0, 0, dtype=torch.float64)
    rows = frame_of([units.mT]).blocks[0].mT
    if metric == "cosine":
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit = rows / torch.where(norms > 0, norms, 1)
        distances = (1 - unit @ unit.mT).clamp(0, 2)
    else:
        # not through products of the rows: they would leave only noise of a small distance
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(0)
