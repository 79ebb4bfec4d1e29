"""Prune by clustering an adapter's own minimal semantic units."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClusterMixin

from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BasePruner
from ..cluster.units import BACKENDS, Align, Backend, Engine, Metric, Norm, choose_engine, gauges_kept, reassemble
from ..factors import LoraFactors


class LegoPruner(BasePruner):
    r"""Cluster each adapter's minimal semantic units (MSUs) into k, as :class:`LegoMerger` does across adapters [1]_.

    :class:`SVDPruner` is never further from the original update (Eckart-Young); compare both on the task.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget or None, default=None
        Rank to keep. None: half of each module's rank. A module at or below it stays as it is. A share of the energy,
        'auto' or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    norm : {'inf', 'l2'} or None, default='inf'
        Parameter reweighting: the norm in which a centroid is given the mean of its members'. The paper's formula
        has the Euclidean norm, its implementation the maximum norm. None turns it off.
    output_scale : 'sqrt', float or None, default='sqrt'
        Output reweighting: the factor on the update, :math:`\sqrt{r / k}` for 'sqrt', r the module's rank. None turns
        it off.
    align : {'balance', 'svd'} or None, default=None
        What is done to each adapter before pooling. None is the paper. 'balance' rescales every unit to equal norms
        of its halves. 'svd' replaces the factors by those of the update's own SVD, with which the pruning depends on
        the update alone.
    metric : {'euclidean', 'cosine', 'sign_invariant'}, default='euclidean'
        When two units are alike. 'euclidean' is the paper. 'cosine' clusters them by direction alone. 'sign_invariant'
        takes a unit :math:`[a, b]` and its negative, which stand for the same update, for one: it clusters the outer
        products :math:`s s^T / \|s\|`, and turns the units of a cluster the same way before they are averaged. In
        each case the centroids are means of the units themselves.
    clusterer : scikit-learn clusterer, default=None
        What clusters the units instead of k-means, such as ``AgglomerativeClustering()``; cloned for each module. It
        gets points whose Euclidean distances are those of ``metric``, once for equal units, and, if it takes them,
        weights in which a unit of mean weight counts as one. An open ``random_state`` is set from this estimator's.
        If it has ``n_clusters``, ``k`` sets it; if not (``HDBSCAN()``), the rank that is left is the number of clusters
        that it finds.
        A unit labelled as noise (-1) becomes a cluster of its own.
    n_init : int, default=10
        Starts of k-means; the best one counts.
    max_iter : int, default=300
        Most iterations of one start.
    random_state : int, RandomState or None, default=None
        Seeds the clustering. Each module draws its own stream from it, so that neither ``n_jobs`` nor the engine
        changes the result. Pass an int for the same result on every call.
    n_jobs : int, default=None
        Modules pruned at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    backend : {'auto', 'numpy', 'sklearn', 'torch', 'cuml'}, default='auto'
        Library that runs k-means; all of them start from the same seeds. 'auto' is cuML if ``device`` is an NVIDIA GPU
        and cuML can be imported, torch on such a GPU without cuML, and NumPy otherwise. 'numpy' and 'torch' run all
        starts at once, torch on any device. See :doc:`/user_guide/gpu`.
    device : str, default=None
        Torch device of the algebra and of ``backend``; None is the CPU. NumPy and scikit-learn stay on the CPU.
    verbose : int, default=0
        Verbosity of joblib.

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
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "backend": [StrOptions(set(BACKENDS))],
    }
    _engine: Engine | None = None  # on the copy that runs the modules

    def __init__(
        self,
        k: Rank = None,
        *,
        norm: Norm | None = "inf",
        output_scale: Any = "sqrt",
        align: Align | None = None,
        metric: Metric = "euclidean",
        clusterer: ClusterMixin | None = None,
        n_init: int = 10,
        max_iter: int = 300,
        random_state: Any = None,
        n_jobs: int | None = None,
        backend: Backend = "auto",
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.norm = norm
        self.output_scale = output_scale
        self.align = align
        self.metric = metric
        self.clusterer = clusterer
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.backend = backend
        self.device = device
        self.verbose = verbose

    @property
    def invariances(self) -> frozenset[str]:
        """The order of the MSUs; with 'balance' rescaling, with 'sign_invariant' signs, with 'svd' all there are."""
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
            If a parameter is wrong, ``device`` cannot be used, or ``backend`` does not compute on it.
        """
        super().fit(X, y)
        self.backend_ = self._chosen_engine().backend if self.clusterer is None else None
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
        worker = copy(self)
        if self.clusterer is None:
            worker._engine = self._chosen_engine()  # once, and not for each module
        return super(LegoPruner, worker).transform(X)

    def _chosen_engine(self) -> Engine:
        return self._engine or choose_engine(self.backend, self.device)

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
            n_init=self.n_init,
            max_iter=self.max_iter,
            rng=rng,
            engine=self._chosen_engine() if self.clusterer is None else None,
        )
        return result.factors
