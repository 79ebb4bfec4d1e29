"""The cross terms of a direct merge: products of one adapter's B with another adapter's A."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from math import sqrt

import numpy as np
import torch
from numpy.typing import ArrayLike

from .._execution import map_modules, read_module
from .._validation import check_adapters, check_equal_ranks, check_weights
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..linalg import compress


@dataclass(frozen=True)
class Interference:
    r"""The two parts of a direct merge, as squared Frobenius norms, which add up over modules.

    The direct merge :math:`(\sum_i w_i B_i)(\sum_i w_i A_i)` is the sum of a *multiplied* part,
    :math:`\sum_i w_i^2 B_i A_i`, and of the *cross terms*, :math:`\sum_{i \ne j} w_i w_j B_i A_j`.

    Parameters
    ----------
    squared_direct : float, default=0.0
        Of the direct merge.
    squared_multiplied : float, default=0.0
        Of the multiplied part.
    squared_cross : float, default=0.0
        Of the cross terms.
    """

    squared_direct: float = 0.0
    squared_multiplied: float = 0.0
    squared_cross: float = 0.0

    @property
    def direct(self) -> float:
        """Norm of the direct merge."""
        return sqrt(self.squared_direct)

    @property
    def multiplied(self) -> float:
        """Norm of the multiplied part."""
        return sqrt(self.squared_multiplied)

    @property
    def cross(self) -> float:
        """Norm of the cross terms."""
        return sqrt(self.squared_cross)

    @property
    def share(self) -> float:
        """Share of the cross terms in the sum of the squared norms of both parts, in [0, 1]; 0 if both are zero.

        If the factors of different adapters have nothing in common, the share is about ``(T - 1) / T``.
        """
        both = self.squared_multiplied + self.squared_cross
        return self.squared_cross / both if both else 0.0

    @property
    def cosine(self) -> float:
        """Cosine between the two parts; 0 if either is zero.

        Near 0, the cross terms are noise for the multiplied part. At 1, as with copies of one adapter, they only make
        it larger.
        """
        norms = self.multiplied * self.cross
        inner = (self.squared_direct - self.squared_multiplied - self.squared_cross) / 2
        return min(max(inner / norms, -1.0), 1.0) if norms else 0.0

    def __add__(self, other: Interference) -> Interference:
        return Interference(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def module_interference(
    adapters: AdapterSet | Iterable[Adapter],
    *,
    weights: ArrayLike | Mapping[str, float] | None = None,
    n_jobs: int | None = None,
) -> dict[str, Interference]:
    r"""Split the direct merge of adapters into its multiplied part and its cross terms, module by module.

    The direct merge is that of :class:`~lorakit.AverageMerger`. Papers write sums without weights: their norms are
    :math:`T^2` times those for equal weights, and ``share`` and ``cosine`` are the same.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        Adapters that share one rank at each module. A module that one of them lacks is a zero update there.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        As in the mergers: divided by the sum of their absolute values; None weighs all adapters equally.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    dict of str to Interference
        By module. :func:`interference` is for the whole model.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters differ in rank at a module, or do not fit together.
    ValueError
        If ``weights`` do not fit the adapters, or a weight of an adapter is not finite.

    See Also
    --------
    msu_distances : How far apart the units are that a direct merge averages.

    Examples
    --------
    >>> from lorakit.metrics import module_interference
    >>> from lorakit.testing import make_adapters
    >>> found = module_interference(make_adapters(4, ranks=8, random_state=0))
    >>> {module: round(parts.share, 2) for module, parts in found.items()}
    {'layer.0': 0.73, 'layer.1': 0.76}
    """
    X = check_adapters(adapters)
    check_equal_ranks(X)
    task = partial(_split, weights=check_weights(weights, X.names, signed=True))
    return dict(zip(X.module_names, map_modules(task, X, n_jobs=n_jobs, verbose=0), strict=True))


def interference(
    adapters: AdapterSet | Iterable[Adapter],
    *,
    weights: ArrayLike | Mapping[str, float] | None = None,
    n_jobs: int | None = None,
) -> Interference:
    """Split the direct merge of adapters into its multiplied part and its cross terms, all modules as one vector.

    Parameters
    ----------
    adapters, weights, n_jobs
        As for :func:`module_interference`, which also says what is raised.

    Returns
    -------
    Interference
        Summed over the modules.

    Examples
    --------
    >>> from lorakit.metrics import interference
    >>> from lorakit.testing import make_adapters
    >>> (task,) = make_adapters(1, ranks=8, random_state=0)
    >>> copies = interference([task, task.renamed("copy")])
    >>> round(copies.share, 6), round(copies.cosine, 6)
    (0.5, 1.0)
    """
    return sum(module_interference(adapters, weights=weights, n_jobs=n_jobs).values(), start=Interference())


def _split(X: AdapterSet, module: str, *, weights: np.ndarray) -> Interference:
    updates = read_module(X, module, None)
    present = [(u.to(torch.float64), w) for u, w in zip(updates, weights.tolist(), strict=True) if u.rank]
    # In frames of all outputs and all inputs the three matrices are at most R x R, and their norms are the same
    small = compress([update for update, _ in present]).updates
    scaled = [(a * w, b * w) for (a, b), (_, w) in zip(small, present, strict=True)]
    direct = sum(b for _, b in scaled) @ sum(a for a, _ in scaled)
    multiplied = sum(b @ a for a, b in scaled)
    parts = (direct, multiplied, direct - multiplied)
    return Interference(*(part.square().sum().item() for part in parts))
