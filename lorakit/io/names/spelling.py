"""How files of a format spell the names of a family's layers, and which layer a name is."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from ...adapters import ModuleInfo
from .families.family import Family, Row
from .table import shape_of


class Spelling(NamedTuple):
    """How files of one format write names of one code.

    Parameters
    ----------
    code : str
        The code whose names they are: 'original', 'diffusers', or another that a family has a table of.
    prefix : str, default=''
        What stands before a name.
    flat : bool, default=False
        Whether underscores stand for the dots.
    marked_by : str or None
        A key of training metadata: files that have it are written in this way, others are not.
    """

    code: str
    prefix: str = ""
    flat: bool = False
    marked_by: str | None = None

    def of(self, name: str) -> str:
        """Return a name of the code as the files spell it."""
        return self.prefix + (name.replace(".", "_") if self.flat else name)


class Match(NamedTuple):
    """The layer that a module is.

    Parameters
    ----------
    row : Row
        The row of the family's table.
    numbers : tuple of str
        What stands for each ``#``.
    code : str
        The code whose name the module has.
    """

    row: Row
    numbers: tuple[str, ...]
    code: str

    def parts(self) -> list[tuple[str, int]]:
        """Return the names that its parts have in diffusers, with their shares of its outputs."""
        return [(filled(part.name, self.numbers), part.share) for part in self.row.parts]

    def fits(self, info: ModuleInfo) -> bool:
        """Whether the widths of a module are those of the layer, as far as the table knows them."""
        shares = sum(part.share for part in self.row.parts)
        right = self.row.ratio is None or info.d_out == self.row.ratio * info.d_in
        return right and info.d_out % shares == 0


def filled(name: str, numbers: tuple[str, ...]) -> str:
    """Return a name with numbers in place of each ``#``."""
    head, *others = name.split("#")
    return head + "".join(number + rest for number, rest in zip(numbers, others, strict=True))


def matches(family: Family, spellings: tuple[Spelling, ...], module: str) -> list[Match]:
    """Return the layers of a family that a name can be, as the first spelling has them that knows it.

    They are several only where a table has several rows of one name, which differ in the widths of the layer.
    """
    for spelling in spellings:
        alike = _rules(family, spelling).get(shape_of(module), ())
        found = [
            Match(row, hit.groups(), spelling.code) for pattern, row in alike if (hit := pattern.fullmatch(module))
        ]
        if found:
            return found
    return []


def rows_of_part(family: Family, code: str, part: str) -> list[Match]:
    """Return the layers of a code that a layer of diffusers is, or is a part of; several as in :func:`matches`."""
    return _found(_wholes(family, code), code, part)


Rules = dict[str, list[tuple[re.Pattern[str], Row]]]


def _found(rules: Rules, code: str, name: str) -> list[Match]:
    alike = rules.get(shape_of(name), ())
    return [Match(row, hit.groups(), code) for pattern, row in alike if (hit := pattern.fullmatch(name))]


@cache
def _rules(family: Family, spelling: Spelling) -> Rules:
    return _indexed([(spelling.of(row.name), row) for row in family.rows.get(spelling.code, ())])


@cache
def _wholes(family: Family, code: str) -> Rules:
    return _indexed([(part.name, row) for row in family.rows.get(code, ()) for part in row.parts])


def _indexed(named: list[tuple[str, Row]]) -> Rules:
    rules: Rules = {}
    for name, row in named:
        pattern = re.compile(re.escape(name).replace(r"\#", r"(\d+)"))
        rules.setdefault(shape_of(name), []).append((pattern, row))  # by shape: one look-up instead of hundreds
    return rules
