"""Values that are more than a word: ``NAME=VALUE``, weights, a number or a word."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any

import click

from .._nearest import nearest

_MOST_JOBS = 10_000
_LARGEST_RANK = 100_000  # above the width of any layer; a factor of that many rows still fits into memory
_WORDS = {"none": None, "null": None, "true": True, "false": False}


def parse_value(text: str) -> Any:
    """Read a Python literal; ``none``, ``null``, ``true`` and ``false`` in any case; anything else is a string.

    Examples
    --------
    >>> [parse_value(text) for text in ("0.5", "svd", "none", "[1, 2]", "inf")]
    [0.5, 'svd', None, [1, 2], 'inf']
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


class FiniteNumber(click.FloatRange):
    """A number that is neither infinite nor NaN, which click's own range lets pass."""

    def _describe_range(self) -> str:  # of any number click would say "x<=None"
        described: str = super()._describe_range()
        return "" if self.min is None and self.max is None else described

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the number, or fail with what it should be."""
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def read_padding(ctx: click.Context, param: click.Parameter, given: str | None) -> int | str | None:
    """Read a rank or the word ``server``."""
    if given is None or given == "server":
        return given
    try:
        rank = int(given)
    except ValueError:
        rank = 0
    if not 1 <= rank <= _LARGEST_RANK:
        raise click.BadParameter(f"{given!r} is neither server nor a rank from 1 to {_LARGEST_RANK}", ctx, param)
    return rank


def read_jobs(ctx: click.Context, param: click.Parameter, given: int | None) -> int | None:
    """Require a number of modules that can be worked on at a time, or one below 0, as joblib counts cores."""
    if given is not None and (given == 0 or abs(given) > _MOST_JOBS):
        raise click.BadParameter(
            f"{given} is neither a number from 1 to {_MOST_JOBS} nor -1, for all cores", ctx, param
        )
    return given


def read_assignments(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Read each ``NAME=VALUE``; of a name that is repeated, the last."""
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as density=0.5", ctx, param)
        values[name.strip().replace("-", "_")] = parse_value(value.strip())
    return values


def split_strengths(given: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Split each ``PATH:STRENGTH``; the strengths are None if no path has one, and 1 where a path has none.

    Examples
    --------
    >>> split_strengths(["law/:0.7", "medicine/"]), split_strengths(["law/", "hf://org/medicine"])
    ((['law/', 'medicine/'], [0.7, 1.0]), (['law/', 'hf://org/medicine'], None))
    """
    parts = [split_strength(text) for text in given]
    strengths = [1.0 if strength is None else strength for _, strength in parts]
    return [path for path, _ in parts], strengths if any(strength is not None for _, strength in parts) else None


def split_strength(text: str) -> tuple[str, float | None]:
    r"""Split ``PATH:STRENGTH``; a path that exists is a path as a whole, and so is what has no number at its end.

    Examples
    --------
    >>> split_strength("law/:0.7"), split_strength("hf://org/law"), split_strength("C:\\law")
    (('law/', 0.7), ('hf://org/law', None), ('C:\\law', None))
    """
    path, colon, number = text.rpartition(":")
    if not colon or os.path.lexists(text):
        return text, None
    try:
        strength = float(number)
    except ValueError:
        if os.path.lexists(path):  # it was meant as a strength
            raise click.UsageError(f"{text!r}: {number!r} is no strength, such as 0.7 in {path}:0.7") from None
        return text, None
    if not path or not isfinite(strength):
        raise click.UsageError(f"{text!r} is not ADAPTER:STRENGTH with a finite number, such as law/:0.7")
    return path, strength


def read_weights(
    ctx: click.Context, param: click.Parameter, given: str | None
) -> list[float] | dict[str, float] | None:
    """Read ``1,2,1`` as a list, ``law=2,medicine=1`` as a dict."""
    if given is None:
        return None
    parts = [part.rpartition("=") for part in given.split(",")]
    try:
        numbers = [float(number) for _, _, number in parts]
    except ValueError:
        raise click.BadParameter(f"{given!r} is neither 1,2,1 nor name=1,other=2", ctx, param) from None
    names = [name.strip() for name, _, _ in parts if name.strip()]
    if not names:
        return numbers
    if len(set(names)) != len(parts):
        raise click.BadParameter(f"{given!r} must name every adapter once, or none", ctx, param)
    return dict(zip(names, numbers, strict=True))


def read_scale(ctx: click.Context, param: click.Parameter, given: str | None) -> Any:
    """Read a finite number or the word ``match``."""
    if given in (None, "match"):
        return given
    number = parse_value(given)
    if type(number) not in (int, float) or not abs(number) < inf or abs(number) > sys.float_info.max:
        raise click.BadParameter(f"{shortened(given)} is neither a finite number nor match", ctx, param)
    return number


def read_rank(ctx: click.Context, param: click.Parameter, given: str | None) -> Any:
    """Read ``16``, ``0.9``, ``auto``, ``mean:16``, ``size:50MiB`` or ``sv_ratio:10``; the library checks the rest."""
    if given is None:
        return None
    from .._ranks import RANK_WORDS, rank_of_words

    word, _, rest = given.partition(":")
    if word not in RANK_WORDS:
        value = parse_value(given)
        if not _is_rank(value):
            near = nearest(word, ["auto", *RANK_WORDS]) if isinstance(value, str) else "."
            forms = ", ".join(f"{known}:N" for known in RANK_WORDS)
            form = f"Give a whole number from 1 to {_LARGEST_RANK}, a share of the energy below 1, auto, {forms}"
            raise click.BadParameter(f"{shortened(given)} is no rank{near} {form}", ctx, param)
        return value
    amount, _, highest = rest.partition(",max:")
    try:
        return rank_of_words(word, amount, int(highest) if highest else None)
    except ValueError as error:
        raise click.BadParameter(f"{given!r} is not {word}:N or {word}:N,max:M ({error})", ctx, param) from None


def _is_rank(value: Any) -> bool:
    if type(value) is int:
        return 1 <= value <= _LARGEST_RANK
    return value == "auto" or (isinstance(value, float) and 0 < value < 1)


def shortened(given: str) -> str:
    """Return what was typed in quotes, without the middle of a long text."""
    return repr(given if len(given) <= 60 else f"{given[:40]}...{given[-10:]}")


def read_initial(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str | dict[str, str] | None:
    """Read one path for all adapters, or paths by the adapters' names."""
    named = dict(value.split("=", 1) for value in values if "=" in value and not Path(value).exists())
    plain = [value for value in values if "=" not in value or Path(value).exists()]
    if len(plain) > 1 or (plain and named) or len(named) + len(plain) < len(values):
        raise click.BadParameter("give one path for all adapters, or NAME=PATH once for each of some")
    return plain[0] if plain else named or None


def check_named(option: str, given: Any, names: Iterable[str]) -> None:
    """Refuse what an option gives by the names of adapters, if there is no adapter of a name.

    Parameters
    ----------
    option : str
        The option, for the message.
    given : mapping of str, or anything else
        Its value; only the names in a mapping are checked.
    names : iterable of str
        Names of the adapters.

    Raises
    ------
    click.UsageError
        Naming the adapter whose name is near, and all of them.
    """
    known = list(names)
    for name in given if isinstance(given, Mapping) else ():
        if name not in known:
            raise click.UsageError(
                f"{option} names {name!r}{nearest(name, known)} The adapters are {', '.join(known)}."
            )
