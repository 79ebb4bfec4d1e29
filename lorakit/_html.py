"""Tables that notebooks show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .files.printable import printable


def html_table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> str:
    """Return a table whose first ``words`` columns hold words, the first of them names, and the others numbers.

    Every text is escaped. There is no style but the direction of the numbers: a notebook has its own.

    Examples
    --------
    >>> html_table("two", ["adapter", "rank"], [["<law>", 8]])
    '<table><caption>two</caption><thead><tr><th scope="col">adapter</th><th scope="col">rank</th></tr></thead><tbody><tr><th scope="row">&lt;law&gt;</th><td style="text-align:right">8</td></tr></tbody></table>'
    """  # noqa: E501
    head = "".join(f'<th scope="col">{_text(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>'
        + "".join(
            f"<td>{_text(cell)}</td>" if i < words else f'<td style="text-align:right">{_text(cell)}</td>'
            for i, cell in enumerate(row[1:], 1)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def modules_table(caption: str, infos: Mapping[str, Any]) -> str:
    """Return a table of the modules of an adapter, by groups of modules that are alike."""
    groups: dict[Any, list[str]] = {}
    for module, info in infos.items():
        groups.setdefault(info, []).append(module)
    rows = [
        (names[0], str(info.kind), f"{len(names):,}", info.rank, f"{info.d_out}×{info.d_in}",
         f"{len(names) * info.n_parameters:,}")
        for info, names in groups.items()
    ]  # fmt: skip
    caption = f"{caption}, {len(infos):,} modules"
    return html_table(caption, ("such as", "kind", "modules", "rank", "widths", "parameters"), rows, words=2)


def _text(value: object) -> str:
    return escape(printable(str(value)))
