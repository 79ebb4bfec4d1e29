"""Scores against the rank of a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from ._style import Display, line_options, rank_axis, shown_name, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class RankCurve:
    """Scores of one method at several ranks.

    Parameters
    ----------
    ks : ndarray of shape (n,)
        Ranks, ascending.
    scores : ndarray of shape (n,)
        Score at each rank.
    errors : ndarray of shape (n,) or None
        Half lengths of the error bars.
    """

    ks: NDArray[Any]
    scores: NDArray[np.float64]
    errors: NDArray[np.float64] | None = None


class RankCurveDisplay(Display):
    """Score against the rank of a merge, with one curve for each method.

    Make one with :meth:`from_search` or :meth:`from_arrays`.

    Parameters
    ----------
    curves : mapping of str to RankCurve
        Curves by the names of the methods.
    score_name : str, default='score'
        What the vertical axis says.
    spread : str, default=''
        What the error bars show, for the title.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.
    lines_ : list of matplotlib Line2D
        The curves.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV, LeaveOneOut
    >>> from lorakit import AdapterSet, SVDMerger
    >>> from lorakit.plotting import RankCurveDisplay
    >>> from lorakit.testing import make_adapters
    >>> adapters = AdapterSet(make_adapters(3, ranks=4, random_state=0))
    >>> grid = {"k": [2, 4, 8], "scale": [0.5, 1.0]}
    >>> search = GridSearchCV(SVDMerger(), grid, cv=LeaveOneOut()).fit(adapters)
    >>> display = RankCurveDisplay.from_search(search)
    >>> list(display.curves)
    ['scale=0.5', 'scale=1.0']
    """

    def __init__(self, curves: Mapping[str, RankCurve], *, score_name: str = "score", spread: str = "") -> None:
        self.curves = dict(curves)
        self.score_name = score_name
        self.spread = spread

    @classmethod
    def from_arrays(
        cls,
        ks: ArrayLike,
        scores: Mapping[str, ArrayLike] | ArrayLike,
        *,
        errors: Mapping[str, ArrayLike] | ArrayLike | None = None,
        score_name: str = "score",
        spread: str = "",
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw scores that were measured.

        Parameters
        ----------
        ks : array-like of shape (n,)
            Ranks.
        scores : array-like of shape (n,) or (n_repeats, n), or mapping of str to those
            Score at each rank, by method if there are several. Of repeats, such as seeds, the mean is drawn with the
            standard deviation.
        errors : array-like of shape (n,), or mapping of str to those, default=None
            Error bars, for scores without repeats.
        score_name : str, default='score'
            What the vertical axis says.
        spread : str, default=''
            What the error bars show; for repeats 'standard deviation over n repeats'.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        RankCurveDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the arrays do not fit together.
        """
        ranks = np.asarray(ks)
        by_name = scores if isinstance(scores, Mapping) else {"": scores}
        bars = errors if isinstance(errors, Mapping) else {"": errors}
        order = np.argsort(ranks)
        curves = {}
        for name, values in by_name.items():
            array = np.asarray(values, dtype=np.float64)
            bar = bars.get(name)
            if array.ndim == 2:
                if bar is not None:
                    raise ValueError(f"{name or 'scores'}: repeats have a spread of their own; pass no errors for them")
                spread = spread or f"standard deviation over {len(array)} repeats"
                array, bar = array.mean(axis=0), array.std(axis=0)
            if array.shape != ranks.shape or (bar is not None and np.shape(bar) != ranks.shape):
                raise ValueError(
                    f"{name or 'scores'}: expected one number for each of {len(ranks)} ranks; got shape {array.shape}"
                    + ("" if bar is None else f", and of its errors {np.shape(bar)}")
                )
            shown = None if bar is None else np.asarray(bar, dtype=np.float64)[order]
            curves[name] = RankCurve(ranks[order], array[order], shown)
        return cls(curves, score_name=score_name, spread=spread).plot(ax=ax, **kwargs)

    @classmethod
    def from_search(
        cls,
        search: Any,
        *,
        metric: str | None = None,
        param: str | None = None,
        label: Callable[[Mapping[str, Any]], str | None] | None = None,
        score_name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the results of a search over ranks, with their standard deviation over folds.

        Parameters
        ----------
        search : GridSearchCV or another search
            Fitted.
        metric : str, default=None
            Name of the score, if there are several; None takes the one that ``refit`` names.
        param : str, default=None
            Name of the parameter that is the rank; None takes ``k``, or the one that ends in ``__k``.
        label : callable, default=None
            From a candidate's parameters to the name of its curve, or None to leave it out. By default the parameters
            that differ between candidates are the name.
        score_name : str, default=None
            What the vertical axis says; None takes the metric.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        RankCurveDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If ``search`` is not fitted.
        ValueError
            If there is no such parameter or metric, or two candidates of one curve have the same rank.
        """
        check_is_fitted(search, "cv_results_")
        results = search.cv_results_
        candidates: list[Mapping[str, Any]] = results["params"]
        param = _rank_parameter(candidates) if param is None else param
        metric = _metric(search, results) if metric is None else metric
        if f"mean_test_{metric}" not in results:
            known = [key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_")]
            raise ValueError(f"the search has no score {metric!r}; it has {known}")
        named = label or _namer(candidates, param)
        rows: dict[str, list[tuple[Any, float, float]]] = {}
        for i, candidate in enumerate(candidates):
            name = named(candidate)
            if name is not None and candidate.get(param) is not None:
                row = candidate[param], results[f"mean_test_{metric}"][i], results[f"std_test_{metric}"][i]
                rows.setdefault(name, []).append(row)
        curves = {}
        for name, points in rows.items():
            ks, scores, errors = map(np.array, zip(*sorted(points), strict=True))
            if len(set(ks.tolist())) < len(ks):
                raise ValueError(
                    f"the curve {name!r} has several candidates at one rank; pass label= that tells them apart"
                )
            curves[name] = RankCurve(ks, scores, errors if errors.any() else None)
        folds = (
            f"standard deviation over {search.n_splits_} folds"
            if any(c.errors is not None for c in curves.values())
            else ""
        )
        shown = score_name or ("score" if metric == "score" else metric)
        return cls(curves, score_name=shown, spread=folds).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw, with a ring around the best rank of each method.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For ``Axes.plot``.

        Returns
        -------
        self
        """
        ax = self._start(ax, size=(6.4, 4.0))
        ks = sorted({k for curve in self.curves.values() for k in curve.ks.tolist()})
        log = len(ks) > 1 and ks[0] > 0 and ks[-1] >= 4 * ks[0]
        self.lines_ = []
        for i, (name, curve) in enumerate(self.curves.items()):
            options = line_options(i, name) | {"markersize": 6, "label": shown_name(name) or None}
            shift = i - (len(self.curves) - 1) / 2  # to the side, so that bars do not hide one another
            step = 0.012 * shift
            x = curve.ks * (ks[-1] / ks[0]) ** step if log else curve.ks + step * (ks[-1] - ks[0])
            if curve.errors is not None:
                ax.errorbar(
                    x, curve.scores, curve.errors, color=options["color"], linestyle="none", elinewidth=0.9, alpha=0.7
                )
            self.lines_ += ax.plot(x, curve.scores, **options | kwargs)
            best = int(np.nanargmax(curve.scores))
            ax.plot(x[best], curve.scores[best], "o", markersize=13, color=options["color"], fillstyle="none")
        rank_axis(ax, ks, log=log)
        ax.set_ylabel(self.score_name)
        bars = f"; bars: {self.spread}" if self.spread else ""
        ax.set_title(f"ring: the best rank{bars}", loc="right", fontsize=8)
        tidy(ax)
        if any(self.curves):
            ax.legend(frameon=False, handlelength=3.2)
        return self


def _rank_parameter(candidates: Sequence[Mapping[str, Any]]) -> str:
    found = sorted({name for candidate in candidates for name in candidate if name == "k" or name.endswith("__k")})
    if len(found) != 1:
        seen = sorted({name for candidate in candidates for name in candidate})
        raise ValueError(f"the search has {len(found)} parameters called k among {seen}; pass param=")
    return found[0]


def _metric(search: Any, results: Mapping[str, Any]) -> str:
    if "mean_test_score" in results:
        return "score"
    if isinstance(search.refit, str):
        return search.refit
    known = [key.removeprefix("mean_test_") for key in results if key.startswith("mean_test_")]
    raise ValueError(f"the search has several scores, {known}, and no refit that names one; pass metric=")


def _namer(candidates: Sequence[Mapping[str, Any]], param: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that names a candidate by the parameters in which the candidates differ."""
    others = dict.fromkeys(name for candidate in candidates for name in candidate if name != param)
    differing = [name for name in others if len({_shown(c.get(name)) for c in candidates}) > 1]

    def name_of(candidate: Mapping[str, Any]) -> str:
        return ", ".join(f"{n.split('__')[-1]}={_shown(candidate[n])}" for n in differing if n in candidate)

    return name_of


def _shown(value: Any) -> str:
    return type(value).__name__ if hasattr(value, "get_params") else str(value)
