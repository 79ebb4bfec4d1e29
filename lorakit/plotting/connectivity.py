"""Losses along the line between two adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from ..adapters import Adapter
from ..metrics import ModeConnectivity, mode_connectivity
from ._style import Display, line_options, shown_name, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"updates": "updates (multiplied merge)", "factors": "factors (direct merge)"}


class ModeConnectivityDisplay(Display):
    """Loss along the line between two adapters, with the chord that a barrier rises above.

    Make one with :meth:`from_adapters`, or :meth:`from_curves` of what was measured.

    Parameters
    ----------
    curves : mapping of str to ModeConnectivity
        From :func:`lorakit.metrics.mode_connectivity`, by the name of the curve; all of the same two adapters.
    loss_name : str, default='loss'
        What the vertical axis says.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        What holds the axes.
    lines_ : list of matplotlib Line2D
        The curves; the chord is not among them.

    Examples
    --------
    >>> from lorakit.metrics import relative_error
    >>> from lorakit.plotting import ModeConnectivityDisplay
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(2, ranks=4, random_state=0)
    >>> def loss(adapter):
    ...     return (relative_error(adapter, x) + relative_error(adapter, y)) / 2
    >>> display = ModeConnectivityDisplay.from_adapters(x, y, loss, alphas=5)
    >>> [round(curve.barrier, 2) for curve in display.curves.values()]
    [0.0, 0.15]
    """

    def __init__(self, curves: Mapping[str, ModeConnectivity], *, loss_name: str = "loss") -> None:
        self.curves = dict(curves)
        self.loss_name = loss_name
        pairs = {curve.names for curve in self.curves.values()}
        if len(pairs) != 1:
            raise ValueError(f"the curves must be of the same two adapters; got {sorted(pairs)}")

    @classmethod
    def from_adapters(
        cls,
        x: Adapter,
        y: Adapter,
        loss: Callable[[Adapter], float],
        *,
        alphas: int | Sequence[float] = 11,
        spaces: Sequence[Any] = ("updates", "factors"),
        loss_name: str = "loss",
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Measure the loss along the line, in each space, and draw.

        Parameters
        ----------
        x, y : Adapter
            The ends.
        loss : callable
            From an adapter to a number; called once for each alpha and space.
        alphas : int or sequence of float, default=11
            As in :func:`lorakit.metrics.mode_connectivity`.
        spaces : sequence of {'updates', 'factors'}, default=('updates', 'factors')
            What is interpolated; each space gives a curve.
        loss_name : str, default='loss'
            What the vertical axis says.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        ModeConnectivityDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        IncompatibleAdaptersError, ValueError
            For the reasons that :func:`lorakit.metrics.mode_connectivity` names.
        """
        curves = [mode_connectivity(x, y, loss, alphas=alphas, space=space) for space in spaces]
        return cls.from_curves(curves, loss_name=loss_name, ax=ax, **kwargs)

    @classmethod
    def from_curves(
        cls,
        curves: ModeConnectivity | Sequence[ModeConnectivity] | Mapping[str, ModeConnectivity],
        *,
        loss_name: str = "loss",
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw what was measured.

        Parameters
        ----------
        curves : ModeConnectivity, a sequence of those, or a mapping of str to those
            All of the same two adapters. Without names they are called by what was interpolated.
        loss_name : str, default='loss'
            What the vertical axis says.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        ModeConnectivityDisplay

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the curves are of different adapters, or there is none.
        """
        if isinstance(curves, ModeConnectivity):
            curves = [curves]
        named = curves if isinstance(curves, Mapping) else {_NAMES[curve.space]: curve for curve in curves}
        return cls(named, loss_name=loss_name).plot(ax=ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw; the legend gives each curve's barrier.

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
        for i, (name, curve) in enumerate(self.curves.items()):
            options = line_options(i, f"{name}: barrier {_above_round_off(curve):.3g}")
            self.lines_ += ax.plot(curve.alphas, curve.losses, **options | kwargs)
        first = next(iter(self.curves.values()))
        ax.plot([0, 1], first.losses[[0, -1]], color="black", linewidth=1, linestyle=":", label="chord", zorder=0)
        x, y = map(shown_name, first.names)
        ax.set_xlabel(rf"$\alpha$, from {y} (0) to {x} (1)")
        ax.set_ylabel(self.loss_name)
        tidy(ax, grid="both")
        # above: the curves may be anywhere
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False, handlelength=3)
        return self


def _above_round_off(curve: ModeConnectivity) -> float:
    """Return the barrier; 0 where it is what sums in float32 leave of none."""
    return curve.barrier if curve.barrier > 1e-6 * abs(curve.losses).max() else 0.0
