"""Where results go: one folder or file for each, refused before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from ..exceptions import OutputError


def check_outputs(outputs: Sequence[Path], formats: Sequence[str], *, overwrite: bool) -> None:
    """Refuse outputs that may not be replaced, or cannot be made.

    Raises
    ------
    OutputError
        Naming the first of them.
    """
    from ..io import check_output

    for output, format in zip(outputs, formats, strict=False):  # a merge has one output, and one format
        check_output(output, format=format, overwrite=overwrite)
        parent = existing_parent(output)
        if not parent.is_dir():
            raise OutputError(
                f"cannot be made, as {parent} is a file",
                path=output,
                remedy="give another path",
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"cannot be made, as {parent} cannot be written to",
                path=output,
                remedy="give another path",
            )


def existing_parent(folder: Path) -> Path:
    """Return the nearest path above a folder that exists."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


def distinct_stems(names: Sequence[str]) -> list[str]:
    """Return names as parts of paths.

    Raises
    ------
    UsageError
        If two become one, or one becomes nothing.
    """
    stems = [name.replace("/", "-").replace(os.sep, "-") for name in names]
    if len(set(stems)) < len(stems) or any(stem.strip(". ") == "" for stem in stems):
        raise click.UsageError(f"the names {', '.join(map(repr, names))} make no paths; give others with --name")
    return stems


def one_output_each(output: Path, stems: Sequence[str], formats: Sequence[str]) -> list[Path]:
    """Return ``output`` for one adapter, a folder or file in it for each of several.

    Examples
    --------
    >>> [out.as_posix() for out in one_output_each(Path("out"), ["law", "runs-last"], ["peft", "peft"])]
    ['out/law', 'out/runs-last']
    """
    from ..io.formats.registry import about

    if len(stems) == 1:
        return [output]
    return [output / f"{stem}{about(format).suffix}" for stem, format in zip(stems, formats, strict=True)]
