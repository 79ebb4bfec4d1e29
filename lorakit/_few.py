"""The first of many names, for messages."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice


def few(names: Collection[str], most: int = 3, *, write: Callable[[str], str] = str, between: str = ", ") -> str:
    """Write the first names, and how many more there are.

    Parameters
    ----------
    names : collection of str
        All of them, in the order in which they are named.
    most : int, default=3
        How many are written.
    write : callable, default=str
        Makes of a name what is written, such as ``repr``.
    between : str, default=', '
        What stands between two.

    Examples
    --------
    >>> few(["a", "b", "c"]), few(["a", "b", "c", "d"], 2, write=repr)
    ('a, b, c', "'a', 'b' and 2 more")
    """
    written = between.join(map(write, islice(names, most)))
    return f"{written} and {len(names) - most} more" if len(names) > most else written
