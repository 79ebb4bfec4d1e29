"""Variance of a merge's outputs against its rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..merging.lego import LegoMerger
from ..metrics import OutputVariance, output_variance_path
from ..metrics.variance import Moments
from ..model_selection.rank_path import rank_path
from ._style import GREY, Display, line_options, rank_axis, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class OutputVarianceDisplay(Display):
    """Variance of the outputs of merges over that of the adapters, against the rank.

    Make one with :meth:`from_adapters`, or :meth:`from_paths` for merges of your own.

    Parameters
    ----------
    variances : mapping of str to OutputVariance
        From :func:`lorakit.metrics.output_variance_path`, by the name of the curve.

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
    >>> from lorakit.plotting import OutputVarianceDisplay
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(3, ranks=4, random_state=0)
    >>> display = OutputVarianceDisplay.from_adapters(adapters, ks=[4, 8, 12], random_state=0)
    >>> list(display.variances)
    ['without output reweighting', 'with output reweighting']
    """

    def __init__(self, variances: Mapping[str, OutputVariance]) -> None:
        self.variances = dict(variances)

    @classmethod
    def from_adapters(
        cls,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        ks: Sequence[int],
        grams: Moments | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Merge adapters with LoRA-LEGO at several ranks, with and without output reweighting, and draw.

        Parameters
        ----------
        adapters : AdapterSet or list of Adapter
            The adapters to merge.
        ks : sequence of int
            Ranks.
        grams : mapping of module to Gram or array, default=None
            Second moments of the modules' inputs; None takes independent inputs of variance 1.
        random_state : int, RandomState or None, default=0
            Seeds the clustering.
        n_jobs : int or None, default=None
            Workers of the loop over modules.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        OutputVarianceDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a rank is too large, or ``grams`` do not fit.
        """
        X = AdapterSet(adapters)
        paths = {
            f"{word} output reweighting": rank_path(
                LegoMerger(output_scale=scale, random_state=random_state, n_jobs=n_jobs), X, ks
            )
            for word, scale in (("without", None), ("with", "sqrt"))
        }
        return cls.from_paths(paths, X, grams=grams, n_jobs=n_jobs, ax=ax, **kwargs)

    @classmethod
    def from_paths(
        cls,
        paths: Mapping[str, Mapping[Any, Any]],
        adapters: AdapterSet | Iterable[Adapter],
        *,
        grams: Moments | None = None,
        n_jobs: int | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Measure merges that were made already, and draw one curve for each path.

        Parameters
        ----------
        paths : mapping of str to path
            Results of :func:`lorakit.rank_path`, by the name of the curve.
        adapters : AdapterSet or list of Adapter
            The adapters that were merged.
        grams : mapping of module to Gram or array, default=None
            Second moments of the modules' inputs; None takes independent inputs of variance 1.
        n_jobs : int or None, default=None
            Workers of the loop over modules.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        OutputVarianceDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError, ValueError
            For the reasons that :func:`lorakit.metrics.output_variance_path` names.
        """
        X = AdapterSet(adapters)
        found = {name: output_variance_path(path, X, grams=grams, n_jobs=n_jobs) for name, path in paths.items()}
        return cls(found).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the median over modules, and the range of the middle half of them.

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
        ax = self._start(ax, size=(6.0, 3.8))
        self.lines_ = []
        ks = sorted({k for variance in self.variances.values() for k in variance.ks.tolist()})
        for i, (name, variance) in enumerate(self.variances.items()):
            options = line_options(i, name)
            low, high = np.nanquantile(variance.ratio, [0.25, 0.75], axis=1)
            ax.fill_between(variance.ks, low, high, color=options["color"], alpha=0.18, linewidth=0)
            self.lines_ += ax.plot(variance.ks, np.nanmedian(variance.ratio, axis=1), **options | kwargs)
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":", label="the adapters' mean", zorder=0)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rank_axis(ax, ks, log=ks[-1] >= 4 * ks[0])
        ax.set_ylabel("output variance, merge / adapters")
        ax.set_title("line: median over modules; band: their middle half", loc="right", fontsize=8)
        tidy(ax, grid="both")
        ax.legend(frameon=False, handlelength=3)
        return self
