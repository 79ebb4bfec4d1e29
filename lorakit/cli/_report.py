"""Results for people, as tables, and for programs, as one JSON object. Both show the same dict."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from ..files.printable import printable
from ._streams import say


def show_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    # default=repr: a parameter may be anything that the user wrote
    say(json.dumps(_finite(result), indent=2, default=repr, allow_nan=False))


def _finite(value: Any) -> Any:
    """Return a value with None for every number that JSON cannot say."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def show_run(result: Mapping[str, Any]) -> None:
    """Print the closing table of a merge or a prune, and its totals."""
    rows = result["adapters"]
    shown: list[tuple[str, str, Callable[[Any], str]]] = [
        ("adapter", "name", str),
        ("strength", "strength", "{:g}".format),
        ("rank in", "rank_in", ranks_text),
        ("rank out", "rank_out", ranks_text),
        ("bytes in", "bytes_in", bytes_text),
        ("bytes out", "bytes_out", bytes_text),
        ("cosine", "cosine", number_text),
        ("relative error", "relative_error", number_text),
    ]
    present = [column for column in shown if column[1] in rows[0]]
    show_table(
        [title for title, _, _ in present],
        [[text(row[key]) for _, key, text in present] for row in rows],
        left=1,
    )
    if "cosine" in rows[0] and "rank_out" not in rows[0] and len(rows) > 1:  # a merge that was made, and no prune
        say(f"\n{_what_is_usual(len(rows))}")
    about = "about " if result["dry_run"] else ""
    scale = result["parameters"].get("scale")
    how = result["method"] if scale is None else f"{result['method']}, scale {scale}{_factor_text(result['factor'])}"
    say(
        f"\n{how} | rank {ranks_text(result['rank_out'])} | {result['modules']} modules | "
        f"{bytes_text(result['bytes_in'])} in, {about}{bytes_text(result['bytes_out'])} out | "
        f"{result['seconds']:.1f} s"
    )
    end = "dry run, nothing written; would write" if result["dry_run"] else "wrote"
    say(f"{end} {result['output']} ({result['dtype']}, {result['layout']})")
    if result["report"] is not None:
        say(f"{end} {result['report']}")
    if result["python"] is not None:
        say(f"in Python: {result['python']}")


def _what_is_usual(count: int) -> str:
    """Say what the numbers of a table of several adapters are to be compared with, which a newcomer cannot know.

    Examples
    --------
    >>> print(_what_is_usual(4))
    4 adapters that have nothing in common can each have a cosine of 0.50 with their merge, so errors near 1 are
    usual. Neither number says how much accuracy is kept.
    """
    return (
        f"{count} adapters that have nothing in common can each have a cosine of {count**-0.5:.2f} with their merge, "
        "so errors near 1 are\nusual. Neither number says how much accuracy is kept."
    )


def _factor_text(factor: Mapping[str, float] | None) -> str:
    """Say by how much the method's own update was multiplied, where the scale does not say it.

    Examples
    --------
    >>> _factor_text({"min": 1.25, "median": 1.5, "max": 2.0})
    ' (times 1.5; 1.25 to 2 by module)'
    """
    if factor is None:
        return ""
    low, median, high = (f"{factor[name]:.3g}" for name in ("min", "median", "max"))
    return f" (times {median})" if low == high else f" (times {median}; {low} to {high} by module)"


def show_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> None:
    """Print a table on stdout whose first ``left`` columns hold words and the others numbers.

    What is not printable in a cell is escaped.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Not a terminal: a file or a program reads it, and no width should cut a name.
    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, title in enumerate(titles):
        table.add_column(printable(title), justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    with console.capture() as drawn:
        console.print(table)
    # Not by rich, which would end the process where the reader of a pipe has gone away
    sys.stdout.write(drawn.get())
    sys.stdout.flush()


def ranks_text(ranks: Sequence[int]) -> str:
    """Write ranks in one cell.

    Examples
    --------
    >>> ranks_text([8]), ranks_text([4, 8]), ranks_text([1, 2, 3, 9])
    ('8', '4/8', '1-9')
    """
    return "/".join(map(str, ranks)) if len(ranks) <= 3 else f"{ranks[0]}-{ranks[-1]}"


def bytes_text(size: int) -> str:
    """Write a size in the unit that keeps it short.

    Examples
    --------
    >>> bytes_text(512), bytes_text(1_336_624)
    ('512 B', '1.3 MB')
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def number_text(value: float | None) -> str:
    """Write a number with four decimals, "-" for one that is not finite."""
    return "-" if value is None else f"{value:.4f}"
