r"""Regular expressions that other people wrote, matched by RE2, whose time and memory are known beforehand.

Python's ``re`` tries one way through an expression after the other, and there can be more of them than there are
microseconds in a year: ``(a+)+b`` on sixty letters. RE2 follows all ways at once, so that a text costs its length times
the size of the expression at most. RE2 cannot look ahead or behind and cannot refer to groups.

The syntax is that of Python. Where RE2 would read something otherwise (``\Z``, ``{,3}``, ``[[:alpha:]]``), it is
translated or refused, so that an expression that is accepted matches what ``re`` matches.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import re2

_MAX_SIZE = 5_000  # instructions of RE2; a letter is one, a class of letters about one for each of its ranges
_MAX_LENGTH = 100_000  # characters
_MEMORY = 1 << 18  # bytes that RE2 may use for one expression, its cache included
_WORK = 400_000_000  # steps, about 4 seconds if all of them are needed: see Work
_EXPLAINED = 1_000  # Python's re takes up to a millisecond for each character of an expression

_PUNCTUATION = r"\\[!-/:-@\[-`{-~ ]"
_REPEAT = r"\{\d*(?:,\d*)?(?<!\{)\}"
_TOKEN = re.compile(
    rf"(?:\\[AZbB]|[\^$])(?![*+?]|{_REPEAT})"  # places, which cannot be repeated
    rf"|{_REPEAT}|[{{}}]"  # a brace that is no repetition is a letter
    rf"|(?:{_PUNCTUATION})+|\\[nrtfvdDsSwW]"
    rf"|\[\^?\]?(?:[^\[\]\\]|{_PUNCTUATION}|\\[nrtfv]|\\[dDsSwW](?!-[^\]]))*\]"
    r"|\(\?:|\(\?P<[A-Za-z_][A-Za-z0-9_]*>|\((?!\?)|[).|*+?]+|[^\\\[(){}.|*+?^$]+"
)
_OTHERWISE = {
    "(": "looks ahead or behind, refers to a group or sets flags",
    "[": "has a class that RE2 would read otherwise; put a backslash before each bracket in it",
    "\\": "refers to a group, or has an escape that RE2 does not know",
}
_UNICODE = re.compile(r"\\[dDsSwWbB]")  # of letters beyond ASCII, Python and RE2 judge differently


class ExpressionError(ValueError):
    """An expression that cannot be matched.

    Parameters
    ----------
    reason : str
        What is wrong, as the end of a sentence that begins with the expression: "is too large".
    invalid : bool
        Whether Python's ``re`` refuses it too; if not, it is an expression that might take endless time.
    """

    def __init__(self, reason: str, *, invalid: bool = False) -> None:
        super().__init__(reason)
        self.invalid = invalid


class Work:
    """A budget of steps for matching; one object is shared by all expressions of a field.

    A step is one instruction of an expression at one character of a text, the most that RE2 ever does; it takes about
    10 nanoseconds, and nearly all matching takes far fewer. Counting what could be necessary, and not the time, makes
    the same file readable on every machine.
    """

    def __init__(self, steps: int = _WORK) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Take steps from the budget.

        Raises
        ------
        ExpressionError
            If none are left.
        """
        self.left -= steps
        if self.left < 0:
            raise ExpressionError("takes too long to match")


class Expression:
    r"""One regular expression in Python's syntax.

    Parameters
    ----------
    text : str
        The expression. ``\w``, ``\d``, ``\s``, ``\b`` and their opposites can be matched with texts in ASCII only.
    memory : int, optional
        Bytes that may be used for it.

    Raises
    ------
    ExpressionError
        If it is none, cannot be matched in bounded time, or is too large.

    Examples
    --------
    >>> from lorakit.files.expressions import Expression, Work
    >>> Expression(r"layers\.\d+\.(q|v)_proj").matches("layers.12.q_proj", Work())
    True
    """

    def __init__(self, text: str, memory: int = _MEMORY) -> None:
        if len(text) > _MAX_LENGTH:
            raise ExpressionError(f"has {len(text)} characters, the limit is {_MAX_LENGTH}")
        options = re2.Options()
        options.max_mem = memory
        options.log_errors = False
        translated = _translated(text)
        try:
            self._compiled = re2.compile(translated, options)
        except re2.error as error:
            raise _refusal(text, _words(error)) from None
        except UnicodeEncodeError:
            raise ExpressionError("holds half of a character", invalid=True) from None
        self._ascii = _UNICODE.search(translated.replace(r"\\", "")) is not None
        self.size: int = self._compiled.programsize
        if self.size > _MAX_SIZE:
            raise ExpressionError(f"is too large: {self.size} instructions, the limit is {_MAX_SIZE}")

    def matches(self, text: str, work: Work, *, whole: bool = True) -> bool:
        """Whether it matches a text: all of it, as ``re.fullmatch``, or else from its start, as ``re.match``.

        Parameters
        ----------
        text : str
            It must have no line ends.
        work : Work
            The budget from which the steps of this match are taken.
        whole : bool, default=True
            Whether all of the text must be matched.

        Raises
        ------
        ExpressionError
            If no work is left, or the text is not ASCII and the expression needs that.
        """
        if self._ascii and not text.isascii():
            raise ExpressionError(
                rf"holds \w, \d, \s or \b, which RE2 knows for ASCII only, and meets the name {text[:100]!r}"
            )
        work.spend(self.size * (len(text) + 1))
        match = self._compiled.fullmatch if whole else self._compiled.match
        return match(text) is not None


def matcher(expression: str) -> Callable[[str], bool]:
    r"""Return a function that says whether a regular expression matches all of a name, in bounded time.

    For expressions that come from a command line, a parameter or a record, instead of ``re.compile(...).fullmatch``.

    Parameters
    ----------
    expression : str
        A regular expression in Python's syntax, without look-around and references to groups.

    Returns
    -------
    callable
        From a name without line ends to bool. All its calls together are allowed a few seconds; it raises
        ExpressionError when they are used up.

    Raises
    ------
    ExpressionError
        A ValueError, if the expression is none, cannot be matched in bounded time, or is too large.

    Examples
    --------
    >>> from lorakit.files.expressions import matcher
    >>> is_query = matcher(r".*\.(q|query)")
    >>> is_query("encoder.0.query"), is_query("encoder.0.query.bias")
    (True, False)
    >>> matcher(r"(a)\1")
    Traceback (most recent call last):
        ...
    lorakit.files.expressions.ExpressionError: '(a)\\1' refers to a group, or has an escape that RE2 ...
    """

    def named(error: ExpressionError) -> ExpressionError:
        kind = "is no regular expression: " if error.invalid else ""
        return ExpressionError(f"{expression[:100]!r} {kind}{error}", invalid=error.invalid)

    try:
        compiled = Expression(expression)
    except ExpressionError as error:
        raise named(error) from None
    work = Work()

    def matches(name: str) -> bool:
        try:
            return compiled.matches(name, work)
        except ExpressionError as error:
            raise named(error) from None

    return matches


def _translated(text: str) -> str:
    """Return the expression in RE2's syntax; refuse what the two do not share."""
    parts = []
    groups: set[str] = set()
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise _refusal(text, _OTHERWISE.get(text[place], "cannot be read"))
        token = found[0]
        if token in ("{", "}"):
            token = f"\\{token}"
        elif token[0] == "{":
            if max(map(len, re.findall(r"\d+", token)), default=0) > 4:  # RE2 would take it for letters
                raise _refusal(text, f"repeats too often, {token[:20]}")
            token = token.replace("{,", "{0,")
        elif token == r"\Z":
            token = r"\z"
        elif token.startswith("(?P<"):
            if token in groups:
                raise _refusal(text, "names two groups alike")
            groups.add(token)
        parts.append(token)
        place = found.end()
    return "".join(parts)


def _refusal(text: str, reason: str) -> ExpressionError:
    """Return the error for an expression that RE2 does not take: Python's own words if Python refuses it too."""
    if len(text) <= _EXPLAINED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what later versions of Python will read otherwise
                re.compile(text)
        except (re.error, OverflowError) as error:
            return ExpressionError(str(error), invalid=True)
        except RecursionError:
            pass
    return ExpressionError(reason)


def _words(error: re2.error) -> str:
    said = error.args[0] if error.args else ""
    return f"is not taken by RE2 ({said.decode(errors='replace') if isinstance(said, bytes) else said})"
