"""
Curves of several methods over seeds, drawn as lorakit.plotting draws
=====================================================================
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
GREY = "#767676"


def panels(n: int, *, size: tuple[float, float] = (4.2, 3.4), share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with n pairs of axes side by side."""
    figure, axes = plt.subplots(
        1, n, figsize=(size[0] * n, size[1]), layout="constrained", squeeze=False, sharey=share_y
    )
    return figure, list(axes[0])


def curves(ax: Axes, x: Sequence[float], by_name: Mapping[str, Any], *, variants: int = 1, log: bool = False) -> None:
    """Draw one curve a method, of shape (seeds, points): the mean, with bars of one standard deviation over seeds.

    Each method comes in so many variants, one after the other: of one colour, the later ones dashed and hollow.
    """
    for i, (name, values) in enumerate(by_name.items()):
        values = np.atleast_2d(np.asarray(values, dtype=float))
        method, variant = divmod(i, variants)
        style: dict[str, Any] = {
            "color": COLOURS[method % len(COLOURS)],
            "marker": MARKERS[method % len(MARKERS)],
            "linestyle": DASHES[(variant if variants > 1 else method) % len(DASHES)],
            "markerfacecolor": "white" if variant else None,
        }
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else None
        ax.errorbar(x, values.mean(axis=0), spread, markersize=5, elinewidth=0.9, label=name, **style)
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xticks(list(x), [f"{value:g}" for value in x])
    ax.minorticks_off()
    tidy(ax)


def legend_below(figure: Figure, ax: Axes, *, columns: int) -> None:
    """Put one legend for all axes below them; lines to compare with, which matplotlib names first, come last."""
    found = sorted(zip(*ax.get_legend_handles_labels(), strict=True), key=lambda entry: not isinstance(entry[0], tuple))
    handles, labels = zip(*found, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def tidy(ax: Axes) -> None:
    """Leave the two spines that carry numbers, and a pale grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a picture and forget it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
