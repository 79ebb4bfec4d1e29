"""The end of a message about a word that is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str:
    """End a sentence with the known word that is near, if one is.

    Examples
    --------
    >>> nearest("densty", ["density", "space"])
    "; did you mean 'density'?"
    >>> nearest("colour", ["density", "space"])
    '.'
    """
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
