"""Regular expressions on module names, as PEFT's configs have them, matched in a time that is known beforehand.

Python's ``re`` tries one way through an expression after the other, and there can be more of them than there are
microseconds in a year: ``(a+)+b`` on sixty letters. Here all ways are followed at once, so that a name costs its length
times the length of the expression at most. What cannot be matched so (looking ahead or behind, references to groups) is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

from ..exceptions import CorruptFileError, UnsupportedAdapterError

if TYPE_CHECKING:
    from ._automaton import Automaton

_MAX_ALL_STATES = 100_000  # of all expressions together
_STEPS, _STEPS_PER_NAME = 5_000_000, 5_000  # about a second, and a millisecond
_PLAIN = re.compile(r"\^?(?:[\w-]|\.|\\[.\-_])+\$?")  # a module's path, as nearly all keys are
_WILD = "\0"


def first_match(where: str, keys: tuple[str, ...], module: str) -> str | None:
    r"""Return the first key that PEFT takes to mean a module: ``re.match(rf"(.*\.)?({key})$", module)``.

    Parameters
    ----------
    where : str
        File and field, for messages.
    keys : tuple of str
        Regular expressions, in file order.
    module : str
        A module's path; it must be printable, so it has no line ends.

    Raises
    ------
    CorruptFileError
        If a key is no regular expression.
    UnsupportedAdapterError
        If matching could take too long.
    """
    return _compiled(where, keys).first(module)


class _Patterns:
    def __init__(self, where: str, keys: tuple[str, ...]) -> None:
        self.where = where
        self.keys = keys
        # By length, then by which characters may be any: text to the key's place in the file.
        self.plain: dict[int, dict[tuple[bool, tuple[int, ...]], dict[str, int]]] = {}
        self.others: list[tuple[int, Automaton]] = []
        self.allowed, states = _STEPS, 0
        for place, key in enumerate(self.keys):
            if _PLAIN.fullmatch(key):
                self._add_plain(place, key)
            else:
                self.others.append((place, self._automaton(key)))
                states += len(self.others[-1][1].states)
                if states > _MAX_ALL_STATES:
                    self._refuse(f"has, with the expressions before it, more than {_MAX_ALL_STATES} states", key)

    def _add_plain(self, place: int, key: str) -> None:
        whole = key.startswith("^")
        text = re.sub(r"\\?.", lambda m: _WILD if m[0] == "." else m[0][-1], key.removeprefix("^").removesuffix("$"))
        wild = tuple(i for i, c in enumerate(text) if c == _WILD)
        self.plain.setdefault(len(text), {}).setdefault((whole, wild), {}).setdefault(text, place)

    def _automaton(self, key: str) -> Automaton:
        try:
            from ._automaton import Automaton, NotRegularError
        except ImportError:  # it reads expressions by Python's own parser, which a later Python may keep elsewhere
            self._refuse("cannot be looked into by this version of Python", key)
        try:
            return Automaton(rf"(.*\.)?({key})$")
        except (re.error, OverflowError) as error:
            raise CorruptFileError(
                f"{self.where}: {key[:100]!r} is no regular expression ({error}); correct the file"
            ) from error
        except (NotRegularError, RecursionError) as error:
            self._refuse("has too many groups" if isinstance(error, RecursionError) else str(error), key)

    def _refuse(self, reason: str, key: str) -> NoReturn:
        raise UnsupportedAdapterError(
            f"{self.where}: {key[:100]!r} {reason}, so that matching it might never end; expected a module's path, or "
            "a regular expression of characters, classes, groups and repetitions: write it so"
        ) from None

    def first(self, module: str) -> str | None:
        self.allowed += _STEPS_PER_NAME
        places = list(self._plain_matches(module))
        first = min(places, default=len(self.keys))
        for place, automaton in self.others:
            if place > first or self.allowed < 0:
                break
            matched, steps = automaton.matches(module)
            self.allowed -= steps
            if matched:
                first = place
        if self.allowed < 0:
            raise UnsupportedAdapterError(
                f"{self.where}: matching its {len(self.keys)} regular expressions takes too long (tried last: module "
                f"{module[:100]!r}); expected fewer or simpler ones, such as the modules' paths: write it so"
            )
        return self.keys[first] if first < len(self.keys) else None

    def _plain_matches(self, module: str) -> Iterator[int]:
        starts = [0, *(i + 1 for i, c in enumerate(module) if c == ".")]
        for start in starts:
            tail = module[start:]
            for (whole, wild), texts in self.plain.get(len(tail), {}).items():
                self.allowed -= 1
                if whole and start:
                    continue
                letters = list(tail)
                for i in wild:
                    letters[i] = _WILD
                if (place := texts.get("".join(letters))) is not None:
                    yield place


_compiled = lru_cache(maxsize=16)(_Patterns)
