"""LoRA-LEGO: cluster the minimal semantic units of all adapters, rebuild one adapter from the centroids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClusterMixin
from sklearn.utils.validation import check_is_fitted

from .._execution import map_modules, module_rng, read_module
from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import OVERLAP, BaseMerger, Learned, Merge
from ..cluster.units import (
    BACKENDS,
    Align,
    Backend,
    BackendName,
    Clusters,
    Init,
    Metric,
    Norm,
    UnitProblems,
    chosen_backend,
    gauges_kept,
    problems_of_module,
    reassemble,
    solve_units,
)
from ..factors import LoraFactors


class LegoMerger(BaseMerger):
    r"""Rank-wise clustering of minimal semantic units (MSUs) [1]_.

    Row i of A joined with column i of B is a unit :math:`s = [a, b]` that works on its own. The units of all adapters
    are pooled and clustered into ``k`` clusters; the centroids are the units of the merged adapter, so any ranks in
    give any rank out. Two reweightings keep its scale: each centroid gets back the mean norm of its members
    (averaging shrinks), and the update is multiplied by :math:`\sqrt{\bar r / k}` (a higher rank expands the variance).

    If ``k`` is the sum R of the ranks, the result is :math:`\sqrt{\bar r / R} \sum_i W_i`. Merging copies of one
    adapter returns that adapter. The order of the units and of the adapters does not change the result, beyond
    round-off; with ``align='svd'`` it depends on the updates alone.

    k-means has many optima: another ``random_state`` gives another merge. On real adapters the merges are far apart and
    their accuracies are not (:doc:`/results/lego_seeds`). ``init='ward'`` draws nothing at random.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result and number of clusters. None: twice the mean rank (of the adapters that have the module), as
        the paper chose. At most the number of distinct MSUs. A share of the energy, 'auto' or a
        :class:`~lorakit.RankBudget` gives each module a rank of its own.
    norm : {'inf', 'l2'} or None, default='inf'
        Parameter reweighting: each centroid is scaled to the mean norm of its members, in this norm. The paper's
        formula has the Euclidean norm ('l2'), its implementation the maximum norm ('inf'). None turns it off.
    output_scale : 'sqrt', float or None, default='sqrt'
        Output reweighting: the factor on the update, :math:`\sqrt{\bar r / k}` for 'sqrt'. None turns it off.
    align : {'balance', 'svd'} or None, default=None
        What is done to each adapter before pooling. None is the paper. 'balance' rescales every unit to equal norms
        of its two parts. 'svd' replaces the factors by those of the update's own SVD, with which the merge depends on
        the updates alone.
    metric : {'euclidean', 'cosine', 'sign_invariant'}, default='euclidean'
        Distance between units. 'euclidean' is the paper. 'cosine' clusters units by direction alone. 'sign_invariant'
        treats a unit :math:`[a, b]` and its negative, which stand for the same update, as equal: it clusters the outer
        products :math:`s s^T / \|s\|`, and gives the units of a cluster matching signs before they are averaged. With
        every metric the centroids are means of the units themselves.
    clusterer : scikit-learn clusterer, default=None
        What clusters the units instead of k-means, such as ``AgglomerativeClustering()``; cloned for each module. It
        gets points whose Euclidean distances are those of ``metric``, one point for all equal units. If it takes
        ``sample_weight``, it gets weights in which a unit of mean weight counts as one. If its ``random_state`` is
        None, it is set from this estimator's.
        If it has ``n_clusters``, ``k`` sets it; without ``k``, or without that parameter (``HDBSCAN()``), the rank
        of the result is the number of clusters that it finds.
        A unit labelled as noise (-1) becomes a cluster of its own.
    init : {'k-means++', 'ward'}, default='k-means++'
        Where k-means starts. 'k-means++' draws ``n_init`` starts at random and keeps the best, which is the paper.
        'ward' starts once, from Ward's hierarchical clustering of the units, cut at ``k`` clusters. Nothing is drawn at
        random then: ``random_state`` and ``n_init`` have no effect. It is refused with a ``clusterer``, which takes the
        place of k-means.
    n_init : int, default=10
        Number of starts of k-means. The one of lowest inertia is kept.
    max_iter : int, default=300
        Largest number of iterations of one start.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
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
    random_state : int, RandomState or None, default=None
        Seeds the clustering. Each module has a stream of its own, derived from it, so that neither ``n_jobs`` nor the
        joblib engine changes the result. Pass an int for the same result on every call.
    n_jobs : int, default=None
        Modules merged at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    backend : {'auto', 'numpy', 'sklearn', 'torch', 'cuml'}, default='auto'
        Library that runs k-means; all of them start from the same seeds. 'auto' is cuML if ``device`` is an NVIDIA GPU
        and cuML can be imported, torch on such a GPU without cuML, and NumPy otherwise. 'numpy' runs all starts of a
        module at once; 'torch' those of all modules of one shape, on any device, and reads the adapters twice for
        that. See :doc:`/user_guide/gpu`.
    device : str, default=None
        Torch device of the algebra and of ``backend``; None is the CPU. NumPy and scikit-learn stay on the CPU.
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

    labels_ : dict of str to ndarray of shape (R,)
        Cluster of each MSU, by module; MSUs in the order of :meth:`AdapterSet.msus`, -1 for adapters of weight 0.
    owners_ : dict of str to ndarray of shape (R,)
        Position of the adapter that each MSU comes from, by module; see :meth:`composition`.
    inertia_ : dict of str to float
        Weighted sum of squared distances of MSUs (as ``align`` and ``metric`` turned them) to the means of their
        clusters, by module, whatever the metric and the clusterer.
    n_iter_ : dict of str to int
        Iterations of the best start, by module; only of clusterers that count them.
    backend_ : {'numpy', 'sklearn', 'torch', 'cuml'} or None
        Library that ran k-means; None with a ``clusterer``.

    See Also
    --------
    LegoPruner : The same on one adapter.
    SVDMerger : Truncates the mean update instead.
    MSUKMeans : The clustering.

    References
    ----------
    .. [1] Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through
       Rank-Wise Clustering", arXiv 2409.16167.

    Examples
    --------
    >>> from lorakit import LegoMerger
    >>> from lorakit.testing import make_adapters
    >>> merger = LegoMerger(k=6, random_state=0).fit(make_adapters(ranks=(4, 8), random_state=0))
    >>> merger.merged_
    Adapter('lego', modules=2, rank=6, dtype=float32)
    >>> merger.labels_["layer.0"].shape
    (12,)
    >>> merger.composition("layer.0").sum(axis=0)
    array([4, 8])
    """

    method = "lego"
    paper = "arXiv 2409.16167"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "norm": [StrOptions({"inf", "l2"}), None],
        "output_scale": [StrOptions({"sqrt"}), Interval(Real, None, None, closed="neither"), None],
        "align": [StrOptions({"balance", "svd"}), None],
        "metric": [StrOptions({"euclidean", "cosine", "sign_invariant"})],
        "clusterer": [ClusterMixin, None],
        "init": [StrOptions({"k-means++", "ward"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "backend": [StrOptions(set(BACKENDS))],
    }
    # On the copies that run the modules, where torch has clustered them all before: one a rank
    _found: dict[str, list[Clusters]] | None = None  # by module
    _module_found: list[Clusters] | None = None

    def __init__(
        self,
        k: Rank = None,
        *,
        norm: Norm | None = "inf",
        output_scale: Any = "sqrt",
        align: Align | None = None,
        metric: Metric = "euclidean",
        clusterer: ClusterMixin | None = None,
        init: Init = "k-means++",
        n_init: int = 10,
        max_iter: int = 300,
        weights: Any = None,
        strengths: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        random_state: Any = None,
        n_jobs: int | None = None,
        backend: BackendName = "auto",
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.norm = norm
        self.output_scale = output_scale
        self.align = align
        self.metric = metric
        self.clusterer = clusterer
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.backend = backend
        self.device = device
        self.verbose = verbose

    @property
    def invariances(self) -> frozenset[str]:
        """Changes of the factors that do not change the result.

        The order of the MSUs; with ``align='balance'`` also rescaling, with ``metric='sign_invariant'`` signs, and with
        ``align='svd'`` any change that keeps the update.
        """
        return gauges_kept(self.align, self.metric)

    def fit(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> Self:
        """Merge the adapters.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters to merge. They are not changed.
        y : None
            Ignored.

        Returns
        -------
        self
            With the result in ``merged_``.

        Raises
        ------
        ImportError
            If ``backend`` is 'cuml' and cuML cannot be imported.
        ValueError
            If a parameter is wrong, ``device`` cannot be used, ``backend`` does not compute on it, or ``init='ward'``
            is given with a ``clusterer``.
        """
        return super().fit(X, y)

    def _fit_ranks(self, X: AdapterSet | Iterable[Adapter], mergers: Sequence[Self]) -> None:
        super()._fit_ranks(X, mergers)
        for merger in mergers:
            merger.backend_ = backend.name if (backend := self._chosen_backend()) else None

    def _chosen_backend(self) -> Backend | None:
        return chosen_backend(self.backend, self.device, clusterer=self.clusterer, init=self.init)

    def _store(self, X: AdapterSet, positions: np.ndarray, merge: Merge) -> None:
        """Count the units of all adapters: those of adapters of weight 0 are in no cluster."""
        learned = merge.learned
        for module in X.module_names:
            ranks = [info.rank if info else 0 for info in X.infos(module)]
            owners = np.repeat(np.arange(len(X)), ranks)
            labels = np.full(len(owners), -1)
            labels[np.isin(owners, positions)] = learned["labels"].get(module, -1)
            learned["labels"][module], learned["owners"][module] = labels, owners
            for key in learned.keys() & {"inertia", "n_iter"}:
                learned[key].setdefault(module, 0)
        super()._store(X, positions, merge)

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        """Where torch is to cluster, have it cluster all modules; a backend that cannot run is refused here."""
        backend = self._chosen_backend()
        if backend is None or backend.name != "torch":
            return self
        task = partial(self._problems_of_module, weights=weights, ranks=ranks, seed=seed)
        problems = map_modules(task, X, n_jobs=self.n_jobs, verbose=self.verbose)
        found = solve_units(problems, backend, max_iter=self.max_iter)
        worker = copy(self)
        worker._found = dict(zip(X.module_names, found, strict=True))
        return worker

    def _problems_of_module(
        self, X: AdapterSet, module: str, *, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> UnitProblems:
        return problems_of_module(
            read_module(X, module, self.device),
            weights,
            ranks[module],
            align=self.align,
            metric=self.metric,
            init=self.init,
            n_init=self.n_init,
            rng=module_rng(seed, module),
        )

    def _for_module(self, module: str) -> Self:
        if self._found is None:
            return self
        worker = copy(self)
        worker._found, worker._module_found = None, self._found[module]
        return worker

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        results = reassemble(
            updates,
            weights,
            ks,
            norm=self.norm,
            output_scale=self.output_scale,
            align=self.align,
            metric=self.metric,
            clusterer=self.clusterer,
            init=self.init,
            n_init=self.n_init,
            max_iter=self.max_iter,
            rng=rng,
            backend=self.backend,
            device=self.device,
            found=self._module_found,
        )
        merged = []
        for result in results:
            learned = {"labels": result.labels, "owners": result.owners, "inertia": result.inertia}
            if result.n_iter is not None:
                learned["n_iter"] = result.n_iter
            if result.mixture is not None:
                learned[OVERLAP] = result.mixture.overlap
            merged.append((result.factors, learned))
        return merged

    def composition(self, module: str) -> np.ndarray:
        """Count the MSUs that each adapter gave to each cluster.

        Parameters
        ----------
        module : str
            One of ``module_names_in_``.

        Returns
        -------
        ndarray of shape (k, n_adapters)
            Row c is what MSU c of ``merged_[module]`` was averaged from; rows sum to the clusters' sizes, columns to
            the adapters' ranks (to 0 for an adapter of weight 0).
        """
        check_is_fitted(self)
        labels = self.labels_[module]
        counts = np.zeros((self.merged_.infos[module].rank, self.n_adapters_in_), dtype=int)
        np.add.at(counts, (labels[labels >= 0], self.owners_[module][labels >= 0]), 1)
        return counts
