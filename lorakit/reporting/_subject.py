"""What one report is about, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from .._recipes import is_recipe
from .._validation import check_strengths, check_weights
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ._clusters import Clusters
from ._measures import Floats, Measures, agreement, cosines, norms
from ._places import place_of, short_blocks
from ._sources import About

ROUND_OFF = 1e-6  # of the largest update: below it, a merged one is what is left where updates cancel
Kind = Literal["set", "merge", "prune"]


@dataclass(frozen=True, eq=False)
class Subject:
    """Adapters, what was made of them, and the numbers of both.

    Parameters
    ----------
    kind : {'set', 'merge', 'prune'}
        What was done with the adapters.
    adapters : AdapterSet
        What went in; empty if the sources of a merge are not at hand.
    results : sequence of Adapter
        What came out: none, one of all, or one of each.
    records : sequence of mapping
        The record of each result.
    measures : Measures
        The numbers.
    about : sequence of About
        What the adapters' files say.
    clusters : pair or None
        LEGO's, as :func:`~lorakit.reporting._clusters.clusters_of` returns them.
    matched : sequence of str
        How each source was found: by 'sha256', by 'name', by 'order'. Empty if they were given.
    """

    kind: Kind
    adapters: AdapterSet
    results: Sequence[Adapter]
    records: Sequence[Mapping[str, Any]]
    measures: Measures
    about: Sequence[About]
    clusters: tuple[dict[str, Clusters], list[list[int]]] | None = None
    matched: Sequence[str] = field(default=())

    @property
    def n(self) -> int:
        """Number of adapters that went in."""
        return len(self.adapters)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters; numbered where two are the same."""
        found = self.adapters.names
        twice = {name for name in found if found.count(name) > 1}
        return tuple(f"{name} ({i})" if name in twice else name for i, name in enumerate(found, 1))

    @cached_property
    def cosines(self) -> Floats:
        """Between the adapters."""
        return cosines(self.measures.total[: self.n, : self.n])

    @cached_property
    def pairs(self) -> list[tuple[float, int, int]]:
        """Cosines of all pairs of adapters that are not zero, ascending."""
        there = norms(self.measures.total) > 0
        return sorted(
            (float(self.cosines[i, j]), i, j)
            for i in range(self.n)
            for j in range(i + 1, self.n)
            if there[i] and there[j]
        )

    @cached_property
    def norms(self) -> Floats:
        """Of the adapters, then of the results."""
        return norms(self.measures.total)

    @cached_property
    def is_zero(self) -> bool:
        """Whether a merge came to nothing but round-off."""
        return not self.norms[self.n] > ROUND_OFF * float(self.norms[: self.n].max(initial=0.0))

    @cached_property
    def places(self) -> list[tuple[str, str]]:
        """Block and kind of each module, with short names of blocks."""
        split = [place_of(module) for module in self.measures.modules]
        blocks = list(dict.fromkeys(block for block, _ in split))
        short = dict(zip(blocks, short_blocks(blocks), strict=True))
        return [(short[block], kind) for block, kind in split]

    @cached_property
    def blocks(self) -> dict[str, list[int]]:
        """Numbers of the modules of each block."""
        found: dict[str, list[int]] = {}
        for i, (block, _) in enumerate(self.places):
            found.setdefault(block, []).append(i)
        return found

    @cached_property
    def lowest(self) -> list[tuple[float, int, int] | None]:
        """The most opposed pair of adapters at each module: its cosine, and the two."""
        found: list[tuple[float, int, int] | None] = []
        for gram in self.measures.grams:
            inside = gram[: self.n, : self.n]
            there = np.outer(norms(inside), norms(inside)) > 0
            upper = np.triu(there, 1)
            if not upper.any():
                found.append(None)
                continue
            values = np.where(upper, cosines(inside), np.inf)
            i, j = divmod(int(values.argmin()), self.n)
            found.append((float(values[i, j]), i, j))
        return found

    def agreement(self, modules: Sequence[int]) -> float:
        """Mean cosine of the pairs of adapters over some modules."""
        return agreement(self.measures.gram(modules)[: self.n, : self.n])

    @cached_property
    def kept(self) -> Floats:
        """Cosine of each adapter with the merge, or with its own result."""
        return self._to_results(cosines(self.measures.total))

    def kept_in(self, modules: Sequence[int]) -> Floats:
        """The same over some modules; NaN where the adapter has none of them."""
        gram = self.measures.gram(modules)
        there = norms(gram)[: self.n] > 0
        return np.where(there, self._to_results(cosines(gram)), np.nan)

    @cached_property
    def strengths(self) -> Floats:
        """How much of each adapter's update the result holds along it: 1 is all, 0 none."""
        total = self.measures.total
        own = np.diagonal(total)[: self.n]
        return np.divide(self._to_results(total), own, out=np.zeros(self.n), where=own > 0)

    def _to_results(self, matrix: Floats) -> Floats:
        to = np.zeros(self.n, dtype=int) if self.kind == "merge" else np.arange(self.n)
        return np.asarray(matrix[np.arange(self.n), self.n + to])

    @cached_property
    def given_strengths(self) -> Floats | None:
        """The strengths that a merge was made with; None if it was made with weights, or nothing."""
        return shares_of(self.records[0] if self.records else None, self.adapters.names, "strengths")

    @property
    def method(self) -> str:
        """Name of the method that made the results, as people know it."""
        operations = self.records[0]["operations"] if self.records else []
        return str(operations[-1].get("class", "an unknown step")) if operations else "an unknown step"

    def params(self) -> Mapping[str, Any]:
        """Parameters of the last step."""
        operations = self.records[0]["operations"] if self.records else []
        found: Mapping[str, Any] = operations[-1]["params"] if operations and is_recipe(operations[-1]) else {}
        return found


def weights_of(record: Mapping[str, Any] | None, names: Sequence[str]) -> Floats:
    """Return the weights or strengths that a merge was made with, normalised; equal ones where its record says none."""
    given = shares_of(record, names, "strengths")
    if given is None:
        given = shares_of(record, names, "weights")
    return np.full(len(names), 1 / max(len(names), 1)) if given is None else given / np.abs(given).sum()


def shares_of(
    record: Mapping[str, Any] | None, names: Sequence[str], parameter: Literal["weights", "strengths"]
) -> Floats | None:
    """Return the weights, normalised, or the strengths, as they are, of the last step of a record; None without."""
    operations = [] if record is None else record["operations"]
    given = operations[-1]["params"].get(parameter) if operations and is_recipe(operations[-1]) else None
    if isinstance(given, dict):  # {"dict": [[name, weight], ...]}, {"array": [...]}
        given = next(iter(given.values()), None)
    if not given:
        return None
    try:
        shares = dict(given) if isinstance(given[0], list) else given
        check = check_strengths if parameter == "strengths" else partial(check_weights, signed=True)
        return np.asarray(check(shares, names))
    except (ValueError, TypeError):  # a file's record may say anything
        return None
