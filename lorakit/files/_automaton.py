"""Regular expressions as automata, whose cost is known beforehand: what the patterns of a config need of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_MAX_STATES, _MAX_SEEN = 2_000, 20_000  # of an expression, and what is remembered of its matches
_CATEGORIES = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    op.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    op.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    op.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}
_ANCHORS = (op.AT_BEGINNING, op.AT_BEGINNING_STRING, op.AT_END, op.AT_END_STRING, op.AT_BOUNDARY, op.AT_NON_BOUNDARY)
_SPLIT, _MATCHED = object(), object()


class _State(NamedTuple):
    """One state of an automaton: what it reads or asks (of ``op``, or one of the two marks), and where it leads."""

    what: Any
    value: Any
    to: list[int]


class NotRegularError(Exception):
    """The expression holds what no automaton can match, or is too large for one."""


class Automaton:
    """One regular expression, read by Python's own parser; all ways through it are followed at once."""

    def __init__(self, expression: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what later versions of Python will read otherwise
            parsed = _parser.parse(expression)
        if parsed.state.flags & ~re.UNICODE.value:
            raise NotRegularError("sets flags")
        self.states = [_State(_MATCHED, None, [])]
        self.start = self._sequence(parsed, 0)
        self.seen: dict[tuple[Any, ...], tuple[frozenset[int], bool]] = {}
        self.held = 0

    def matches(self, text: str) -> tuple[bool, int]:
        """Whether it matches the text from its start; and how many steps that took."""
        active, steps, before = frozenset((self.start,)), 0, ""
        for now in (*text, ""):
            key = (active, before == "", _is_word(before), now)
            if key not in self.seen:
                if self.held > _MAX_SEEN:
                    self.seen.clear()
                    self.held = 0
                self.seen[key], work = self._step(active, before, now)
                steps += work
                self.held += work
            active, matched = self.seen[key]
            steps += 1
            if matched or not active:
                return matched, steps
            before = now
        return False, steps

    def _step(self, active: frozenset[int], before: str, now: str) -> tuple[tuple[frozenset[int], bool], int]:
        """Follow all states over one character, '' at the end of the text."""
        waiting, reached, after = list(active), set(active), set()
        matched = False
        while waiting:
            state = self.states[waiting.pop()]
            free = state.what is _SPLIT or (state.what is op.AT and _holds(state.value, before, now))
            matched |= state.what is _MATCHED
            if free:
                new = [i for i in state.to if i not in reached]
                waiting += new
                reached.update(new)
            elif now and state.to and state.what is not op.AT and _reads(state, now):
                after.update(state.to)
        return (frozenset(after), matched), len(reached)

    def _add(self, what: Any, value: Any, *to: int) -> int:
        if len(self.states) >= _MAX_STATES:
            raise NotRegularError(f"has more than {_MAX_STATES} characters when its repetitions are written out")
        self.states.append(_State(what, value, list(to)))
        return len(self.states) - 1

    def _sequence(self, items: Any, then: int) -> int:
        for what, value in reversed(list(items)):
            then = self._item(what, value, then)
        return then

    def _item(self, what: Any, value: Any, then: int) -> int:
        if what in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN) or (what is op.AT and value in _ANCHORS):
            return self._add(what, value, then)
        if what is op.BRANCH:
            return self._add(_SPLIT, None, *(self._sequence(items, then) for items in value[1]))
        if what is op.SUBPATTERN and not value[1] and not value[2]:
            return self._sequence(value[3], then)
        if what in (op.MAX_REPEAT, op.MIN_REPEAT):  # greedy or not is about what a match is, not whether there is one
            return self._repeat(value[0], value[1], value[2], then)
        raise NotRegularError("looks ahead or behind, refers to a group or sets flags")

    def _repeat(self, least: int, most: int, items: Any, then: int) -> int:
        start = then
        if most is op.MAXREPEAT:
            start = self._add(_SPLIT, None)
            self.states[start].to.extend((self._sequence(items, start), then))
        else:
            for _ in range(most - least):
                start = self._add(_SPLIT, None, self._sequence(items, start), then)
        for _ in range(least):
            once = self._sequence(items, start)
            if once == start:  # an empty body
                break
            start = once
        return start


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _holds(anchor: Any, before: str, now: str) -> bool:
    if anchor in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
        return before == ""
    if anchor in (op.AT_END, op.AT_END_STRING):
        return now == ""
    return (_is_word(before) != _is_word(now)) is (anchor is op.AT_BOUNDARY)


def _reads(state: _State, character: str) -> bool:
    if state.what is op.ANY:
        return True
    if state.what is not op.IN:
        return (ord(character) == state.value) is (state.what is op.LITERAL)
    negated: bool = state.value[0][0] is op.NEGATE
    return negated is not any(_is_one(what, value, character) for what, value in state.value[negated:])


def _is_one(what: Any, value: Any, character: str) -> bool:
    if what is op.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if what is op.CATEGORY:
        test: Callable[[str], bool] = _CATEGORIES[value]
        return test(character)
    return ord(character) == int(value)
