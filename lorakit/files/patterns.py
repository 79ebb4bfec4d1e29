"""Regular expressions on module names, as PEFT's configs have them, matched in a time that is known beforehand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NoReturn

from ..exceptions import CorruptFileError, UnsupportedAdapterError
from .expressions import Expression, ExpressionError, Work

_MOST_EXPRESSIONS = 2_000  # besides plain paths, of which there may be as many as fit into a config
_MOST_CHARACTERS = 1_000_000  # of these
_MEMORY, _MEMORY_OF_ONE = 1 << 26, 1 << 18  # bytes, for all expressions of a field and for one of them
_PLAIN = re.compile(r"\^?(?:[\w-]|\.|\\[.\-_])+\$?")  # a module's path, as nearly all keys are
_WILD = "\0"
_COMPARED = 4  # steps of RE2 for a character of a path that is compared


class Patterns:
    r"""The keys of one field of a config, which PEFT reads as ``re.match(rf"(.*\.)?({key})$", module)``.

    Keys that are plain paths, nearly all there are, are looked up; the others are matched by RE2.

    Parameters
    ----------
    where : str
        File and field, for messages.
    keys : iterable of str
        Regular expressions, in file order.

    Raises
    ------
    CorruptFileError
        If a key is no regular expression.
    UnsupportedAdapterError
        If a key cannot be matched in bounded time.

    Examples
    --------
    >>> from lorakit.files.patterns import Patterns
    >>> patterns = Patterns("adapter_config.json: rank_pattern", ["layers.1.q", r"layers\.\d+\..*"])
    >>> patterns.first("model.layers.1.q"), patterns.first("model.layers.1.v"), patterns.first("head")
    ('layers.1.q', 'layers\\.\\d+\\..*', None)
    """

    def __init__(self, where: str, keys: Iterable[str]) -> None:
        self.where = where
        self.keys = tuple(keys)
        self._work = Work()
        # From a length, and the places that match any character, to the texts of keys and their places in the file.
        self._plain: dict[int, dict[tuple[bool, tuple[int, ...]], dict[str, int]]] = {}
        others = []
        for place, key in enumerate(self.keys):
            if _PLAIN.fullmatch(key):
                self._add_plain(place, key)
            else:
                others.append(place)
        if len(others) > _MOST_EXPRESSIONS:
            self._refuse(self.keys[others[_MOST_EXPRESSIONS]], f"comes after {_MOST_EXPRESSIONS} others")
        characters = 0
        for place in others:
            characters += len(self.keys[place])
            if characters > _MOST_CHARACTERS:
                self._refuse(self.keys[place], f"makes the expressions longer than {_MOST_CHARACTERS} characters")
        memory = min(_MEMORY_OF_ONE, _MEMORY // max(len(others), 1))
        self._others = [(place, self._expression(self.keys[place], memory)) for place in others]

    def first(self, module: str) -> str | None:
        """Return the first key in file order that matches a module; None if none does.

        Parameters
        ----------
        module : str
            A module's path; it must be printable, so it has no line ends.

        Raises
        ------
        UnsupportedAdapterError
            If matching the field's keys takes too long, all modules together.
        """
        first = min(self._plain_matches(module), default=len(self.keys))
        for place, expression in self._others:
            if place > first:
                break
            try:
                if expression.matches(module, self._work, whole=False):
                    first = place
            except ExpressionError as error:
                self._refuse(self.keys[place], str(error))
        return self.keys[first] if first < len(self.keys) else None

    def _add_plain(self, place: int, key: str) -> None:
        whole = key.startswith("^")
        text = key.removeprefix("^").removesuffix("$")
        if "\\" in text:
            text = re.sub(r"\\?.", lambda m: _WILD if m[0] == "." else m[0][-1], text)
        else:
            text = text.replace(".", _WILD)
        wild = tuple(i for i, c in enumerate(text) if c == _WILD)
        self._plain.setdefault(len(text), {}).setdefault((whole, wild), {}).setdefault(text, place)

    def _plain_matches(self, module: str) -> Iterator[int]:
        starts = [0, *(i + 1 for i, c in enumerate(module) if c == ".")]
        for start in starts:
            tail = module[start:]
            for (whole, wild), texts in self._plain.get(len(tail), {}).items():
                if whole and start:
                    continue
                self._spend_on_paths(_COMPARED * len(tail), module)
                letters = list(tail)
                for i in wild:
                    letters[i] = _WILD
                if (place := texts.get("".join(letters))) is not None:
                    yield place

    def _spend_on_paths(self, steps: int, module: str) -> None:
        try:
            self._work.spend(steps)
        except ExpressionError:
            raise UnsupportedAdapterError(
                f"looking up module {module[:100]!r} among its {len(self.keys)} paths takes too long, as "
                "their dots stand for any character",
                path=self.where,
                expected="few such paths of one length: write '\\.' for each dot",
            ) from None

    def _expression(self, key: str, memory: int) -> Expression:
        try:
            return Expression(rf"(.*\.)?({key})$", memory)
        except ExpressionError as error:
            if error.invalid:
                raise CorruptFileError(
                    f"{key[:100]!r} is no regular expression ({error})",
                    path=self.where,
                    remedy="correct the file",
                ) from None
            self._refuse(key, str(error))

    def _refuse(self, key: str, reason: str) -> NoReturn:
        raise UnsupportedAdapterError(
            f"{key[:100]!r} {reason}",
            path=self.where,
            expected=(
                "a module's path, or a regular expression of characters, classes, groups and repetitions "
                "whose matching takes bounded time"
            ),
            remedy="write it so",
        ) from None
