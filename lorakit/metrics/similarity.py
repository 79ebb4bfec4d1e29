"""How alike the updates of adapters are: cosines, and the subspaces that they write to and read from."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .._execution import map_modules, one_thread, read_module
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..linalg import compress, gram_matrix

Side = Literal["out", "in"]


def cosine_matrix(adapters: AdapterSet | Iterable[Adapter], *, n_jobs: int | None = None) -> NDArray[np.float64]:
    """Cosines between the updates of every two adapters, all modules as one vector, in one reading of each.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        Adapters of one base model; a module that one of them lacks is a zero update there.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    ndarray of shape (n_adapters, n_adapters)
        Symmetric, in [-1, 1]; 0 where an update is zero.

    See Also
    --------
    cosine_similarity : Of two adapters.
    subspace_overlap : Whether updates act on the same directions, whatever they do there.

    Examples
    --------
    >>> from lorakit.metrics import cosine_matrix
    >>> from lorakit.testing import make_adapters
    >>> cosine_matrix(make_adapters(ranks=(4, 8), random_state=0)).round(2)
    array([[ 1.  , -0.02],
           [-0.02,  1.  ]])
    """
    X = AdapterSet(adapters)
    gram = np.zeros((len(X), len(X)))
    for products in map_modules(_products, X, n_jobs=n_jobs, verbose=0):
        gram += (products + products.T) / 2  # symmetric but for round-off
    norms = np.sqrt(gram.diagonal())
    scale = np.outer(norms, norms)
    cosines: NDArray[np.float64] = np.clip(np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0), -1, 1)
    return cosines


def _products(X: AdapterSet, module: str) -> NDArray[np.float64]:
    products: NDArray[np.float64] = gram_matrix(X.factors(module)).numpy()
    return products


def subspace_overlap(
    adapters: AdapterSet | Iterable[Adapter], *, side: Side = "out", n_jobs: int | None = None
) -> NDArray[np.float64]:
    r"""Measure how far the subspaces of every two adapters' updates overlap, as a mean over modules.

    At one module the overlap of :math:`U` and :math:`V`, orthonormal bases of the two subspaces, is
    :math:`\|U^T V\|_F^2 / \min(r_U, r_V)`, the mean squared cosine of their principal angles: 1 where one subspace
    contains the other, 0 where they are at right angles, and about :math:`\max(r_U, r_V) / d` for random ones in
    :math:`d` dimensions. The signs and sizes of the updates do not matter.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        Of any ranks.
    side : {'out', 'in'}, default='out'
        The subspace of outputs that an update writes to (the column space of ``B @ A``), or of inputs that it reads
        (the row space).
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    ndarray of shape (n_adapters, n_adapters)
        Symmetric, in [0, 1]. The mean is over the modules that both have; NaN if there are none. A zero update has
        no direction: its overlap is 0, with itself too.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters do not fit together.
    ValueError
        If ``side`` is not one of these, or a weight is not finite.

    See Also
    --------
    principal_angles : The angles themselves, of two adapters.

    Examples
    --------
    >>> from lorakit.metrics import subspace_overlap
    >>> from lorakit.testing import make_adapters
    >>> subspace_overlap(make_adapters(ranks=(4, 8), random_state=0), side="in").round(2)
    array([[1.  , 0.36],
           [0.36, 1.  ]])
    """
    _check_side(side)
    X = check_adapters(adapters)
    total = np.zeros((len(X), len(X)))
    shared = np.zeros((len(X), len(X)))
    found = map_modules(partial(_overlaps, side=side), X, n_jobs=n_jobs, verbose=0)
    for module, overlaps in zip(X.module_names, found, strict=True):
        have = np.array([module in adapter for adapter in X])
        total += overlaps
        shared += np.outer(have, have)
    return np.divide(total, shared, out=np.full_like(total, np.nan), where=shared > 0)


def _overlaps(X: AdapterSet, module: str, *, side: Side) -> NDArray[np.float64]:
    bases = _bases(X, module, side)
    overlaps = np.zeros((len(bases), len(bases)))
    for i, u in enumerate(bases):
        for j, v in enumerate(bases[: i + 1]):
            if min(u.shape[1], v.shape[1]):
                overlap = np.square(u.T @ v).sum() / min(u.shape[1], v.shape[1])
                overlaps[i, j] = overlaps[j, i] = min(overlap, 1.0)
    return overlaps


def principal_angles(
    x: Adapter, y: Adapter, *, side: Side = "out", n_jobs: int | None = None
) -> dict[str, NDArray[np.float64]]:
    """Principal angles between the subspaces of two adapters' updates, module by module.

    Parameters
    ----------
    x, y : Adapter
        Of any ranks.
    side : {'out', 'in'}, default='out'
        As in :func:`subspace_overlap`.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    dict of str to ndarray of shape (q,)
        For each module that both have: angles in radians, ascending, in [0, pi / 2]. ``q`` is the smaller of the two
        updates' ranks, where a rank counts only directions above round-off.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters do not fit together.
    ValueError
        If ``side`` is not one of these, or a weight is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit.metrics import principal_angles
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(ranks=(2, 3), n_modules=1, random_state=0)
    >>> np.degrees(principal_angles(x, y)["layer.0"]).round()
    array([69., 78.])
    """
    _check_side(side)
    X = check_adapters([x, y])
    found = map_modules(partial(_angles, side=side), X, n_jobs=n_jobs, verbose=0)
    angles = zip(X.module_names, found, strict=True)
    return {module: values for module, values in angles if module in x and module in y}


def _angles(X: AdapterSet, module: str, *, side: Side) -> NDArray[np.float64]:
    from scipy.linalg import subspace_angles  # here, as cosines need none of SciPy

    u, v = _bases(X, module, side)
    # by sines where they are small: the cosine of a small angle is 1 to all digits
    with one_thread():  # of the library, too, that has just been loaded
        return np.sort(subspace_angles(u, v)) if min(u.shape[1], v.shape[1]) else np.empty(0)


def _bases(X: AdapterSet, module: str, side: Side) -> list[NDArray[np.float64]]:
    """Orthonormal bases of one side of every update, in one frame of at most R dimensions."""
    updates = read_module(X, module, None)
    bases = []
    for (a, b), update in zip(compress([u.to(torch.float64) for u in updates]).updates, updates, strict=True):
        u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)  # of at most R x R numbers
        # what lies below the round-off of the factors is no direction of theirs
        least = max(b.shape[0], a.shape[1], 1) * torch.finfo(update.dtype).eps
        rank = min(int((s > least * s[:1]).sum()), update.rank)
        bases.append((u if side == "out" else vh.mT)[:, :rank].numpy())
    return bases


def _check_side(side: str) -> None:
    if side not in ("out", "in"):
        raise ValueError(f"side must be 'out' (what updates write to) or 'in' (what they read), got {side!r}")
