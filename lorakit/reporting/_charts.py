"""Line charts and bars as SVG: drawn here, so that a page needs no other file and its style sets the colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log2, log10

import numpy as np
from markupsafe import Markup, escape

from ..files.printable import printable
from ._measures import Floats
from ._parts import Legend, number, shown

_WIDTH, _HEIGHT = 440, 290  # about the width of a phone, so that text is never drawn much smaller than it is set
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 42
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "10 4")
_MARKS = ("circle", "square", "triangle", "diamond", "cross")
MOST_CURVES = 8  # with a look of their own; of more, all are drawn alike
_LONG = 17  # points; of more, the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """A line: its name, its values, and its look ('0' to '7', 'many', 'mean' or 'result')."""

    name: str
    values: Floats
    look: str


def look_of(i: int, n: int) -> str:
    """Return the look of the i-th of n adapters."""
    return str(i) if n <= MOST_CURVES else "many"


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    description: str,
    across: str,
    up: str,
    first: int = 1,
    top: float | None = None,
    log: bool = False,
    ticks: Sequence[str] | None = None,
) -> Markup:
    """Draw curves over whole numbers.

    Parameters
    ----------
    curves : sequence of Curve
        What to draw; values that are not finite, or not positive on a logarithmic axis, are left out.
    title, description : str
        What somebody is told who does not see it.
    across, up : str
        Labels of the axes.
    first : int, default=1
        The whole number of the first value.
    top : float, optional
        Upper end of the vertical axis, which then begins at 0. Defaults to what the values need.
    log : bool, default=False
        Whether the vertical axis is logarithmic.
    ticks : sequence of str, optional
        Names of the values across, instead of numbers.
    """
    longest = max((len(curve.values) for curve in curves), default=1)
    squeezed = ticks is None and longest > _LONG and first > 0
    last = first + max(longest - 1, 1)

    def x(value: float) -> float:
        share = log2(value / first) / log2(last / first) if squeezed else (value - first) / (last - first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    marks_up, y = _vertical(curves, top, log)
    drawn = [
        *(_tick_up(y(value), text) for value, text in marks_up),
        *(_tick_across(x(value), text) for value, text in _horizontal(first, last, squeezed, ticks)),
        _label(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 6, across),
        _label(12, _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2, up, turned=True),
        *(_line(curve, x, y, first, log) for curve in curves),
    ]
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, f"{printable(title)}. {printable(description)}", Markup("").join(drawn)
    )


def legend(curves: Sequence[Curve]) -> list[Legend]:
    """Return the legend of curves; those that are drawn alike have one entry."""
    many = [curve for curve in curves if curve.look == "many"]
    found = [Legend(f"each of the {len(many)} adapters", _sample("many"))] if many else []
    return found + [Legend(shown(curve.name, 32), _sample(curve.look)) for curve in curves if curve.look != "many"]


def bar(value: float, *, mark: float | None = None, most: float = 1.0, look: str = "0") -> Markup:
    """Draw a value as a bar, and another one as a tick over it; the numbers stand beside it."""
    width = round(100 * min(max(value / most, 0.0), 1.0), 2) if most > 0 else 0
    tick = Markup("")
    if mark is not None and most > 0:
        at = round(100 * min(max(mark / most, 0.0), 1.0), 2)
        tick = Markup('<rect class="tick" x="{}%" y="0" width="2" height="14"/>').format(min(at, 99.2))
    return Markup(
        '<svg class="bar" aria-hidden="true" focusable="false"><rect class="rail" width="100%" height="8" y="3"/>'
        '<rect class="fill f{}" width="{}%" height="8" y="3"/>{}</svg>'
    ).format(look, width, tick)


def _vertical(
    curves: Sequence[Curve], top: float | None, log: bool
) -> tuple[list[tuple[float, str]], Callable[[float], float]]:
    values = np.concatenate([curve.values for curve in curves]) if curves else np.zeros(0)
    values = values[np.isfinite(values)]
    span = _HEIGHT - _TOP - _BOTTOM
    if log and (values > 0).any():
        # what is a million times smaller than the largest is round-off, and would flatten all else
        high = log10(float(values.max()) * 1.1)
        low = max(log10(float(values[values > 0].min()) * 0.9), high - 6)
        low = min(low, high - 0.3)
        marks = [(10.0**e, f"1e{e}" if abs(e) > 3 else f"{10.0**e:g}") for e in range(floor(low) + 1, floor(high) + 1)]
        if len(marks) < 2:
            marks = [(m * 10.0**e, f"{m * 10.0**e:g}") for e in range(floor(low), floor(high) + 1) for m in (1, 2, 5)]
            marks = [(value, text) for value, text in marks if low <= log10(value) <= high]
        return marks, lambda value: _TOP + span * (high - log10(value)) / (high - low)
    largest = top if top is not None else float(values.max(initial=0.0)) * 1.05 or 1.0
    step = _step(largest)
    marks = [(i * step, f"{i * step:g}") for i in range(int(largest / step + 1e-9) + 1)]
    return marks, lambda value: _TOP + span * (1 - value / largest)


def _step(largest: float) -> float:
    """Return a round distance of four to eight ticks."""
    power = 10.0 ** floor(log10(largest / 4))
    return float(max((m * power for m in (1, 2, 2.5, 5) if m * power <= largest / 4), default=power))


def _horizontal(first: int, last: int, squeezed: bool, ticks: Sequence[str] | None) -> list[tuple[int, str]]:
    if ticks is not None:
        every = -(-len(ticks) // 8)
        return [(first + i, shown(text, 14)) for i, text in enumerate(ticks) if i % every == 0]
    if squeezed:
        return [(2**e, str(2**e)) for e in range(last.bit_length()) if first <= 2**e <= last]
    every = max(1, -(-(last - first) // 8))
    return [(i, str(i)) for i in range(first, last + 1, every)]


def _line(curve: Curve, x: Callable[[float], float], y: Callable[[float], float], first: int, log: bool) -> Markup:
    floor_y = _HEIGHT - _BOTTOM
    points = [
        (round(x(first + i), 1), round(min(y(float(value)), floor_y), 1))
        for i, value in enumerate(curve.values)
        if np.isfinite(value) and (value > 0 or not log)
    ]
    path = Markup(" ").join(Markup("{},{}").format(*point) for point in points)
    line = Markup('<polyline class="line l{}"{} points="{}"/>').format(curve.look, _dashes(curve.look), path)
    n = len(points)
    marked = points if n <= _LONG else [points[2**e - 1] for e in range(n.bit_length()) if 2**e <= n]
    return line + Markup("").join(_mark(curve.look, *point) for point in marked)


def _dashes(look: str) -> Markup:
    dash = _DASHES[int(look) % len(_DASHES)] if look.isdigit() else ""
    return Markup(' stroke-dasharray="{}"').format(dash) if dash else Markup("")


def _mark(look: str, x: float, y: float) -> Markup:
    if not look.isdigit():
        return Markup("")
    kind = _MARKS[int(look) % len(_MARKS)]
    shapes = {
        "circle": f"M{x - 3},{y}a3,3 0 1 0 6,0a3,3 0 1 0 -6,0",
        "square": f"M{x - 2.7:.1f},{y - 2.7:.1f}h5.4v5.4h-5.4z",
        "triangle": f"M{x},{y - 3.5:.1f}l3.5,6h-7z",
        "diamond": f"M{x},{y - 3.8:.1f}l3.8,3.8l-3.8,3.8l-3.8,-3.8z",
        "cross": f"M{x - 3:.1f},{y - 3:.1f}l6,6m0,-6l-6,6",
    }
    return Markup('<path class="mark m{} {}" d="{}"/>').format(look, kind, shapes[kind])


def _sample(look: str) -> Markup:
    line = Markup('<line class="line l{}"{} x1="1" y1="7" x2="31" y2="7"/>').format(look, _dashes(look))
    return Markup('<svg class="sample" width="32" height="14" aria-hidden="true" focusable="false">{}{}</svg>').format(
        line, _mark(look, 16, 7)
    )


def _tick_up(y: float, text: str) -> Markup:
    at = round(y, 1)
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, _WIDTH - _RIGHT, at, at)
    return line + Markup('<text x="{}" y="{}" class="end">{}</text>').format(_LEFT - 6, round(y + 4, 1), text)


def _tick_across(x: float, text: str) -> Markup:
    anchor = "end" if len(text) > 3 and x > _WIDTH - 40 else "middle"
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(round(x, 1), _HEIGHT - _BOTTOM + 16, anchor, text)


def _label(x: float, y: float, text: str, *, turned: bool = False) -> Markup:
    turn = Markup(' transform="rotate(-90 {} {})"').format(x, y) if turned else Markup("")
    return Markup('<text x="{}" y="{}" class="middle label"{}>{}</text>').format(x, y, turn, escape(text))


def table_of(curves: Sequence[Curve], first: int) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the numbers of curves at few places: titles, and a row for each curve."""
    longest = max((len(curve.values) for curve in curves), default=0)
    at = [i for i in range(longest) if i + first in {2**e for e in range(20)} or i == longest - 1]
    rows = [
        (curve.name, [number(float(curve.values[i])) if i < len(curve.values) else "–" for i in at]) for curve in curves
    ]
    return [str(i + first) for i in at], rows
