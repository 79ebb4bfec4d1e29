"""
Options, progress and tables of the experiments
===============================================

Every script takes the same options and ends with tables: on the terminal, as numbers in the cache
(``results/NAME.json``), and with ``--page`` in a page of the documentation, where a table replaces what is between the
comments ``.. begin NAME`` and ``.. end NAME``.
"""

import argparse
import os
import platform
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache import cache_folder, write_json
from tasks import TRAINED, USUAL, available

QUICK_TASKS = ("wn_pos", "deb_section", "langid", "icd10")
PACKAGES = ("torch", "transformers", "peft", "scikit-learn", "numpy")
_FIRST = time.perf_counter()


@dataclass(frozen=True)
class Table:
    """Rows of text under titles.

    Parameters
    ----------
    name : str
        Where it goes on a page of the documentation.
    titles : sequence of str
        Of the columns.
    rows : sequence of sequences of str
        The cells.
    caption : str, default=''
        One sentence above it.
    note : str, default=''
        Below it: what the numbers say, in sentences that are computed from them.
    picture : Path or None, default=None
        A file that Report.figure named, shown below it on the page.
    machine : str, default=''
        What it was measured on. Empty: this machine.
    """

    name: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    note: str = ""
    picture: Path | None = None
    machine: str = ""

    def text(self) -> str:
        """As plain text, which is valid reStructuredText too."""
        rows = [[str(cell) or ("\\" if not i else "") for i, cell in enumerate(row)] for row in self.rows]
        widths = [max(len(row[i]) for row in [list(self.titles), *rows]) for i in range(len(self.titles))]
        rule = "  ".join("=" * width for width in widths)

        def line(cells: Sequence[str]) -> str:
            return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

        return "\n".join([rule, line(self.titles), rule, *map(line, rows), rule])


@dataclass
class Report:
    """What an experiment found."""

    name: str  # of the script, and of its file of numbers
    options: argparse.Namespace
    tables: list[Table] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def publish(self) -> None:
        """Print the tables, write the numbers, and fill the page if there is one."""
        about = {"command": command(), "machine": machine()}
        write_json(cache_folder("results") / f"{self.name}.json", about | {"numbers": self.numbers}, indent=1)
        for table in self.tables:
            print(f"\n{table.name}. {table.caption}\n\n{table.text()}" if table.caption else f"\n{table.text()}")
            for what in (table.note, table.picture):
                if what:
                    print(f"\n{what}")
            if self.options.page:
                put(table, self.options.page)
        print(f"\n{command()}\n{machine()}")

    def figure(self, name: str) -> Path:
        """Where a picture goes: the folder of ``--figures``, else that of ``--page``, else the cache."""
        folder = self.options.figures or cache_folder("figures")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def put(table: Table, page: Path) -> None:
    """Write a table, its command and the machine into a page, between the comments that name it.

    A page that is not there is begun, and a table that a page lacks comes at its end.
    """
    if not page.exists():
        title = page.stem.replace("_", " ").capitalize()
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"{title}\n{'=' * len(title)}\n", encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    begin, end = f".. begin {table.name}\n", f".. end {table.name}\n"
    if begin not in text and end not in text:
        text += f"\n{begin}\n{end}"
    caption, note = (f"{_wrapped(words)}\n\n" if words else "" for words in (table.caption, table.note))
    if table.picture:
        note += f".. image:: {Path(os.path.relpath(table.picture, page.parent)).as_posix()}\n\n"
    where = f"The command::\n\n    {command()}\n\n{table.machine or machine()}"
    body = f"{begin}\n{caption}{table.text()}\n\n{note}{where}\n\n{end}"
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    if len(re.findall(pattern, text, flags=re.S)) != 1:
        raise ValueError(f"{page}: expected one place for {table.name!r}, between the lines {begin!r} and {end!r}")
    page.write_text(re.sub(pattern, lambda _: body, text, flags=re.S), encoding="utf-8")


def _wrapped(words: str) -> str:
    return textwrap.fill(words, 120, break_long_words=False, break_on_hyphens=False)


def mean_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds, such as '0.712 ± 0.013'; of one value, the value."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def mean_over_tasks(by_seed: Sequence[Mapping[str, float]]) -> list[float]:
    """The mean over tasks of each seed."""
    return [float(np.mean(list(scores.values()))) for scores in by_seed]


def standing(scores: Mapping[str, Sequence[float]], method: str, rival: str | None = None) -> str:
    """Say which place a method has, and how far and how often it is ahead of a rival.

    Parameters
    ----------
    scores : mapping of str to sequence of float
        Accuracies by method, one a seed.
    method : str
        The one to speak of.
    rival : str or None, default=None
        The one to compare it with; None: the best of the others.
    """
    means = {what: np.mean(of_seeds) for what, of_seeds in scores.items()}
    best = max((what for what in scores if what != method), key=means.__getitem__)
    against = f"the {rival}" if rival else f"the best other, {best}"
    ahead = [a - b for a, b in zip(scores[method], scores[rival or best], strict=True)]
    place = 1 + sum(mean > means[method] for mean in means.values())
    sign, side = (1, "ahead of") if np.mean(ahead) >= 0 else (-1, "behind")
    return (
        f"{method} is number {place} of {len(scores)}, {mean_spread([sign * 100 * a for a in ahead], 1)} points {side} "
        f"{against} (ahead in {sum(a > 0 for a in ahead)} of {len(ahead)} seeds)."
    )


def parser(description: str, tasks: Sequence[str] = TRAINED) -> argparse.ArgumentParser:
    """Return the options that all experiments share; ``tasks`` are those that can be asked for."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="adapters' seeds (default: 0 1 2)")
    found.add_argument("--tasks", nargs="+", choices=tasks, metavar="TASK", help="tasks (default: see the script)")
    found.add_argument("--n-test", type=int, default=150, help="test texts a task (default: %(default)s)")
    found.add_argument("--n-validation", type=int, default=50, help="texts a task to choose by (default: %(default)s)")
    found.add_argument("--quick", action="store_true", help=f"seed 0, {len(QUICK_TASKS)} tasks, 40 texts: minutes")
    found.add_argument("--page", type=Path, metavar="FILE", help="fill this page of the documentation")
    found.add_argument("--figures", type=Path, metavar="FOLDER", help="where pictures go (default: beside the page)")
    found.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    return found


def kept_options(command: argparse.ArgumentParser, where: str) -> None:
    """Add the options of experiments whose measurements are kept beside the scripts."""
    kept = command.add_mutually_exclusive_group()
    kept.add_argument("--keep", action="store_true", help=f"add what is measured to {where} of this folder")
    kept.add_argument("--measured", action="store_true", help="measure nothing; report what is kept there")


def parse(
    options: argparse.ArgumentParser, tasks: Sequence[str] = USUAL, quick: Sequence[str] = QUICK_TASKS
) -> argparse.Namespace:
    """Read the command line; ``tasks``, by default these (or ``quick``), are then those that can be had."""
    found = options.parse_args()
    if min(found.n_test, found.n_validation, found.jobs) < 1:
        options.error("--n-test, --n-validation and --jobs must be 1 or more")
    if found.page and not found.figures:
        found.figures = found.page.parent
    if found.quick:
        found.seeds, found.n_test, found.n_validation = [0], 40, 40
        found.tasks = found.tasks or list(quick)
    wanted = found.tasks or list(tasks)
    found.tasks = wanted if getattr(found, "measured", False) else available(wanted)
    return found


def progress(text: str) -> None:
    """Say what has been done, and when."""
    print(f"[{time.perf_counter() - _FIRST:5.0f} s] {text}", file=sys.stderr, flush=True)


def command() -> str:
    """The command line, without the options that say where results go or come from."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and not word.startswith(("--page", "--figures", "--keep", "--measured")):
            words.append(word)
        skip = word in ("--page", "--figures")
    return shlex.join(["python", f"examples/reproduce/{Path(sys.argv[0]).name}", *words])


def machine() -> str:
    """What it ran on, in general terms."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    threads = torch.get_num_threads()
    of = "One thread" if threads == 1 else f"{threads} threads"
    return f"{of} of {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}."


def seeds(values: Sequence[object]) -> str:
    """How to call what has been averaged over."""
    return "one seed" if len(values) == 1 else f"mean ± standard deviation over {len(values)} seeds"
