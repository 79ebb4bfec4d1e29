"""
Measurements that are kept with the scripts
===========================================

Two hours of a processor are in the tables of the language model. ``measured/NAME-seed0.json`` beside the scripts has
what is in them, a line a measurement: which texts are right, for the adapters and texts that the file names. From it a
page can be made again, more can be measured where the adapters are the same, and differences between any two methods
can be computed. Adapters that are trained anew, on another machine, differ in the last digits, and measurements of the
two are not mixed: those of others are left out, and replaced if new ones are to be kept.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache import read_json, written

FOLDER = Path(__file__).resolve().parent / "measured"


class Measured:
    """The file of an experiment and a seed.

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
        self.path = (folder or FOLDER) / f"{name}-seed{seed}.json"
        there = read_json(self.path) or {"about": {}, "entries": {}}
        self.about: dict[str, Any] = there["about"]
        self.entries: dict[str, dict[str, Any]] = there["entries"]

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

    def write(self) -> None:
        """Write the file, a line a measurement, so that a change of one is a change of its line."""
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in self.entries.items())
        with written(self.path) as beside:
            beside.write_text(
                f'{{"about": {json.dumps(self.about, indent=1)},\n"entries": {{\n{lines}\n}}}}\n', encoding="utf-8"
            )


def _identity(about: Mapping[str, Any]) -> Any:
    """Hashes of the adapters, and the texts."""
    return {name: adapter["update"] for name, adapter in about["adapters"].items()}, about["texts"]
