"""Text from files as it may be shown: nothing in it reaches a terminal as a command."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return a text with every character that is not printable written as an escape.

    Names, metadata and records come from files that nobody vouches for. A terminal acts on control characters: it
    moves the cursor over what was printed, changes colours, or reverses the direction of the text.

    Parameters
    ----------
    text : str
        Any text, also one that is no valid Unicode, such as a file's name may be.

    Examples
    --------
    >>> printable("law\x1b[1A\nyes: all the same")
    'law\\x1b[1A\\nyes: all the same'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
