"""
Measurements that are kept with the scripts
===========================================

Hours of a processor are in the tables of merges that are trained, and of the language model. The files of ``measured/``
beside the scripts have what is in these tables, a line a measurement: which texts are right, as '0110' by task, for the
adapters and texts that the file names. From them a page can be made again (``--measured``), more can be measured where
the adapters are the same (``--keep``), and differences between any two methods can be computed. Adapters that are
trained anew, on another machine, differ in the last digits, and measurements of the two are not mixed.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cache import read_json, written
from standings import Right

FOLDER = Path(__file__).resolve().parent / "measured"


class Kept:
    """A file of measurements.

    Parameters
    ----------
    path : Path
        The file; it may not be there yet.

    Attributes
    ----------
    about : dict
        What all of them are of.
    entries : dict of str to dict
        By name a measurement.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        there = read_json(path) or {"about": {}, "entries": {}}
        self.about: dict[str, Any] = there["about"]
        self.entries: dict[str, dict[str, Any]] = there["entries"]

    def write(self) -> None:
        """Write the file, a line a measurement, so that a change of one is a change of its line."""
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in self.entries.items())
        with written(self.path) as beside:
            beside.write_text(
                f'{{"about": {json.dumps(self.about, indent=1)},\n"entries": {{\n{lines}\n}}}}\n', encoding="utf-8"
            )


class Measured(Kept):
    """The file of an experiment and a seed: all of one set of adapters.

    Parameters
    ----------
    name : str
        Of the experiment.
    seed : int
        Of the adapters.
    folder : Path, default=FOLDER
        Where the files are.

    Attributes
    ----------
    about : dict
        What it was measured on: the number of texts, the machine, and of each adapter its hash and how it was trained.
    entries : dict of str to dict
        By name a measurement: the key that says what it depends on, and what was found.
    """

    def __init__(self, name: str, seed: int, folder: Path | None = None) -> None:
        super().__init__((folder or FOLDER) / f"{name}-seed{seed}.json")

    def found(self) -> dict[str, Any]:
        """What was found, by name."""
        return {name: entry["found"] for name, entry in self.entries.items()}

    def get(self, name: str, key: str) -> Any:
        """What was found under a name and a key; None if that is not here."""
        entry = self.entries.get(name)
        return entry["found"] if entry and entry["key"] == key else None

    def same(self, about: Mapping[str, Any]) -> bool:
        """Whether it is of these adapters and texts; a new file is of any."""
        return not self.entries or _identity(self.about) == _identity(about)

    def keep(self, name: str, key: str, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Add a measurement; those of other adapters or texts are dropped."""
        if not self.same(about):
            self.entries = {}
        self.about = dict(about)
        self.entries[name] = {"key": key, "found": dict(found)}
        self.write()


def marks(right: Right) -> dict[str, str]:
    """Which texts are right, as JSON can hold it: '0110', by task."""
    return {task: "".join(str(int(mark)) for mark in found) for task, found in right.items()}


def right_in(marks: Mapping[str, str], tasks: Iterable[str]) -> Right:
    """Which texts of some tasks are right, as :func:`marks` wrote it."""
    return {task: np.array([mark == "1" for mark in marks[task]]) for task in tasks}


def _identity(about: Mapping[str, Any]) -> Any:
    """Hashes of the adapters, and the texts."""
    return {name: adapter["update"] for name, adapter in about["adapters"].items()}, about["texts"]
