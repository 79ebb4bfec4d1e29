"""The clusters of LoRA-LEGO: which tasks their units belong to, and how averaging changes the norms of units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.utils.validation import check_is_fitted

from .._execution import one_thread, read_module
from .._validation import check_adapters, check_weights
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..cluster.units import cluster_shares, clustered_units


@dataclass(frozen=True, eq=False)
class ClusterComposition:
    """Number of units of each task in every cluster.

    Parameters
    ----------
    tasks : tuple of str
        Names of the tasks; names of the adapters if no tasks were given.
    counts : dict of str to ndarray of shape (n_clusters, n_tasks)
        By module; row c is cluster c, which is MSU c of the merged adapter.
    adjusted_mutual_information : dict of str to float
        By module: 1 if clusters and tasks partition the units in the same way, about 0 if a cluster is no more of one
        task than chance makes it, whatever the sizes of the clusters. NaN if no unit takes part.
    """

    tasks: tuple[str, ...]
    counts: dict[str, NDArray[np.int_]]
    adjusted_mutual_information: dict[str, float]

    @property
    def purity(self) -> dict[str, float]:
        """By module, the share of units of the most frequent task of their cluster; 1 for clusters of one unit."""
        return {module: float(n.max(axis=1).sum() / n.sum()) for module, n in self.counts.items() if n.sum()}

    @property
    def entropy(self) -> dict[str, float]:
        """By module, the entropy of the tasks in a cluster, mean over units, in units of the logarithm of n_tasks.

        0 if every cluster holds units of one task only, 1 if every cluster holds equally many of each task.
        """
        return {module: _entropy(n) for module, n in self.counts.items() if n.sum()}

    @property
    def mixed(self) -> dict[str, float]:
        """By module, the share of units in clusters that hold more than one task."""
        return {
            module: float(n[(n > 0).sum(axis=1) > 1].sum() / n.sum()) for module, n in self.counts.items() if n.sum()
        }


def _entropy(counts: NDArray[np.int_]) -> float:
    if counts.shape[1] == 1:
        return 0.0
    sizes = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sizes, 1)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(-(sizes * shares * logs).sum() / sizes.sum() / np.log(counts.shape[1])) + 0.0  # no -0.0


def cluster_composition(
    merger: Any, adapters: AdapterSet | Iterable[Adapter], *, tasks: Mapping[str, str] | None = None
) -> ClusterComposition:
    """Count the units of each adapter, or task, in the clusters of a fitted :class:`~lorakit.LegoMerger`.

    Parameters
    ----------
    merger : LegoMerger
        Fitted on ``adapters``.
    adapters : AdapterSet or list of Adapter
        What ``merger`` was fitted on. Their names are used, and their ranks are compared with those that were merged;
        no weight is read.
    tasks : mapping of adapter name to task, default=None
        The task of each adapter, for several adapters of one task. An adapter that is not named is a task of its own.
        None makes each adapter a task.

    Returns
    -------
    ClusterComposition

    Raises
    ------
    NotFittedError
        If ``merger`` is not fitted.
    TypeError
        If ``merger`` does not cluster units.
    ValueError
        If ``merger`` was fitted on other adapters.

    Examples
    --------
    >>> from lorakit import LegoMerger
    >>> from lorakit.metrics import cluster_composition
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), n_modules=1, random_state=0)
    >>> merger = LegoMerger(k=4, random_state=0).fit(adapters)
    >>> found = cluster_composition(merger, adapters)
    >>> found.counts["layer.0"].sum(axis=0)
    array([4, 8])
    >>> 0.5 < found.purity["layer.0"] <= 1
    True
    """
    X = _checked(merger, adapters)
    of_task = [(tasks or {}).get(name, name) for name in X.names]
    names = tuple(dict.fromkeys(of_task))
    numbers = np.array([names.index(task) for task in of_task])
    counts, information = {}, {}
    for module, labels in merger.labels_.items():
        kept = labels >= 0
        clusters, of = labels[kept], numbers[merger.owners_[module][kept]]
        found = np.zeros((merger.merged_.infos[module].rank, len(names)), dtype=int)
        np.add.at(found, (clusters, of), 1)
        counts[module] = found
        information[module] = float(adjusted_mutual_info_score(of, clusters)) if kept.any() else float("nan")
    return ClusterComposition(names, counts, information)


@dataclass(frozen=True, eq=False)
class NormDecay:
    """Norms of the centroids of clusters and of their members, by module.

    Parameters
    ----------
    members : dict of str to ndarray of shape (n_clusters,)
        Mean norm of the units of each cluster.
    centroids : dict of str to ndarray of shape (n_clusters,)
        Norm of the mean of these units, before any reweighting; never above ``members``.
    sizes : dict of str to ndarray of shape (n_clusters,)
        Number of units in each cluster.
    """

    members: dict[str, NDArray[np.float64]]
    centroids: dict[str, NDArray[np.float64]]
    sizes: dict[str, NDArray[np.int_]]

    @property
    def ratio(self) -> dict[str, NDArray[np.float64]]:
        """Centroid's norm over the mean norm of its members, by module; 1 if there is one member, or all are zero."""
        return {
            module: np.divide(self.centroids[module], members, out=np.ones_like(members), where=members > 0)
            for module, members in self.members.items()
        }


def norm_decay(
    merger: Any, adapters: AdapterSet | Iterable[Adapter], *, norm: Literal["l2", "inf"] = "l2"
) -> NormDecay:
    """Compare the norm of every centroid with the mean norm of its members: how much averaging shortens units.

    Parameter reweighting (``norm`` of :class:`~lorakit.LegoMerger`) gives centroids the mean norm of their members
    back. The units are those that the merger clustered: aligned by its ``align``, with the signs that it gave them if
    its metric ignores signs, and averaged with its weights.

    Parameters
    ----------
    merger : LegoMerger
        Fitted on ``adapters``, with any parameters.
    adapters : AdapterSet or list of Adapter
        The adapters that ``merger`` was fitted on.
    norm : {'l2', 'inf'}, default='l2'
        The norm of a unit: 'l2' is the Euclidean norm, 'inf' the largest absolute value.

    Returns
    -------
    NormDecay

    Raises
    ------
    NotFittedError
        If ``merger`` is not fitted.
    TypeError
        If ``merger`` does not cluster units.
    ValueError
        If ``merger`` was fitted on other adapters, or ``norm`` is not one of these.

    Examples
    --------
    >>> from lorakit import LegoMerger
    >>> from lorakit.metrics import norm_decay
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 4), n_modules=1, random_state=0)
    >>> merger = LegoMerger(k=3, random_state=0).fit(adapters)
    >>> found = norm_decay(merger, adapters)
    >>> found.sizes["layer.0"], found.ratio["layer.0"].round(2)
    (array([4, 3, 1]), array([0.47, 0.68, 1.  ]))
    """
    if norm not in ("l2", "inf"):
        raise ValueError(f"norm must be 'l2' or 'inf', got {norm!r}")
    X = _checked(merger, adapters)
    weights = check_weights(merger.weights, X.names, signed=False)
    members, centroids, sizes = {}, {}, {}
    order = 2 if norm == "l2" else np.inf
    with one_thread():
        for module, labels in merger.labels_.items():
            updates = read_module(X.only(module), module, None)
            found = clustered_units(updates, weights, labels, align=merger.align, metric=merger.metric)
            shares = cluster_shares(found.labels, found.weights)
            members[module] = shares @ np.linalg.norm(found.units, ord=order, axis=1)
            centroids[module] = np.linalg.norm(shares @ found.units, ord=order, axis=1)
            sizes[module] = np.bincount(found.labels)
    return NormDecay(members, centroids, sizes)


def _checked(merger: Any, adapters: AdapterSet | Iterable[Adapter]) -> AdapterSet:
    """Return the adapters as a set, if they are those that the merger clustered."""
    check_is_fitted(merger)
    if not hasattr(merger, "labels_") or not hasattr(merger, "owners_"):
        raise TypeError(
            f"{type(merger).__name__} has no clusters of units; expected a fitted LegoMerger. For a pipeline, pass "
            "its last step, and the adapters that its other steps made: pipeline[:-1].transform(adapters)"
        )
    X = check_adapters(adapters)
    for module, owners in merger.owners_.items():
        infos = X.infos(module)
        ranks = [0 if info is None else info.rank for info in infos]
        if not np.array_equal(owners, np.repeat(np.arange(len(X)), ranks)):
            seen = np.bincount(owners, minlength=merger.n_adapters_in_).tolist()
            raise ValueError(
                f"the merger was fitted on other adapters: module {module!r} had ranks {seen}, and has {ranks} in "
                f"{list(X.names)}; pass the adapters that it was fitted on, in their order"
            )
    return X
