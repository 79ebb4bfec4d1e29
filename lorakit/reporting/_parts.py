"""What a page is made of: sections of texts, tables, figures and code, before they become HTML."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from markupsafe import Markup

# Where a colour gets darker. The steps never depend on the data: a cosine of .05 looks alike on every page.
STEPS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, what it is sorted by, and how it looks."""

    text: str
    value: float | str | None = None  # what it is sorted by; its text if None
    look: str = ""
    title: str = ""  # in full, where the text is shortened
    bar: str = field(default_factory=Markup)


@dataclass(frozen=True)
class Table:
    """A table with a caption. The first column names the rows; the last ``numbers`` columns hold numbers."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: int
    sortable: bool = True
    tall: bool = False  # scrolls inside its frame
    grid: bool = False  # coloured cells: few of them have borders
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Legend:
    """One curve's name and how it is drawn."""

    name: str
    mark: Markup


@dataclass(frozen=True)
class Figure:
    """A drawing, with its legend and its numbers as a table."""

    svg: Markup
    caption: str
    legend: Sequence[Legend] = ()
    numbers: Table | None = None
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    paragraphs: Sequence[str]
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    title: str
    code: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Scale:
    """What the colours of the tables above mean."""

    looks: Sequence[tuple[str, str]]  # class and text
    kind: ClassVar[str] = "scale"


@dataclass(frozen=True)
class Advice:
    """Something to know, and what to do about it."""

    level: str  # 'warning' or 'note'
    seen: str
    remedy: str


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    name: str  # of its anchor
    title: str
    parts: Sequence[Text | Table | Figure | Code | Scale]


@dataclass(frozen=True)
class Page:
    """All that is shown."""

    title: str
    eyebrow: str
    summary: Sequence[str]
    tiles: Sequence[tuple[str, str]]  # a number and what it is
    advice: Sequence[Advice]
    sections: Sequence[Section] = field(default_factory=list)


SIGNED = Scale(
    [
        *reversed([(f"n{i}", f"{'≤ ' if i == len(STEPS) else ''}−{low:g}") for i, low in enumerate(STEPS, 1)]),
        ("z", "0"),
        *((f"p{i}", f"{'≥ ' if i == len(STEPS) else ''}{low:g}") for i, low in enumerate(STEPS, 1)),
    ]
)
KEPT = Scale([("n3", "< 0"), *((f"s{i}", f"{'≥ ' if i == 9 else ''}{i / 10:g}") for i in range(10))])


def signed_look(value: float) -> str:
    """Return the class of a cosine: orange below 0, blue above, with fixed steps.

    Examples
    --------
    >>> signed_look(0.05), signed_look(-0.9), signed_look(0.001)
    ('p2', 'n6', 'z')
    """
    if not isfinite(value):
        return "none"
    step = bisect_right(STEPS, abs(round(value, 9)))
    return "z" if step == 0 else f"{'p' if value > 0 else 'n'}{step}"


def kept_look(value: float) -> str:
    """Return the class of a share that is kept, between 0 and 1.

    Examples
    --------
    >>> kept_look(0.57), kept_look(1.0), kept_look(-0.1)
    ('s5', 's9', 'n3')
    """
    if not isfinite(value):
        return "none"
    return "n3" if value < -0.005 else f"s{min(max(int(value * 10 + 1e-9), 0), 9)}"


def number(value: float, digits: int = 3) -> str:
    """Write a number, with a true minus sign, and "–" for one that there is not.

    Examples
    --------
    >>> number(-0.25), number(float("nan")), number(-0.0001), number(12345.6, 1)
    ('−0.250', '–', '0.000', '12,345.6')
    """
    if not isfinite(value):
        return "–"
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(f"{value:.{digits}f}") == 0 else text.replace("-", "−")


def cell(value: float, digits: int = 3, look: str = "", title: str = "") -> Cell:
    """Return the cell of a number."""
    return Cell(number(value, digits), float(f"{value:.6g}") if isfinite(value) else None, look, title)


def shown(name: str, most: int = 48) -> str:
    """Return a name, without its middle if it is too long to be read.

    Examples
    --------
    >>> shown("law"), shown("a" * 60 + "z", 9)
    ('law', 'aaaa…aaaz')
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def named(name: str, most: int = 48) -> Cell:
    """Return the cell of a name."""
    return Cell(shown(name, most), name, title=name if len(name) > most else "")
