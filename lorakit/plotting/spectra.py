"""Singular values of adapters, and how much of an update few of them keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from .._execution import map_modules, read_module
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..linalg import singular_values_of_sum
from ._style import Display, legend_beside, line_options, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEAN = "mean of all"
_LONG = 17  # values; more are drawn on a logarithmic axis


class SingularValuesDisplay(Display):
    """Singular values of updates, or the energy (squared norm) that the largest of them keep.

    For several modules, value i is the root mean square of the modules' i-th singular values. The energy that the k
    largest values keep is then exactly that of the whole update after every module is cut to rank k.

    Make one with :meth:`from_adapters` or :meth:`from_estimator`.

    Parameters
    ----------
    singular_values : mapping of str to array-like of shape (q,)
        Singular values in descending order, by the name of their curve.

    Attributes
    ----------
    energy : dict of str to ndarray of shape (q + 1,)
        Share of the energy that the k largest values keep, k = 0 to q.
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.
    lines_ : list of matplotlib Line2D
        The curves.

    Examples
    --------
    >>> from lorakit.plotting import SingularValuesDisplay
    >>> from lorakit.testing import make_adapters
    >>> display = SingularValuesDisplay.from_adapters(make_adapters(ranks=(2, 4), random_state=0))
    >>> display.energy["task0"].round(2)
    array([0. , 0.7, 1. ])
    """

    def __init__(self, singular_values: Mapping[str, ArrayLike]) -> None:
        self.singular_values = {name: np.asarray(s, dtype=np.float64) for name, s in singular_values.items()}
        self.energy = {name: _energy(s) for name, s in self.singular_values.items()}

    @classmethod
    def from_adapters(
        cls,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        modules: Sequence[str] | None = None,
        mean: bool = False,
        n_jobs: int | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Compute the singular values of each adapter's updates and draw.

        Parameters
        ----------
        adapters : AdapterSet or list of Adapter
            One or more.
        modules : sequence of str, default=None
            Some modules only; None takes all.
        mean : bool, default=False
            Whether to draw the singular values of the mean update too, which show what rank a merge needs.
        n_jobs : int or None, default=None
            Workers of the loop over modules.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        SingularValuesDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        IncompatibleAdaptersError
            If the adapters do not fit together.
        ValueError
            If no adapter has one of ``modules``.
        """
        X = check_adapters(adapters)
        if modules is not None:
            if unknown := [module for module in modules if module not in X.module_names]:
                raise ValueError(f"no adapter has the module {unknown[0]!r}; they have {list(X.module_names)[:3]}, ...")
            X = AdapterSet(adapter.select(modules) for adapter in X)
        found = map_modules(partial(_spectra, mean=mean), X, n_jobs=n_jobs, verbose=0)
        names = [*X.names, *([MEAN] if mean else [])]
        curves = {name: _together([spectra[i] for spectra in found]) for i, name in enumerate(names)}
        return cls(curves).plot(ax=ax, **kwargs)

    @classmethod
    def from_estimator(cls, merger: Any, *, name: str | None = None, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the singular values that a fitted merger learned before it cut them.

        Parameters
        ----------
        merger : SVDMerger or another with ``singular_values_``
            Fitted.
        name : str, default=None
            Name of the curve; None takes the merger's method.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        SingularValuesDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If ``merger`` is not fitted.
        TypeError
            If ``merger`` learned no singular values.
        """
        check_is_fitted(merger)
        if not hasattr(merger, "singular_values_"):
            raise TypeError(
                f"{type(merger).__name__} learned no singular values; expected SVDMerger, say, or pass "
                "[merger.merged_] to from_adapters"
            )
        curve = _together([np.asarray(s, dtype=np.float64) for s in merger.singular_values_.values()])
        return cls({name or merger.method: curve}).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, kind: Literal["values", "energy"] = "values", **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        kind : {'values', 'energy'}, default='values'
            Singular values, on a logarithmic axis; or the share of the energy that a rank keeps.
        **kwargs
            For ``Axes.plot``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``kind`` is not one of these.
        """
        if kind not in ("values", "energy"):
            raise ValueError(f"kind must be 'values' or 'energy', got {kind!r}")
        ax = self._start(ax, size=(6.4, 3.8))
        self.lines_ = []
        longest = max((len(s) for s in self.singular_values.values()), default=1)
        log = longest > _LONG
        for i, (name, values) in enumerate(self.singular_values.items()):
            x = np.arange(1, len(values) + 1)
            y = np.where(values > 0, values, np.nan) if kind == "values" else self.energy[name][1:]
            if kind == "energy" and not log:
                x, y = np.arange(len(values) + 1), self.energy[name]
            options = self._options(i, name, len(y))
            self.lines_ += ax.plot(x, y, **options | kwargs)
        if log:
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            whole_numbers(ax.xaxis)
        if kind == "values":
            ax.set_yscale("log")
            ax.set_ylabel("singular value (r.m.s. over modules)")
            ax.set_xlabel("number of the singular value")
        else:
            ax.set_ylim(0, 1.03)
            ax.set_ylabel("share of the energy kept")
            ax.set_xlabel("rank that every module is cut to")
        tidy(ax, grid="both")
        legend_beside(ax, handlelength=3)
        return self

    def _options(self, i: int, name: str, n: int) -> dict[str, Any]:
        if name == MEAN:
            return {"color": "black", "linewidth": 2.4, "label": name}
        options = line_options(i, name) | {"markersize": 5}
        # a marker on each of many would be a band; these are even on a logarithmic axis
        return options if n <= _LONG else options | {"markevery": [2**e - 1 for e in range(n.bit_length())]}


def _spectra(X: AdapterSet, module: str, *, mean: bool) -> list[NDArray[np.float64]]:
    updates = read_module(X, module, None)
    spectra = [singular_values_of_sum([update], [1.0]).numpy() for update in updates]
    if mean:
        spectra.append(singular_values_of_sum(updates, [1 / len(updates)] * len(updates)).numpy())
    return spectra


def _together(spectra: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Root mean square of the i-th values; a module that has fewer has zeros."""
    longest = max(map(len, spectra))
    squares = np.stack([np.pad(s, (0, longest - len(s))) for s in spectra]) ** 2
    root: NDArray[np.float64] = np.sqrt(squares.mean(axis=0))
    return root


def _energy(values: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.square(values).sum()
    kept = np.concatenate([[0.0], np.cumsum(np.square(values))])
    return kept / total if total else np.ones_like(kept)  # nothing is lost of a zero update
