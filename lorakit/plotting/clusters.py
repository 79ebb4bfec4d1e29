"""Stacked bars of the tasks in each cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..metrics import ClusterComposition, cluster_composition
from ._style import Display, legend_beside, look, shown_module, shown_name, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ClusterCompositionDisplay(Display):
    """Units of each task in every cluster of one module.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    composition : ClusterComposition
        From :func:`lorakit.metrics.cluster_composition`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.
    bars_ : list of matplotlib BarContainer
        One for each task.

    Examples
    --------
    >>> from lorakit import LegoMerger
    >>> from lorakit.plotting import ClusterCompositionDisplay
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(random_state=0)
    >>> merger = LegoMerger(k=6, random_state=0).fit(adapters)
    >>> display = ClusterCompositionDisplay.from_estimator(merger, adapters)
    >>> len(display.bars_)
    3
    """

    def __init__(self, composition: ClusterComposition) -> None:
        self.composition = composition

    @classmethod
    def from_estimator(
        cls,
        merger: Any,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        tasks: Mapping[str, str] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Count and draw.

        Parameters
        ----------
        merger : LegoMerger
            Fitted on ``adapters``.
        adapters : AdapterSet or list of Adapter
            The adapters that ``merger`` was fitted on.
        tasks : mapping of adapter name to task, default=None
            The task of each adapter, for several adapters of one task. An adapter that is not named is a task of its
            own.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        ClusterCompositionDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError, TypeError, ValueError
            For the reasons that :func:`lorakit.metrics.cluster_composition` names.
        """
        return cls(cluster_composition(merger, adapters, tasks=tasks)).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, module: str | None = None, **kwargs: Any) -> Self:
        """Draw, the largest clusters first; their numbers are those of the merged adapter's units.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        module : str, default=None
            Name of the module; None takes the first.
        **kwargs
            For ``Axes.bar``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the merger has no such module.
        """
        known = self.composition.counts
        module = next(iter(known)) if module is None else module
        if module not in known:
            raise ValueError(f"the merger has no module {module!r}; it has {list(known)[:3]}, ...")
        counts = known[module]
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        ax = self._start(ax, size=(max(6.4, 2.4 + 0.26 * len(counts)), 3.6))
        base = np.zeros(len(counts))
        self.bars_ = []
        for i, task in enumerate(self.composition.tasks):
            colour, _, _, hatch = look(i)
            options: dict[str, Any] = {
                "color": colour,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0.6,
                "label": shown_name(task),
            }
            heights = counts[order, i]
            self.bars_.append(ax.bar(range(len(counts)), heights, bottom=base, **options | kwargs))
            base += heights
        ax.set_xticks(range(len(counts)), [str(c) for c in order], fontsize=9 if len(counts) <= 32 else 6)
        ax.set_xlabel("cluster, which is the unit of the merge")
        ax.set_ylabel("number of units")
        whole_numbers(ax.yaxis)
        ax.set_title(self._summary(module), loc="left", fontsize=10)
        tidy(ax)
        legend_beside(ax)
        return self

    def _summary(self, module: str) -> str:
        found = self.composition
        if module not in found.purity:
            return f"{shown_module(module)}: no unit takes part"
        return (
            f"{shown_module(module)}\n{found.mixed[module]:.0%} of the units in mixed clusters, purity "
            f"{found.purity[module]:.2f}, adjusted mutual information {found.adjusted_mutual_information[module]:.2f}"
        )
