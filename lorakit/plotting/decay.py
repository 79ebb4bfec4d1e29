"""Norms of centroids against those of their members."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..metrics import NormDecay, norm_decay
from ._style import GREY, Display, legend_beside, look, point_options, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUPS = ((1, 1), (2, 3), (4, 7), (8, None))  # sizes of clusters that are drawn alike


class NormDecayDisplay(Display):
    """Norm of each cluster's centroid against the mean norm of its members, before reweighting.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    decay : NormDecay
        From :func:`lorakit.metrics.norm_decay`.
    norm : str, default='l2'
        The norm that was measured, for the labels.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.

    Examples
    --------
    >>> from lorakit import LegoMerger
    >>> from lorakit.plotting import NormDecayDisplay
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(random_state=0)
    >>> merger = LegoMerger(k=6, random_state=0).fit(adapters)
    >>> display = NormDecayDisplay.from_estimator(merger, adapters)
    >>> display.decay.ratio["layer.0"].max() <= 1
    np.True_
    """

    def __init__(self, decay: NormDecay, *, norm: str = "l2") -> None:
        self.decay = decay
        self.norm = norm

    @classmethod
    def from_estimator(
        cls,
        merger: Any,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        norm: Literal["l2", "inf"] = "l2",
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Measure and draw.

        Parameters
        ----------
        merger : LegoMerger
            Fitted on ``adapters``.
        adapters : AdapterSet or list of Adapter
            The adapters that ``merger`` was fitted on.
        norm : {'l2', 'inf'}, default='l2'
            The norm of a unit.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        NormDecayDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError, TypeError, ValueError
            For the reasons that :func:`lorakit.metrics.norm_decay` names.
        """
        return cls(norm_decay(merger, adapters, norm=norm), norm=norm).plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        kind: Literal["norms", "ratio"] = "norms",
        module: str | None = None,
        **kwargs: Any,
    ) -> Self:
        r"""Draw one point for each cluster.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        kind : {'norms', 'ratio'}, default='norms'
            Norm of the centroid against that of its members, where only points on the diagonal lost nothing; or their
            ratio against the size of the cluster, beside :math:`1 / \sqrt{n}`, what n members of one length at right
            angles leave.
        module : str, default=None
            Name of one module; None draws the clusters of all modules.
        **kwargs
            For ``Axes.scatter``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``kind`` is not one of these, or the merger has no such module.
        """
        if kind not in ("norms", "ratio"):
            raise ValueError(f"kind must be 'norms' or 'ratio', got {kind!r}")
        if module is not None and module not in self.decay.members:
            raise ValueError(f"the merger has no module {module!r}; it has {list(self.decay.members)[:3]}, ...")
        modules = list(self.decay.members) if module is None else [module]
        members, centroids, ratio, sizes = (
            np.concatenate([field[m] for m in modules])
            for field in (self.decay.members, self.decay.centroids, self.decay.ratio, self.decay.sizes)
        )
        ax = self._start(ax, size=(6.2, 4.0))
        if kind == "norms":
            self._plot_norms(ax, members, centroids, sizes, kwargs)
        else:
            self._plot_ratio(ax, ratio, sizes, kwargs)
        return self

    def _plot_norms(
        self, ax: Axes, members: NDArray[Any], centroids: NDArray[Any], sizes: NDArray[Any], kwargs: dict[str, Any]
    ) -> None:
        for i, (low, high) in enumerate(_GROUPS):
            here = (sizes >= low) & (sizes <= (high or sizes.max(initial=low)))
            if not here.any():
                continue
            what = f"{low}" if high == low else f"{low} or more" if high is None else f"{low} to {high}"
            options = point_options(i) | {"s": 18, "alpha": 0.75}
            ax.scatter(members[here], centroids[here], label=what, **options | kwargs)
        low, top = 0.95 * centroids.min(initial=np.inf), 1.03 * members.max(initial=0.0)
        if low < top:
            ax.plot([low, top], [low, top], color=GREY, linewidth=1, linestyle="--", label="nothing lost", zorder=0)
            ax.set_xlim(low, top)
            ax.set_ylim(low, top)
        what = "Euclidean" if self.norm == "l2" else "maximum"
        ax.set_xlabel(f"mean norm of the members ({what}, in units of the weights)")
        ax.set_ylabel("norm of the centroid")
        tidy(ax, grid="both")
        legend_beside(ax, title="units in the cluster")

    def _plot_ratio(self, ax: Axes, ratio: NDArray[Any], sizes: NDArray[Any], kwargs: dict[str, Any]) -> None:
        options: dict[str, Any] = {"color": look(0).colour, "marker": "o", "s": 18, "alpha": 0.35, "linewidths": 0}
        ax.scatter(sizes, ratio, label="a cluster", **options | kwargs)
        found = np.unique(sizes)
        medians = [np.median(ratio[sizes == size]) for size in found]
        ax.plot(found, medians, "_", color="black", markersize=14, markeredgewidth=2, label="median")
        n = np.arange(1, sizes.max(initial=1) + 1)
        ax.plot(n, 1 / np.sqrt(n), color=look(1).colour, linewidth=1.4, linestyle="--", label=r"$1/\sqrt{n}$")
        ax.set_ylim(0, 1.05)
        ax.set_xlabel("units in the cluster, $n$")
        ax.set_ylabel("norm of the centroid / mean norm of its members")
        whole_numbers(ax.xaxis)
        tidy(ax, grid="both")
        legend_beside(ax)
