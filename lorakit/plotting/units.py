"""Maps of minimal semantic units (MSUs), which show the units that lie near one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from .._execution import one_thread, read_module
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..linalg import pool_msus
from ..linalg.frames import frame_of
from ..metrics import cluster_composition
from ._style import COLOURS, GREY, Display, legend_beside, point_options, shown_module, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["tsne", "pca"]


class MSUMapDisplay(Display):
    """Units of one module as points in a plane.

    Make one with :meth:`from_adapters`, or :meth:`from_estimator` to see clusters too.

    Parameters
    ----------
    points : array-like of shape (R, 2)
        Where the units lie.
    owners : array-like of shape (R,)
        Task of each unit, as a position in ``tasks``.
    tasks : sequence of str
        Names of the tasks.
    clusters : array-like of shape (R,), default=None
        Cluster of each unit; -1 for a unit that is in none.
    module : str, default=''
        Name of the module, for the title.
    axes : pair of str, default=('', '')
        Labels of the two axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.

    Examples
    --------
    >>> from lorakit.plotting import MSUMapDisplay
    >>> from lorakit.testing import make_adapters
    >>> display = MSUMapDisplay.from_adapters(make_adapters(random_state=0), method="pca")
    >>> display.points.shape
    (20, 2)
    """

    def __init__(
        self,
        points: ArrayLike,
        owners: ArrayLike,
        tasks: Sequence[str],
        *,
        clusters: ArrayLike | None = None,
        module: str = "",
        axes: tuple[str, str] = ("", ""),
    ) -> None:
        self.points = np.asarray(points, dtype=np.float64)
        self.owners = np.asarray(owners)
        self.tasks = list(tasks)
        self.clusters = None if clusters is None else np.asarray(clusters)
        self.module = module
        self.axes = axes

    @classmethod
    def from_adapters(
        cls,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        module: str | None = None,
        method: Method = "tsne",
        tasks: Mapping[str, str] | None = None,
        random_state: Any = 0,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Place the units of all adapters at one module and draw.

        Parameters
        ----------
        adapters : AdapterSet or list of Adapter
            Of any ranks, with at least two units in all.
        module : str, default=None
            Name of the module; None takes the first.
        method : {'tsne', 'pca'}, default='tsne'
            t-SNE keeps neighbours together, and its distances mean nothing else; PCA shows true distances along the
            two directions of largest variance.
        tasks : mapping of adapter name to task, default=None
            The task of each adapter, for several adapters of one task. An adapter that is not named is a task of its
            own.
        random_state : int, RandomState or None, default=0
            Seeds t-SNE.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        MSUMapDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        IncompatibleAdaptersError
            If the adapters do not fit together.
        ValueError
            If no adapter has ``module``, there is one unit only, or ``method`` is not one of these.
        """
        return cls._placed(adapters, module, method, tasks, random_state, None).plot(ax=ax, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        merger: Any,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        module: str | None = None,
        method: Method = "tsne",
        tasks: Mapping[str, str] | None = None,
        random_state: Any = 0,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Place the units of the adapters at one module, with the clusters that a merger found, and draw.

        Parameters
        ----------
        merger : LegoMerger
            Fitted on ``adapters``.
        adapters, module, method, tasks, random_state, ax
            As in :meth:`from_adapters`, which also says what is raised.
        **kwargs
            For :meth:`plot`, where ``color_by`` is 'cluster' unless given.

        Returns
        -------
        MSUMapDisplay
        """
        return cls._placed(adapters, module, method, tasks, random_state, merger).plot(
            ax=ax, **{"color_by": "cluster"} | kwargs
        )

    @classmethod
    def _placed(
        cls,
        adapters: AdapterSet | Iterable[Adapter],
        module: str | None,
        method: Method,
        tasks: Mapping[str, str] | None,
        random_state: Any,
        merger: Any,
    ) -> Self:
        X = check_adapters(adapters)
        module = X.module_names[0] if module is None else module
        if module not in X.module_names:
            raise ValueError(f"no adapter has the module {module!r}; they have {list(X.module_names)[:3]}, ...")
        if merger is not None:
            cluster_composition(merger, X)  # raises if it has no clusters of these units
        of_task = [(tasks or {}).get(name, name) for name in X.names]
        names = list(dict.fromkeys(of_task))
        with one_thread():
            updates = read_module(X.only(module), module, None)
            owners = np.repeat([names.index(task) for task in of_task], [update.rank for update in updates])
            points, axes = _place(frame_of([pool_msus(updates).mT]).blocks[0].mT.numpy(), method, random_state)
        clusters = None if merger is None else merger.labels_[module]
        return cls(points, owners, names, clusters=clusters, module=module, axes=axes)

    def plot(self, ax: Axes | None = None, *, color_by: Literal["task", "cluster"] = "task", **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        color_by : {'task', 'cluster'}, default='task'
            A marker and colour for each task; or each unit as the number of its cluster, where a unit that is alone in
            its cluster, or takes no part, is a grey point.
        **kwargs
            For ``Axes.scatter``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``color_by`` is not one of these, or the clusters are not known.
        """
        if color_by not in ("task", "cluster"):
            raise ValueError(f"color_by must be 'task' or 'cluster', got {color_by!r}")
        if color_by == "cluster" and self.clusters is None:
            raise ValueError("the clusters are not known; make the display with from_estimator, of a fitted LegoMerger")
        ax = self._start(ax, size=(6.4, 4.4))
        if color_by == "task":
            for i, task in enumerate(self.tasks):
                here = self.points[self.owners == i]
                options = point_options(i) | {"label": shown_name(task), "s": 42}
                ax.scatter(here[:, 0], here[:, 1], **options | kwargs)
            legend_beside(ax)
        else:
            self._plot_clusters(ax, kwargs)
        ax.set_xlabel(self.axes[0])
        ax.set_ylabel(self.axes[1])
        ax.set_title(f"units of {shown_module(self.module)}", loc="left", fontsize=10)
        ax.margins(0.08)
        if not any("%" in label for label in self.axes):
            ax.set_xticks([])
            ax.set_yticks([])
        return self

    def _plot_clusters(self, ax: Axes, kwargs: dict[str, Any]) -> None:
        clusters: NDArray[Any] = self.clusters  # type: ignore[assignment]  # checked
        numbers, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
        shared = numbers[sizes > 1]
        alone = ~np.isin(clusters, shared)
        options: dict[str, Any]
        if alone.any():
            options = {"color": GREY, "marker": "o", "s": 14, "linewidths": 0, "label": "alone in its cluster"}
            ax.scatter(*self.points[alone].T, **options | kwargs)
        for i, number in enumerate(shared):
            size = 46 * len(str(number))  # a marker of two digits is as wide as one of one digit
            options = {"color": COLOURS[i % len(COLOURS)], "marker": f"${number}$", "s": size, "linewidths": 0.4}
            ax.scatter(*self.points[clusters == number].T, **options | kwargs)
        if alone.any():
            legend_beside(ax)


def _place(rows: NDArray[np.float64], method: Method, random_state: Any) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """Return the points of the units, of shape (R, 2), and what the axes are."""
    if len(rows) < 2:
        raise ValueError(f"a map needs at least two units, got {len(rows)}")
    if method == "pca":
        pca = PCA(2 if min(rows.shape) > 1 else 1, svd_solver="full").fit(rows)
        points = pca.transform(rows)
        shares = [*pca.explained_variance_ratio_, 0.0][:2]
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
        return points, tuple(f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(shares))  # type: ignore[return-value]
    if method != "tsne":
        raise ValueError(f"method must be 'tsne' or 'pca', got {method!r}")
    scaled = rows / max(np.linalg.norm(rows, axis=1).max(), np.finfo(np.float64).tiny)
    # no more neighbours than a third of the units
    perplexity = max(min(30.0, (len(rows) - 1) / 3), 1.0)
    init: Any = "pca" if min(rows.shape) > 1 else "random"
    tsne = TSNE(perplexity=perplexity, init=init, learning_rate="auto", random_state=random_state)
    return tsne.fit_transform(scaled).astype(np.float64), ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
