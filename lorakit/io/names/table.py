"""Tables of module names: the same module in two families of files, looked up either way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")  # a whole part of a name: the 0 of net.0, not the 1 of conv1


def shape_of(name: str) -> str:
    """Return a name with ``#`` for every number in it."""
    return _NUMBER.sub("#", name)


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    numbers: int
    template: str

    def apply(self, name: str) -> str | None:
        found = self.pattern.fullmatch(name)
        return None if found is None else self.template.format(*found.groups())


class NameTable:
    """Pairs of names, in which ``#`` stands for any number, the same on both sides.

    There are no rules beyond the pairs: a name that none of them describes has no translation, so that a wrong guess
    about where a name's underscores were dots cannot happen.

    Parameters
    ----------
    pairs : iterable of (str, str)
        Left and right name.

    Examples
    --------
    >>> table = NameTable([("lora_unet_up_blocks_#_conv1", "unet.up_blocks.#.conv1")])
    >>> table.right_of("lora_unet_up_blocks_2_conv1")
    'unet.up_blocks.2.conv1'
    >>> table.left_of("unet.up_blocks.2.conv9") is None
    True
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        known = list(dict.fromkeys(pairs))
        self._rightwards = _rules(known)
        self._leftwards = _rules([(right, left) for left, right in known])

    def right_of(self, left: str) -> str | None:
        """Return the right name of a left one; None if there is none."""
        return _look_up(self._rightwards, left)

    def left_of(self, right: str) -> str | None:
        """Return the left name of a right one; None if there is none."""
        return _look_up(self._leftwards, right)


def _rules(pairs: Iterable[tuple[str, str]]) -> dict[str, list[_Rule]]:
    rules: dict[str, list[_Rule]] = {}
    for source, target in pairs:
        pattern = re.compile(re.escape(source).replace(r"\#", r"(\d+)"))
        if source.count("#") != target.count("#"):
            raise ValueError(f"{source!r} and {target!r} have different numbers of #")
        rule = _Rule(pattern, source.count("#"), target.replace("#", "{}"))
        rules.setdefault(shape_of(source), []).append(rule)  # by shape: one look-up instead of hundreds
    for alike in rules.values():
        alike.sort(key=lambda rule: rule.numbers)  # literal numbers before any number
    return rules


def _look_up(rules: dict[str, list[_Rule]], name: str) -> str | None:
    alike = rules.get(shape_of(name), ())
    return next((found for rule in alike if (found := rule.apply(name)) is not None), None)
