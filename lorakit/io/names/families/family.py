"""What a family of models is to conversions: the names of its layers in each code, read from a table of text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

ORIGINAL, DIFFUSERS = "original", "diffusers"
_BRACES = re.compile(r"(.*)\{(.+)\}(.*)")


class Part(NamedTuple):
    """A layer as diffusers has it, and its share of a layer of another code.

    Parameters
    ----------
    name : str
        Its name in diffusers; ``#`` stands for a number.
    share : int, default=1
        How many of the other layer's outputs are its own, in proportion to the other parts.
    """

    name: str
    share: int = 1


class Row(NamedTuple):
    """A layer of one code, and the layers of diffusers that it is.

    Parameters
    ----------
    name : str
        Its name; ``#`` stands for a number.
    parts : tuple of Part
        The layers of diffusers, in the order of its outputs.
    swapped : bool, default=False
        Whether diffusers has the two halves of the outputs in the other order, as of a shift and a scale.
    ratio : float or None
        Outputs over inputs, where that tells it from a layer of the same name, or of another family.
    """

    name: str
    parts: tuple[Part, ...]
    swapped: bool = False
    ratio: float | None = None


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models.

    Parameters
    ----------
    name : str
        As in ``family=`` and ``--family``.
    title : str
        For people.
    models : str
        A regular expression for what training metadata and repositories call its models, in lower case.
    table : str
        A layer a line: its name in the original code, then its name in diffusers. Names of several layers in braces,
        ``{to_q,to_k,to_v}``, are parts of one, with ``*4`` behind one that has four shares of the outputs. A line of
        one name has the same in both. ``swapped`` and ``ratio=`` are the fields of :class:`Row`. A line that ends in a
        colon has what stands before the names on the indented lines below it.
    others : mapping of str to str
        Tables of the same kind for other codes, by the name of the code.
    norms : str
        A table of its layers without matrices: norms with a weight.
    flat_names_of_diffusers : bool, default=False
        Whether kohya files of one trainer (OneTrainer) hold the names of diffusers.
    """

    name: str
    title: str
    models: str
    table: str = field(repr=False)
    others: Mapping[str, str] = field(default_factory=dict, repr=False)
    norms: str = field(default="", repr=False)
    flat_names_of_diffusers: bool = False

    @cached_property
    def rows(self) -> Mapping[str, tuple[Row, ...]]:
        """The rows of each code, that of diffusers included."""
        rows = {ORIGINAL: parsed(self.table)} | {code: parsed(text) for code, text in self.others.items()}
        parts = dict.fromkeys(part.name for code in rows.values() for row in code for part in row.parts)
        return rows | {DIFFUSERS: tuple(Row(name, (Part(name),)) for name in parts)}

    @cached_property
    def of_norms(self) -> Family:
        """The same family with its norms for layers."""
        return replace(self, table=self.norms, others={}, norms="")

    def is_called(self, text: str) -> bool:
        """Whether a text names a model of this family."""
        return re.search(self.models, text.lower()) is not None


def parsed(table: str) -> tuple[Row, ...]:
    """Read a table.

    Examples
    --------
    >>> for row in parsed("img_attn.qkv  attn.{q,k,v}" + chr(10) + "final.mod  norm_out.linear  swapped  ratio=2"):
    ...     print(row.name, [part.name for part in row.parts], row.swapped, row.ratio)
    img_attn.qkv ['attn.q', 'attn.k', 'attn.v'] False None
    final.mod ['norm_out.linear'] True 2.0
    """
    rows, above = [], ["", ""]
    for line in table.splitlines():
        words = line.removesuffix(":").split()
        if not words:
            continue
        pair, flags = (words[:2] if len(words) > 1 else words * 2), words[2:]
        if line.endswith(":"):
            above = [f"{name}." for name in pair]
        else:
            inside = above if line.startswith(" ") else ["", ""]
            rows.append(_row(inside[0] + pair[0], inside[1] + pair[1], flags))
    return tuple(rows)


def _row(name: str, target: str, flags: list[str]) -> Row:
    options = dict(flag.partition("=")[::2] for flag in flags)
    unknown = set(options) - {"swapped", "ratio"}
    if unknown:
        raise ValueError(f"{name}: {unknown} is neither swapped nor ratio=")
    parts = _parts(target)
    for part in parts:
        if part.name.count("#") != name.count("#"):
            raise ValueError(f"{name!r} and {part.name!r} have different numbers of #")
    return Row(name, parts, "swapped" in options, float(options["ratio"]) if "ratio" in options else None)


def _parts(target: str) -> tuple[Part, ...]:
    found = _BRACES.fullmatch(target)
    if found is None:
        return (Part(target),)
    parts = []
    for inner in found[2].split(","):
        name, _, share = inner.partition("*")
        parts.append(Part(f"{found[1]}{name}{found[3]}", int(share or 1)))
    return tuple(parts)
