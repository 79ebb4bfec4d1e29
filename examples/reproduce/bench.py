"""
Trained merges, judged: what each gets right of some texts, and a record of it in the repository
================================================================================================

``Bench.judged(what, make)`` makes a merge and asks which texts it classifies right. With ``--keep`` the answers go
into ``measured/distill.json``, so that the tables, with their errors of differences on the same texts,
can be made again without hours of training: ``--measured`` computes nothing.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from adapters import SCALES, at_norm, best_scale
from cache import content_key
from evaluation import Evaluator, update_hash
from measured import FOLDER, Kept, marks, right_in
from multi_head import Merge, adapters_of
from report import machine
from standings import Right, right_of, right_of_own

from lorakit import Adapter, AdapterSet

VERSION = 1  # of what is recorded: raise it when merges or judging change
RECORD = FOLDER / "distill.json"
FIRST = 100  # test text that merges are judged from: those before it were looked at when the trainer was mended


@dataclass(frozen=True)
class Judged:
    """What a merge gets right.

    Parameters
    ----------
    test, validation : mapping of str to ndarray of bool
        By task: whether each text got its label.
    seconds : float
        Of one thread, for the merge.
    machine : str
        Where it was measured, in general terms.
    """

    test: Right
    validation: Right
    seconds: float
    machine: str


class Bench:
    """Adapters, and what their merges get right.

    Parameters
    ----------
    options : Namespace
        Of the command line.
    first : int, default=FIRST
        The first of the test texts to judge by.
    tasks : sequence of str, default=None
        The adapters' tasks. None: those of the options.
    ranks : mapping of str to int, default=None
        Of the tasks' adapters, where they are not 8.
    alike : bool, default=False
        Whether the adapters began with the same values; otherwise each began with its own.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        first: int = FIRST,
        tasks: Sequence[str] | None = None,
        ranks: Mapping[str, int] | None = None,
        *,
        alike: bool = False,
    ) -> None:
        self.options = options
        self.tasks = list(tasks or options.tasks)
        self.ranks = dict(ranks or {})
        self.alike = alike
        self.first = first
        self.machines: set[str] = set()  # of what was judged

    @cached_property
    def adapters(self) -> AdapterSet:
        """The adapters, trained where they are missing."""
        return adapters_of(self.tasks, self.ranks, alike=self.alike)

    @cached_property
    def test(self) -> Evaluator:
        """The test texts, also those before the first to judge by."""
        return Evaluator("test", self.first + self.options.n_test)

    @cached_property
    def validation(self) -> Evaluator:
        """The validation texts."""
        return Evaluator("validation", self.options.n_validation)

    @cached_property
    def own(self) -> Judged:
        """What each task's own adapter gets right."""
        return self._known("own", lambda: (None, 0.0))

    def judged(self, what: Any, make: Callable[[], Merge]) -> Judged:
        """What a merge gets right, made if that is neither in the cache nor in the record.

        Parameters
        ----------
        what : object
            That JSON can hold; identifies the merge, with the adapters.
        make : callable
            Makes it.
        """

        def made() -> tuple[Adapter | None, float]:
            merge = make()
            return merge.adapter, merge.about["seconds"]

        return self._known(what, made)

    def _known(self, what: Any, make: Callable[[], tuple[Adapter | None, float]]) -> Judged:
        about = {"what": what, **self._pool, "first": self.first}
        key = content_key(VERSION, about)
        if self.options.measured:
            found = self._read(key, about)
        elif (kept := self._kept(key)) is not None:
            found = kept
        else:
            adapter, seconds = make()
            judge = self._right_of_own if what == "own" else self._right
            found = Judged(*judge(adapter), seconds, machine())
            if self.options.keep:
                self._write(key, about, found)
        self.machines.add(found.machine)
        return found

    def _right(self, adapter: Adapter | None) -> tuple[Right, Right]:
        test = right_of(adapter, self.tasks, self.test, self.first)
        return test, right_of(adapter, self.tasks, self.validation)

    def _right_of_own(self, _: Adapter | None) -> tuple[Right, Right]:
        return right_of_own(self.adapters, self.test, self.first), right_of_own(self.adapters, self.validation)

    @property
    def _wanted(self) -> dict[str, int]:
        """How many texts of each split."""
        return {"test": self.options.n_test, "validation": self.options.n_validation}

    def _read(self, key: str, about: dict[str, Any]) -> Judged:
        found = Kept(RECORD).entries.get(key)
        if found is None:
            raise SystemExit(f"{RECORD.name} has no {about}; run without --measured, with --keep to add it")
        return self._judged_in(found)

    def _kept(self, key: str) -> Judged | None:
        """What the record has of these adapters and of as many texts; None if it has not."""
        found = Kept(RECORD).entries.get(key)
        if found is None or found["adapters"] != self._update_hash:
            return None
        enough = all(len(found[split][task]) >= n for split, n in self._wanted.items() for task in self.tasks)
        return self._judged_in(found) if enough else None

    def _judged_in(self, found: Mapping[str, Any]) -> Judged:
        right = {split: _first(right_in(found[split], found[split]), n) for split, n in self._wanted.items()}
        return Judged(right["test"], right["validation"], found["seconds"], found["machine"])

    @cached_property
    def _update_hash(self) -> str:
        return content_key([(adapter.name, update_hash(adapter)) for adapter in self.adapters])

    def _write(self, key: str, about: dict[str, Any], found: Judged) -> None:
        """Add to the record, unless it has the same of more texts."""
        record = Kept(RECORD)
        known = record.entries
        adapters = self._update_hash
        same = [entry for entry in known.values() if _pool_of(entry) == self._pool]
        if any(entry["adapters"] != adapters for entry in same):
            raise SystemExit(
                f"{RECORD.name} is of adapters that were trained elsewhere, which differences on equal texts would "
                "mix with these; remove it to record all anew"
            )
        splits = {"test": marks(found.test), "validation": marks(found.validation)}
        if key in known and any(
            len(known[key][split][t]) > len(m) for split in splits for t, m in splits[split].items()
        ):
            return
        entry = {**about, "adapters": adapters, **splits, "seconds": round(found.seconds, 1), "machine": found.machine}
        record.entries = dict(sorted((known | {key: entry}).items()))
        record.write()

    @property
    def _pool(self) -> dict[str, Any]:
        """Which adapters these are; most began apart, which goes without saying."""
        return {"tasks": self.tasks, "ranks": self.ranks} | ({"alike": True} if self.alike else {})

    @property
    def machine(self) -> str:
        """Where all that was judged was measured."""
        return " ".join(sorted(self.machines))

    def right(self, adapter: Adapter | None) -> Right:
        """Which test texts of each task get their label."""
        return right_of(adapter, self.tasks, self.test, self.first)

    def kept(self, judged: Judged, split: str = "test") -> tuple[float, float]:
        """Mean over tasks of accuracy divided by the own adapter's; its standard error over texts."""
        right, own = getattr(judged, split), getattr(self.own, split)
        return mean_and_error([right[task] / own[task].mean() for task in right])

    def difference(self, judged: Judged, other: Judged, split: str = "test") -> tuple[float, float]:
        """Difference of what is kept, on the same texts; its standard error."""
        one, two, own = (getattr(found, split) for found in (judged, other, self.own))
        return mean_and_error([(one[task].astype(float) - two[task]) / own[task].mean() for task in own])

    def chosen(self, merged: Adapter) -> Adapter:
        """The merge at the norm that is best on validation texts."""
        return at_norm(merged, self.adapters, best_scale(merged, self.adapters, self.validation, self.tasks, SCALES))


def _pool_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {what: entry[what] for what in ("tasks", "ranks", "alike") if what in entry}


def averaged(found: Sequence[Judged]) -> Judged:
    """Of each text the mean over several merges, such as those of several seeds; mean seconds."""
    test, validation = (
        {task: np.mean([getattr(one, split)[task] for one in found], axis=0) for task in getattr(found[0], split)}
        for split in ("test", "validation")
    )
    return Judged(test, validation, float(np.mean([one.seconds for one in found])), found[0].machine)


def mean_and_error(by_task: list[np.ndarray]) -> tuple[float, float]:
    """Mean over tasks of means over texts, and its standard error over texts."""
    squares = [values.var(ddof=1) / len(values) for values in by_task]
    return float(np.mean([v.mean() for v in by_task])), float(np.sqrt(np.sum(squares)) / len(by_task))


def _first(right: Right, n: int) -> Right:
    """Which of the first ``n`` texts are right."""
    if (fewest := min(map(len, right.values()))) < n:
        raise SystemExit(f"{RECORD.name} has {fewest} texts a task, and {n} are asked for")
    return {task: found[:n] for task, found in right.items()}
