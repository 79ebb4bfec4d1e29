"""k-means on minimal semantic units: order-free, and of a cost that does not grow with their length."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .._sklearn import Interval, StrOptions, check_sample_weight, fit_context
from ._backends import BACKENDS, BackendName, Init, choose_backend
from ._partition import problems_of, solved
from ._rows import Floats, Ints, distinct_rows, squared_residuals, weighted_means


class MSUKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """K-means whose result does not depend on the order of the rows.

    LoRA-LEGO [1]_ clusters the minimal semantic units (MSUs) of many LoRA adapters: a few hundred rows of thousands of
    features each. Plain k-means does not suit such pools. It is seeded by row index, so that listing the
    adapters in another order gives another merge, and its cost grows with the length of the rows. Here

    - rows are put in lexicographic order and equal rows are joined before anything else, so shuffling the rows of X
      shuffles ``labels_`` and changes nothing else, to the last bit, and a weight of two is the same as a row listed
      twice;
    - n rows span at most n dimensions: k-means runs on n coordinates with the same pairwise distances, and the centres
      are then taken from the original rows;
    - there are always ``n_clusters`` non-empty clusters when there are as many distinct rows.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.
    init : {'k-means++', 'ward'}, default='k-means++'
        Where it starts. 'k-means++' draws ``n_init`` starts at random. 'ward' starts once, from Ward's hierarchical
        clustering of the distinct rows [2]_, each with the sum of its weights, cut at ``n_clusters``. It draws nothing
        at random: ``random_state`` and ``n_init`` have no effect. Its time grows with the square of the number of rows,
        or faster, and its memory with the square.
    n_init : int, default=10
        Number of starts, each from its own k-means++ seeding. The one of lowest inertia is kept, the first on ties.
    max_iter : int, default=300
        Largest number of iterations of a start.
    tol : float, default=1e-4
        A start ends when its centres move by a squared distance of at most `tol` times the mean variance of the
        features over the distinct rows.
    random_state : int, RandomState instance or None, default=None
        Source of the seedings. Pass an int for the same result in every call.
    backend : {'auto', 'numpy', 'sklearn', 'torch', 'cuml'}, default='auto'
        Library that runs Lloyd's algorithm; all of them start from the same seeds. 'auto' is cuML if ``device`` is an
        NVIDIA GPU and cuML can be imported, torch on such a GPU without cuML, and NumPy otherwise. 'numpy' and 'torch'
        run all starts at once, torch on any device.
    device : str, default=None
        Device of that library, as torch names it; None is the CPU. NumPy and scikit-learn always run on the CPU.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Weighted means of the rows of X by label. Where there are fewer distinct rows than clusters, the last centre is
        repeated.
    labels_ : ndarray of shape (n_samples,)
        Cluster of each row. Clusters are numbered in the lexicographic order of their smallest rows.
    inertia_ : float
        Weighted sum of the squared distances of the rows to the means of their clusters.
    n_iter_ : int
        Iterations of the start that was kept.
    backend_ : {'numpy', 'sklearn', 'torch', 'cuml'}
        Library that ran.
    n_features_in_ : int
        Number of features seen in fit.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, when X has string names for all of them.

    See Also
    --------
    sklearn.cluster.KMeans : The algorithm itself, which ``backend='sklearn'`` runs underneath.

    Notes
    -----
    Arithmetic is in float64 for X of any dtype. A row of weight zero does not change the clusters, and gets the label
    of the nearest centre.
    When a start ends by `tol` or `max_iter` instead of by labels that no longer change, a row can be slightly nearer
    to a centre other than its own, and `predict` then says so.

    References
    ----------
    .. [1] Z. Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through
       Rank-Wise Clustering", 2024, `arXiv:2409.16167 <https://arxiv.org/abs/2409.16167>`_.
    .. [2] J. H. Ward, "Hierarchical Grouping to Optimize an Objective Function", Journal of the American Statistical
       Association 58, 1963.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit import MSUKMeans
    >>> X = np.array([[10.0, 2.0], [1.0, 2.0], [1.0, 4.0], [10.0, 4.0]])
    >>> kmeans = MSUKMeans(n_clusters=2, random_state=0).fit(X)
    >>> kmeans.labels_
    array([1, 0, 0, 1], dtype=int32)
    >>> kmeans.cluster_centers_
    array([[ 1.,  3.],
           [10.,  3.]])
    >>> kmeans.predict([[9.0, 0.0]])
    array([1], dtype=int32)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "ward"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "backend": [StrOptions(set(BACKENDS))],
        "device": [str, None],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Init = "k-means++",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
        backend: BackendName = "auto",
        device: str | None = None,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.backend = backend
        self.device = device

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> MSUKMeans:
        """Cluster the rows of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to cluster.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, not negative; 1 each by default.

        Returns
        -------
        self : MSUKMeans
            The fitted clusterer.
        """
        data: NDArray[np.floating] = validate_data(self, X, dtype=[np.float64, np.float32])
        weights = check_sample_weight(sample_weight, data, dtype=np.float64)
        self._check_against_input(len(data), weights)
        backend = choose_backend(self.backend, self.device)
        self.backend_ = backend.name

        chosen, weights, inverse = distinct_rows(data, weights)
        rows = data[chosen].astype(np.float64) + 0.0  # of equal rows, 0.0 and not -0.0
        seen = weights > 0
        problems = problems_of(
            rows[seen],
            weights[seen],
            [self.n_clusters],
            init=self.init,
            n_init=self.n_init,
            tol=self.tol,
            width=rows.shape[1],
            rng=check_random_state(self.random_state),
        )
        ((labels, self.n_iter_),) = solved(problems, backend, max_iter=self.max_iter)
        centers = weighted_means(rows[seen], weights[seen], labels)
        self.inertia_ = float(squared_residuals(rows[seen], weights[seen], labels).sum())

        missing = self.n_clusters - len(centers)
        if missing:
            warnings.warn(
                f"Number of distinct clusters ({len(centers)}) found smaller than n_clusters ({self.n_clusters}): X "
                f"has no more distinct rows of positive weight. Pass n_clusters={len(centers)} or fewer.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.cluster_centers_ = np.pad(centers, ((0, missing), (0, 0)), mode="edge").astype(data.dtype)
        self._n_features_out = self.n_clusters

        row_labels = np.empty(len(rows), dtype=np.int32)
        row_labels[seen] = labels
        if not seen.all():
            row_labels[~seen] = self._squared_distances(rows[~seen]).argmin(axis=1)
        self.labels_ = row_labels[inverse]
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.int32]:
        """Index of the nearest centre of each row of X, of shape (n_samples,)."""
        nearest: Ints = self._squared_distances(self._check_test_data(X)).argmin(axis=1)
        return nearest.astype(np.int32)

    def transform(self, X: ArrayLike) -> NDArray[np.floating]:
        """Distances of the rows of X to the centres, of shape (n_samples, n_clusters)."""
        data = self._check_test_data(X)
        return np.sqrt(self._squared_distances(data)).astype(data.dtype, copy=False)

    def score(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> float:
        """Minus the weighted sum of the squared distances of the rows of X to their nearest centres."""
        data = self._check_test_data(X)
        weights = check_sample_weight(sample_weight, data, dtype=np.float64)
        return -float(weights @ self._squared_distances(data).min(axis=1))

    def _check_against_input(self, n_samples: int, weights: Floats) -> None:
        if n_samples < self.n_clusters:
            raise ValueError(
                f"n_samples={n_samples} should be >= n_clusters={self.n_clusters}; pass more rows or fewer clusters."
            )
        if (weights < 0).any():
            raise ValueError("sample_weight holds negative values; k-means needs weights of zero or more.")
        if not weights.any():
            raise ValueError("sample_weight is zero for all rows; at least one weight must be positive.")

    def _check_test_data(self, X: ArrayLike) -> NDArray[np.floating]:
        check_is_fitted(self)
        data: NDArray[np.floating] = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return data

    def _squared_distances(self, X: NDArray[np.floating]) -> Floats:
        from sklearn.metrics.pairwise import euclidean_distances  # here, as clustering itself needs none of it

        centers = self.cluster_centers_.astype(np.float64)
        origin = centers.mean(axis=0)  # a common offset would cost digits in every distance
        squared: Floats = euclidean_distances(X - origin, centers - origin, squared=True)
        return squared

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
