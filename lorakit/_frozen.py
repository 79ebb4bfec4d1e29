"""A mapping that estimators hold as data: it does not change, and clones of an estimator share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self, TypeVar

Value = TypeVar("Value")


class FrozenMapping(Mapping[str, Value]):
    """A mapping by name that is compared by identity and never copied, as it can take gigabytes.

    Parameters
    ----------
    entries : dict of str to object
        Its content.
    """

    def __init__(self, entries: dict[str, Value]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Value:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __deepcopy__(self, memo: object) -> Self:
        return self
