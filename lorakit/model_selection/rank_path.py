"""A merger at many ranks for little more than the cost of one: what ranks have in common is worked out once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from sklearn import get_config
from sklearn.base import clone

from .._ranks import Rank
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BaseMerger

Merger = TypeVar("Merger", bound=BaseMerger)


def rank_path(merger: Merger, X: AdapterSet | Iterable[Adapter], ks: Iterable[Rank]) -> dict[Rank, Merger]:
    """Fit a merger at several ranks, in one pass over the modules.

    Every module is read once. What does not depend on the rank is computed once as well: for the methods that end in a
    singular value decomposition, all but the cut; for :class:`~lorakit.LegoMerger`, the distances between the units;
    for :class:`~lorakit.CtMMerger`, the space in which it compresses. The results are those of separate fits up to
    round-off.

    Parameters
    ----------
    merger : BaseMerger
        Unfitted or fitted; it is not changed. Its own ``k`` does not matter.
    X : AdapterSet or list of Adapter
        The adapters to merge. They are not changed.
    ks : iterable of ranks
        Whatever the merger takes for ``k``, each once. Those that go by singular values (a share of the energy,
        'auto', a :class:`~lorakit.RankBudget`) have the adapters read a second time, once for all of them.

    Returns
    -------
    dict
        For each of ``ks``, in their order, a clone of the merger with that ``k``, fitted. All results are in memory at
        one time, unless :func:`~lorakit.results_on_disk` keeps them elsewhere.

    Raises
    ------
    TypeError
        If ``merger`` is not a merger: for a pipeline, pass the adapters that its other steps make, and its last step.
    ValueError
        If ``ks`` is empty or names a rank twice, or as by ``fit``: if a rank or another parameter is wrong.

    See Also
    --------
    MultiTaskScorer : Measures each result on tasks, to choose between them.

    Notes
    -----
    A ``random_state`` of None draws one seed for all ranks, and a separate fit would draw another.

    Examples
    --------
    >>> from lorakit import SVDMerger, rank_path
    >>> from lorakit.testing import make_adapters
    >>> path = rank_path(SVDMerger(), make_adapters(random_state=0), [2, 4, 8])
    >>> path[4].merged_
    Adapter('svd', modules=2, rank=4, dtype=float32)
    >>> {k: round(fitted.truncation_error_["layer.0"], 1) for k, fitted in path.items()}
    {2: 21.1, 4: 16.1, 8: 7.5}
    """
    if not isinstance(merger, BaseMerger):
        raise TypeError(
            f"merger must be a merger such as SVDMerger(), got {type(merger).__name__}; for a pipeline pass its last "
            "step, with X = pipeline[:-1].fit_transform(adapters)"
        )
    ks = list(ks)
    repeated = [k for i, k in enumerate(ks) if k in ks[:i]]
    if not ks or repeated:
        raise ValueError(f"ks must name at least one rank, each once; got {ks}")
    fitted = {k: clone(merger).set_params(k=k) for k in ks}
    if not get_config()["skip_parameter_validation"]:
        for candidate in fitted.values():
            candidate._validate_params()
    candidates = list(fitted.values())
    candidates[0]._fit_ranks(X, candidates)
    return fitted
