"""One look for all pictures: colours that the colour-blind can tell apart, and marks that need no colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++", "oo", "--", "||")
GREY = "#767676"  # of what is there to compare with
PALE = "#DDDDDD"  # of grids


class Look(NamedTuple):
    """How one adapter, task or method is drawn in every picture."""

    colour: str
    marker: str
    dashes: Any
    hatch: str


def look(i: int) -> Look:
    """Return the look of the i-th of several things: seventy differ in colour or marker, and neighbours in both."""
    return Look(
        COLOURS[i % len(COLOURS)],
        _MARKERS[i % len(_MARKERS)],
        _DASHES[i % len(_DASHES)],
        _HATCHES[i % len(_HATCHES)],
    )


def line_options(i: int, name: str) -> dict[str, Any]:
    """Return what ``Axes.plot`` is given for the i-th of several curves, of this name."""
    colour, marker, dashes, _ = look(i)
    return {"color": colour, "marker": marker, "linestyle": dashes, "label": shown_name(name)}


def point_options(i: int) -> dict[str, Any]:
    """Return what ``Axes.scatter`` is given for the i-th of several clouds."""
    return {"color": look(i).colour, "marker": look(i).marker, "linewidths": 0}


def require_matplotlib() -> None:
    """Raise an ImportError that says what to install."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("lorakit.plotting needs matplotlib: pip install 'lorakit[plot]'") from error


class Display:
    """What all displays share: they draw into one pair of axes, and remember it."""

    ax_: Axes
    figure_: Figure

    def _start(self, ax: Axes | None, *, size: tuple[float, float]) -> Axes:
        require_matplotlib()
        if ax is None:
            from matplotlib import pyplot as plt

            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_ = ax
        self.figure_ = ax.figure  # type: ignore[assignment]  # or a part of a figure
        return ax


def tidy(ax: Axes, *, grid: str | None = "y") -> None:
    """Leave the two spines that carry numbers, and a pale grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        ax.grid(axis=grid, color=PALE, linewidth=0.8)  # type: ignore[arg-type]
        ax.set_axisbelow(True)


def legend_beside(ax: Axes, **kwargs: Any) -> None:
    """Put the legend to the right of the axes, where it hides no data."""
    if not ax.get_legend_handles_labels()[0]:  # nothing was drawn
        return
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, **kwargs)


def rank_axis(ax: Axes, ks: Any, *, log: bool) -> None:
    """Label an axis of ranks with the ranks that occur."""
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xticks(list(ks), [f"{k:g}" for k in ks])
    ax.minorticks_off()
    ax.set_xlabel("rank of the merge, $k$")


def whole_numbers(axis: Any) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def shown_name(name: str) -> str:
    r"""Return a name as matplotlib is to be given it: without mathematics, and never hidden from a legend.

    Examples
    --------
    >>> shown_name("a$b$"), shown_name("_mine")
    ('a\\$b\\$', ' _mine')
    """
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def shown_module(module: str, *, most: int = 44) -> str:
    """Return a module's name, or the end of one that is too long for a title.

    Examples
    --------
    >>> shown_module("encoder.layer.0.attention.self.query", most=20)
    '...on.self.query'
    """
    return shown_name(module if len(module) <= most else "..." + module[-(most - 4) :])
