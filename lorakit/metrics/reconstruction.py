"""Distances between the updates of two adapters, from R x R algebra."""

from __future__ import annotations

from collections.abc import Iterable

from .._execution import map_modules
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..comparison import Comparison, compared_to_each, overlap_at_module, summed


def compare_updates(x: Adapter, y: Adapter) -> dict[str, Comparison]:
    """Compare two adapters module by module, without forming any product.

    Parameters
    ----------
    x, y : Adapter
        Adapters of one base model. A module that one of them lacks is a zero update there.

    Returns
    -------
    dict of str to Comparison
        By module; :func:`compare_adapters` is for the whole model.

    Examples
    --------
    >>> from lorakit.metrics import compare_updates
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(ranks=(4, 8), random_state=0)
    >>> round(compare_updates(x, x)["layer.0"].cosine, 6)
    1.0
    """
    X = AdapterSet([x, y])
    found = map_modules(overlap_at_module, X, n_jobs=None, verbose=0)
    return {module: summed([overlap], 1)[0] for module, overlap in zip(X.module_names, found, strict=True)}


def compare_to_each(x: Adapter, others: Iterable[Adapter], *, n_jobs: int | None = None) -> list[Comparison]:
    """Compare one adapter's update with those of several others, all modules as one vector, reading each once.

    Parameters
    ----------
    x : Adapter
        For instance a merged adapter.
    others : iterable of Adapter
        For instance those that it was merged from.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    list of Comparison
        One for each of ``others``, where ``x`` is X and the other adapter is Y.

    Examples
    --------
    >>> from lorakit import SVDMerger
    >>> from lorakit.metrics import compare_to_each
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), random_state=0)
    >>> merged = SVDMerger(k=12).fit(adapters).merged_
    >>> [round(comparison.cosine, 2) for comparison in compare_to_each(merged, adapters)]
    [0.57, 0.81]
    """
    return compared_to_each(x, list(others), n_jobs=n_jobs)


def compare_adapters(x: Adapter, y: Adapter) -> Comparison:
    """Compare two adapters' updates, all modules as one vector, reading both once.

    Parameters
    ----------
    x, y : Adapter
        Adapters of one base model; a module that one of them lacks is a zero update there.

    Returns
    -------
    Comparison
        With their cosine, relative error and ratio of norms.

    Examples
    --------
    >>> from lorakit.metrics import compare_adapters
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(ranks=(4, 8), random_state=0)
    >>> compare_adapters(x, x).relative_error < 1e-6
    True
    """
    return compare_to_each(x, [y])[0]


def cosine_similarity(x: Adapter, y: Adapter) -> float:
    """Cosine between two adapters' updates, all modules as one vector.

    Parameters
    ----------
    x, y : Adapter
        Adapters of one base model; a module that one of them lacks is a zero update there.

    Returns
    -------
    float
        In [-1, 1]; 0 if either update is zero.

    Examples
    --------
    >>> from lorakit.metrics import cosine_similarity
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(ranks=(4, 8), random_state=0)
    >>> abs(cosine_similarity(x, y)) < 0.5
    True
    """
    return compare_adapters(x, y).cosine


def relative_error(x: Adapter, reference: Adapter) -> float:
    """Frobenius distance of two adapters' updates over the norm of the reference, all modules as one vector.

    Parameters
    ----------
    x : Adapter
        A merged or pruned adapter.
    reference : Adapter
        What it should equal.

    Returns
    -------
    float
        ``||X - Y|| / ||Y||``. Equal updates give about 1e-8 rather than 0, whatever their factors: differences of
        entries of Gram matrices are taken in float64.

    Examples
    --------
    >>> from lorakit import SVDPruner
    >>> from lorakit.metrics import relative_error
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(8,), random_state=0)
    >>> (pruned,) = SVDPruner(k=4).fit_transform(adapters)
    >>> 0 < relative_error(pruned, adapters[0]) < 1
    True
    """
    return compare_adapters(x, reference).relative_error
