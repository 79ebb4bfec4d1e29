"""From the parts of a page to HTML."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from .._version import __version__
from ..files.printable import printable
from ._parts import Page


def render(page: Page) -> str:
    """Return a page as one HTML file.

    Every text is escaped, and what is not printable in it is written as an escape. The page's policy lets a browser run
    the one script and apply the one style that are in it, by their hashes, and load nothing.
    """
    style, script = _file("style.css"), _file("sort.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    html = _environment().from_string(_file("page.html")).render(
        page=page, style=Markup(style), script=Markup(script), policy=policy, version=__version__
    )  # fmt: skip
    return html + "\n"


@cache
def _environment() -> Environment:
    made = Environment(
        autoescape=True, finalize=_finalized, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["breakable"] = _breakable
    return made


def _breakable(text: str) -> Markup:
    """Let a browser break the line after the dots and underscores of a name."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(printable(text)))))


def _finalized(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _file(name: str) -> str:
    return files(__package__).joinpath("template", name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
