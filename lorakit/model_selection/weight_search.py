"""Search for adapter weights that score best, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .._sklearn import Interval, StrOptions, fit_context
from .._validation import check_adapters, check_weights
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ._merging import merged_of

Point = NDArray[np.float64]


class WeightSearch(MetaEstimatorMixin, TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    r"""Find the adapters' weights whose merge scores best, by merging and scoring again and again.

    The idea of LoraHub [1]_: a few examples of a new task are enough to learn how much of each adapter it needs, and
    a handful of numbers needs no gradients. Any merger with ``weights`` can be searched, also in a pipeline.

    Parameters
    ----------
    merger : estimator
        An unfitted merger, or a pipeline that ends in one. It is cloned for every trial.
    scoring : callable
        ``scoring(fitted_merger, adapters)`` gives a number, higher being better, such as accuracy on a few examples
        of the model with the merged adapter (see :func:`lorakit.applied`). Scorers for scikit-learn's searches serve
        as they are.
    n_iter : int, default=40
        Largest number of merges to try. The first has the merger's own weights (equal ones, if it has none).
    method : {'nelder-mead', 'random'}, default='nelder-mead'
        How weights are proposed. 'nelder-mead' is SciPy's simplex method, started with steps of half the bounds, so
        that it also moves where accuracy on few examples is flat. 'random' draws evenly from the bounds.
    bounds : tuple of two floats, default=(0.0, 1.0)
        Smallest and largest weight that is proposed. Only some mergers take negative weights,
        :class:`~lorakit.SVDMerger`, :class:`~lorakit.ConcatMerger` and :class:`~lorakit.AverageMerger` among them.
    normalize : bool, default=True
        Mergers normalise weights, so only their ratios count. False multiplies the merger's ``scale`` by the sum of
        their absolute values: linear methods then give :math:`\sum_i w_i W_i`, and the search finds the scale too.
        For :class:`~lorakit.AverageMerger`, whose weights act on A and on B, it is the square of that sum.
    regularization : float, default=0.0
        Penalty: this times the mean absolute weight is subtracted from the score. It needs ``normalize=False``.
    random_state : int, RandomState or None, default=None
        Seeds the proposals of 'random'. Mergers have a ``random_state`` of their own.
    refit : bool, default=True
        Keep the best merge as ``best_estimator_``: the very one that was scored, not merged anew.

    Attributes
    ----------
    best_weights_ : dict of str to float
        Weights of the best merge by adapter name, as any merger takes them; they sum to 1 under ``normalize``.
    best_score_ : float
        Score of the best merge, without the penalty of ``regularization``.
    best_index_ : int
        Row of the best merge in ``results_``.
    best_estimator_ : estimator
        The fitted merger, if ``refit``.
    merged_ : Adapter
        Its result, if ``refit``.
    results_ : dict of str to ndarray
        One row for each trial, in order: ``weights`` (n, n_adapters), ``score`` and ``objective`` (the score minus the
        penalty). Each column of ``weights`` belongs to one adapter, in the order of X.
    n_adapters_in_ : int
        Number of adapters merged.

    See Also
    --------
    AllAdapters : For a grid of weights with scikit-learn's own searches.

    Notes
    -----
    LoraHub merges to :math:`(\sum_i w_i B_i)(\sum_i w_i A_i)`, also with negative weights. That is
    ``WeightSearch(AverageMerger(), scoring, normalize=False, bounds=(-1.5, 1.5), regularization=0.05)``, with minus the
    loss for a score. LoraHub starts from weights of zero, this search from those of the merger.

    References
    ----------
    .. [1] Huang et al., "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", arXiv 2307.13269.

    Examples
    --------
    >>> from lorakit import SVDMerger, WeightSearch
    >>> from lorakit.metrics import relative_error
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(2, 2), random_state=0)
    >>> wanted = SVDMerger(k=4, weights=[0.2, 0.8]).fit(adapters).merged_
    >>> def near(merger, adapters):
    ...     return -relative_error(merger.merged_, wanted)
    >>> search = WeightSearch(SVDMerger(k=4), near).fit(adapters)
    >>> {name: round(weight, 1) for name, weight in search.best_weights_.items()}
    {'task0': 0.2, 'task1': 0.8}
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "merger": "no_validation",
        "scoring": [callable],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
        "method": [StrOptions({"nelder-mead", "random"})],
        "bounds": [tuple, list],
        "normalize": ["boolean"],
        "regularization": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "refit": ["boolean"],
    }

    def __init__(
        self,
        merger: Any,
        scoring: Callable[..., float],
        *,
        n_iter: int = 40,
        method: str = "nelder-mead",
        bounds: tuple[float, float] = (0.0, 1.0),
        normalize: bool = True,
        regularization: float = 0.0,
        random_state: Any = None,
        refit: bool = True,
    ) -> None:
        self.merger = merger
        self.scoring = scoring
        self.n_iter = n_iter
        self.method = method
        self.bounds = bounds
        self.normalize = normalize
        self.regularization = regularization
        self.random_state = random_state
        self.refit = refit

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> Self:
        """Search.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters to weigh; their names must differ.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        X = check_adapters(X)
        if len(set(X.names)) < len(X):
            raise ValueError(f"weights are told apart by adapter name, and these repeat: {list(X.names)}")
        low, high = self._check_bounds()
        trials = _Trials(self, X)
        start = np.clip(trials.own_weights, low, high)
        with suppress(_BudgetSpent):
            _SEARCHES[self.method](trials, start, low, high, check_random_state(self.random_state))
        best = trials.best
        if best is None:
            raise ValueError(f"every weight is zero at all points within bounds={self.bounds}")
        self.best_index_ = best
        self.results_ = {
            "weights": np.array([trial.weights for trial in trials.done]),
            "score": np.array([trial.score for trial in trials.done]),
            "objective": np.array([trial.objective for trial in trials.done]),
        }
        self.best_weights_ = dict(zip(X.names, trials.done[best].weights.tolist(), strict=True))
        self.best_score_ = trials.done[best].score
        self.n_adapters_in_ = len(X)
        if self.refit:
            self.best_estimator_ = trials.best_estimator
        return self

    def _check_bounds(self) -> tuple[float, float]:
        if len(self.bounds) != 2 or not -np.inf < self.bounds[0] < self.bounds[1] < np.inf:
            raise ValueError(f"bounds must be two finite numbers, the lower one first; got {self.bounds}")
        if self.normalize and self.regularization:
            raise ValueError(
                "regularization penalises the size of the weights, of which normalize=True leaves nothing; "
                "pass normalize=False with it"
            )
        return float(self.bounds[0]), float(self.bounds[1])

    def transform(self, X: AdapterSet | Iterable[Adapter]) -> AdapterSet:
        """Return the best merge, whatever X holds, as :meth:`lorakit.base.BaseMerger.transform` does."""
        self._check_kept()
        return self.best_estimator_.transform(X)

    def score(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> float:
        """Score the best merge with ``scoring``."""
        self._check_kept()
        return float(self.scoring(self.best_estimator_, check_adapters(X)))

    def _check_kept(self) -> None:
        check_is_fitted(self, "best_weights_")
        if not hasattr(self, "best_estimator_"):
            raise AttributeError("the best merge was not kept: refit=False; merge with weights=best_weights_")

    @property
    def merged_(self) -> Adapter:
        """The best merge."""
        return merged_of(self.best_estimator_)


class _BudgetSpent(Exception):
    """Stops a search from inside the function that it searches."""


class _Trial(NamedTuple):
    weights: Point
    score: float
    objective: float


class _Trials:
    """Merge, score and note: the function that a search maximises."""

    def __init__(self, search: WeightSearch, X: AdapterSet) -> None:
        self.search, self.X = search, X
        self.weights_name = _parameter(search.merger, "weights")
        self.scale_name, self.scale, self.degree = "", 1.0, 1
        params = search.merger.get_params()
        if not search.normalize:
            self.scale_name = _parameter(search.merger, "scale")
            if isinstance(params[self.scale_name], str):
                raise ValueError(
                    f"normalize=False searches for a scale, which {self.scale_name}={params[self.scale_name]!r} sets; "
                    "pass a merger whose scale is a number"
                )
            self.scale = params[self.scale_name]
            step = self.weights_name.removesuffix("weights").removesuffix("__")
            self.degree = getattr(params[step] if step else search.merger, "_weights_degree", 1)
        self.own_weights = check_weights(params[self.weights_name], X.names, signed=True)
        self.done: list[_Trial] = []
        self.best: int | None = None
        self.best_estimator: Any = None

    def __call__(self, point: Point) -> float:
        if len(self.done) >= self.search.n_iter:
            raise _BudgetSpent
        total = float(np.abs(point).sum())
        if total == 0 and self.search.normalize:
            return -np.inf  # no merge has these weights
        shares = point / total if total else np.ones_like(point)
        params: dict[str, Any] = {self.weights_name: dict(zip(self.X.names, shares.tolist(), strict=True))}
        if not self.search.normalize:
            params[self.scale_name] = self.scale * total**self.degree
        estimator = clone(self.search.merger).set_params(**params).fit(self.X)
        score = float(self.search.scoring(estimator, self.X))
        weights = shares if self.search.normalize else point.copy()
        if not np.isfinite(score):
            raise ValueError(f"scoring gave {score} for the weights {dict(zip(self.X.names, weights, strict=True))}")
        self.done.append(_Trial(weights, score, score - self.search.regularization * total / len(point)))
        if self.best is None or self.done[-1].objective > self.done[self.best].objective:
            self.best = len(self.done) - 1
            self.best_estimator = estimator if self.search.refit else None
        return self.done[-1].objective


def _parameter(merger: Any, name: str) -> str:
    """Return the merger's parameter of that name, or that of the one step of a pipeline that has it."""
    params = merger.get_params()
    found = [name] if name in params else [key for key in params if key.endswith(f"__{name}")]
    if len(found) != 1:
        raise ValueError(
            f"{merger!r} has {len(found)} parameters called {name!r} ({', '.join(found) or 'none'}); "
            "WeightSearch takes a merger, or a pipeline with one merger that has it"
        )
    return found[0]


def _random(trials: _Trials, start: Point, low: float, high: float, rng: np.random.RandomState) -> None:
    trials(start)
    while True:
        trials(rng.uniform(low, high, size=len(start)))


def _nelder_mead(trials: _Trials, start: Point, low: float, high: float, rng: np.random.RandomState) -> None:
    from scipy import optimize

    minimize: Any = optimize.minimize  # its stubs know functions of one array type only
    # SciPy's own first steps are of 5 %, within which a score on few examples does not change
    step = np.where(start < (low + high) / 2, high - start, low - start) / 2
    simplex = np.vstack([start, start + np.diag(step)])
    options = {"initial_simplex": simplex, "maxfev": trials.search.n_iter, "xatol": 1e-3, "fatol": 1e-9}
    minimize(lambda x: -trials(x), start, method="Nelder-Mead", bounds=[(low, high)] * len(start), options=options)


_SEARCHES = {"nelder-mead": _nelder_mead, "random": _random}
