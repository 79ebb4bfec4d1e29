"""Prune by clustering an adapter's own minimal semantic units."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClusterMixin

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BasePruner
from ..cluster.units import (
    BACKENDS,
    Align,
    BackendName,
    Init,
    Metric,
    Norm,
    chosen_backend,
    gauges_kept,
    reassemble,
)
from ..factors import LoraFactors


class LegoPruner(BasePruner):
    r"""Cluster each adapter's minimal semantic units (MSUs) into k, as :class:`LegoMerger` does across adapters [1]_.

    :class:`SVDPruner` is never further from the original update (Eckart-Young); compare both on the task.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank to keep. None: half of each module's rank. A module at or below it stays as it is. A share of the energy,
        'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    norm : {'inf', 'l2'} or None, default='inf'
        Parameter reweighting: each centroid is scaled to the mean norm of its members, in this norm. The paper's
        formula has the Euclidean norm ('l2'), its implementation the maximum norm ('inf'). None turns it off.
    output_scale : 'sqrt', float or None, default='sqrt'
        Output reweighting: the factor on the update, :math:`\sqrt{r / k}` for 'sqrt', r the module's rank. None turns
        it off.
    align : {'balance', 'svd'} or None, default=None
        What is done to each adapter before pooling. None is the paper. 'balance' rescales every unit to equal norms
        of its two parts. 'svd' replaces the factors by those of the update's own SVD, with which the pruning depends on
        the update alone.
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
        If it has ``n_clusters``, ``k`` sets it; if not (``HDBSCAN()``), the rank that is left is the number of clusters
        that it finds.
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
    random_state : int, RandomState or None, default=None
        Seeds the clustering. Each module has a stream of its own, derived from it, so that neither ``n_jobs`` nor the
        joblib engine changes the result. Pass an int for the same result on every call.
    n_jobs : int, default=None
        Modules pruned at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    backend : {'auto', 'numpy', 'sklearn', 'torch', 'cuml'}, default='auto'
        Library that runs k-means; all of them start from the same seeds. 'auto' is cuML if ``device`` is an NVIDIA GPU
        and cuML can be imported, torch on such a GPU without cuML, and NumPy otherwise. 'numpy' and 'torch' run all
        starts at once, torch on any device. See :doc:`/user_guide/gpu`.
    device : str, default=None
        Torch device of the algebra and of ``backend``; None is the CPU. NumPy and scikit-learn stay on the CPU.
    verbose : int, default=0
        From 1, a progress bar over the modules; above 1, joblib's messages too.

    Attributes
    ----------
    module_names_in_ : tuple of str
        Modules seen by :meth:`fit`.
    n_adapters_in_ : int
        Number of adapters seen by :meth:`fit`.
    backend_ : {'numpy', 'sklearn', 'torch', 'cuml'} or None
        Library that runs k-means; None with a ``clusterer``.

    References
    ----------
    .. [1] Zhao et al., "Merging LoRAs like Playing LEGO", arXiv 2409.16167, section 4.1, "Performance on LoRA
       Pruning".

    Examples
    --------
    >>> from lorakit import LegoPruner
    >>> from lorakit.testing import make_adapters
    >>> LegoPruner(k=3, random_state=0).fit_transform(make_adapters(ranks=(4, 8), random_state=0))
    AdapterSet(['task0' r=3, 'task1' r=3], modules=2, dtype=float32)
    """

    method = "lego"
    paper = "arXiv 2409.16167"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BasePruner._parameter_constraints,
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
        """Check the adapters and the parameters, and choose the backend; nothing is learned.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If ``backend`` is 'cuml' and cuML cannot be imported.
        ValueError
            If a parameter is wrong, ``device`` cannot be used, ``backend`` does not compute on it, or ``init='ward'``
            is given with a ``clusterer``.
        """
        super().fit(X, y)
        self.backend_ = self._used_backend()
        return self

    def transform(self, X: AdapterSet | Iterable[Adapter]) -> AdapterSet:
        """Prune every adapter.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters. They are not changed themselves.

        Returns
        -------
        AdapterSet
            As many adapters as X, in the same order, under the same names.
        """
        self._validate_params()
        self._used_backend()
        return super().transform(X)

    def _used_backend(self) -> str | None:
        """Return the library that runs k-means, or refuse it before a module is read; None with a clusterer."""
        backend = chosen_backend(self.backend, self.device, clusterer=self.clusterer, init=self.init)
        return backend.name if backend else None

    def _prune_module(self, update: LoraFactors, k: int, rng: np.random.RandomState) -> LoraFactors:
        (result,) = reassemble(
            [update],
            np.ones(1),
            [k],
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
        )
        return result.factors
