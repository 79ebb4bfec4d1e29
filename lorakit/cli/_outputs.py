"""Where results go: one folder for each, refused before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from ..exceptions import OutputError


def check_outputs(folders: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse folders that may not be replaced, or cannot be made.

    Raises
    ------
    OutputError
        Naming the first of them.
    """
    from ..io._atomic import check_output
    from ..io.peft import CARD, CONFIG, WEIGHTS

    for folder in folders:
        check_output(folder, overwrite=overwrite, own_files=frozenset((WEIGHTS, CONFIG, CARD)))
        parent = existing_parent(folder)
        if not parent.is_dir():
            raise OutputError(f"{folder}: cannot be made, as {parent} is a file; give another path")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{folder}: cannot be made, as {parent} cannot be written to; give another path")


def existing_parent(folder: Path) -> Path:
    """Return the nearest path above a folder that exists."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


def one_folder_each(output: Path, names: Sequence[str]) -> list[Path]:
    """Return ``output`` for one adapter, a folder in it for each of several.

    Examples
    --------
    >>> [folder.as_posix() for folder in one_folder_each(Path("out"), ["law", "runs/last"])]
    ['out/law', 'out/runs-last']
    """
    if len(names) == 1:
        return [output]
    folders = [name.replace("/", "-").replace(os.sep, "-") for name in names]
    if len(set(folders)) < len(folders) or any(folder.strip(". ") == "" for folder in folders):
        raise click.UsageError(f"the names {', '.join(map(repr, names))} make no folders; give others with --name")
    return [output / folder for folder in folders]
