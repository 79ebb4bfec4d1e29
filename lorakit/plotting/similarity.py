"""Heat map of the similarities of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..metrics import cosine_matrix, subspace_overlap
from ..metrics.similarity import Side
from ._style import Display, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measure = Literal["cosine", "overlap"]
_MOST_NUMBERS = 14  # adapters; with more, numbers in the cells cannot be read


class AdapterSimilarityDisplay(Display):
    """Heat map of the similarities of adapters.

    Make one with :meth:`from_adapters`.

    Parameters
    ----------
    matrix : array-like of shape (n_adapters, n_adapters)
        Similarities. The diagonal is not drawn, as every adapter equals itself.
    names : sequence of str
        Names of the adapters.
    label : str, default='similarity'
        Label of the colour bar: what the numbers are.
    signed : bool, default=False
        Whether similarities can be negative; the colours are then centred at 0.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.
    image_ : matplotlib AxesImage
        The coloured cells.
    text_ : list of matplotlib Text
        The numbers in the cells; none if there are many adapters.

    See Also
    --------
    lorakit.metrics.cosine_matrix : The numbers.
    lorakit.metrics.subspace_overlap : The other numbers.

    Examples
    --------
    >>> from lorakit.plotting import AdapterSimilarityDisplay
    >>> from lorakit.testing import make_adapters
    >>> display = AdapterSimilarityDisplay.from_adapters(make_adapters(random_state=0))
    >>> display.matrix.shape
    (3, 3)
    """

    def __init__(
        self, matrix: ArrayLike, names: Sequence[str], *, label: str = "similarity", signed: bool = False
    ) -> None:
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.names = list(names)
        self.label = label
        self.signed = signed
        if self.matrix.shape != (len(self.names), len(self.names)):
            raise ValueError(
                f"matrix must have a row and a column for each of {len(self.names)} names; got {self.matrix.shape}"
            )

    @classmethod
    def from_adapters(
        cls,
        adapters: AdapterSet | Iterable[Adapter],
        *,
        measure: Measure = "cosine",
        side: Side = "out",
        n_jobs: int | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Measure the adapters and draw.

        Parameters
        ----------
        adapters : AdapterSet or list of Adapter
            Two or more.
        measure : {'cosine', 'overlap'}, default='cosine'
            Cosines of the updates, or overlaps of their subspaces.
        side : {'out', 'in'}, default='out'
            For the overlap: the subspaces of outputs that updates write to, or of inputs that they read.
        n_jobs : int or None, default=None
            Workers of the loop over modules.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        AdapterSimilarityDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        IncompatibleAdaptersError
            If the adapters do not fit together.
        ValueError
            If ``measure`` or ``side`` is not one of these.
        """
        X = AdapterSet(adapters)
        if measure == "cosine":
            display = cls(cosine_matrix(X, n_jobs=n_jobs), X.names, label="cosine of the updates", signed=True)
        elif measure == "overlap":
            what = {"out": "outputs", "in": "inputs"}.get(side, side)
            matrix = subspace_overlap(X, side=side, n_jobs=n_jobs)
            display = cls(matrix, X.names, label=f"overlap of the subspaces of {what}")
        else:
            raise ValueError(f"measure must be 'cosine' or 'overlap', got {measure!r}")
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, *, values_format: str = ".2f", **kwargs: Any) -> Self:
        """Draw.

        Colours go from -1 to 1, or from 0 to 1 for a measure without a sign, whatever values occur: adapters that have
        nothing in common look alike in every picture. Pass ``vmax`` and ``vmin`` to spread small differences.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        values_format : str, default='.2f'
            Format of the numbers in the cells.
        **kwargs
            For ``Axes.imshow``.

        Returns
        -------
        self
        """
        n = len(self.names)
        side = 2.6 + 0.45 * n
        ax = self._start(ax, size=(side + 0.9, side))
        shown = np.ma.masked_invalid(self.matrix)
        shown[np.arange(n), np.arange(n)] = np.ma.masked
        # light to dark where there is one direction; orange to purple around white where there are two
        options: dict[str, Any] = {
            "cmap": "PuOr" if self.signed else "Blues",
            "vmin": -1 if self.signed else 0,
            "vmax": 1,
        } | kwargs
        self.image_ = ax.imshow(shown, **options)
        ax.set_facecolor("#CFCFCF")
        names = [shown_name(name) for name in self.names]
        ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(n), names)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        self.text_ = []
        if n <= _MOST_NUMBERS:
            for i, j in zip(*np.nonzero(~np.ma.getmaskarray(shown)), strict=True):
                self.text_.append(
                    ax.text(
                        j,
                        i,
                        _number(shown[i, j], values_format),
                        ha="center",
                        va="center",
                        fontsize=9,
                        color=_ink(self.image_.cmap(self.image_.norm(shown[i, j]))),
                    )
                )
        if n == 1:
            self.text_.append(ax.text(0, 0, "one adapter:\nnothing to\ncompare it with", ha="center", va="center"))
        ax.figure.colorbar(self.image_, ax=ax, label=self.label, shrink=0.8)
        return self


def _number(value: float, values_format: str) -> str:
    text = format(value, values_format)
    return text.removeprefix("-") if float(text) == 0 else text  # no -0.00


def _ink(rgba: Any) -> str:
    """Black on a light cell, white on a dark one."""
    return "black" if np.dot(rgba[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
