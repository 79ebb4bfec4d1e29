"""Pictures in files: the same picture, the same bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..exceptions import OutputError
from ..files.atomic import check_file, replaced_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What would say when the file was made
_NO_DATES: dict[str, dict[str, Any]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
SUFFIXES = tuple(_NO_DATES)


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that may not be replaced or is of no known kind, before any work is done.

    Raises
    ------
    OutputError
        If the name does not end in .png, .svg or .pdf, its folder is missing, or what is there may not be replaced.
    """
    if path.suffix.lower() not in _NO_DATES:
        raise OutputError(
            f"ends in {path.suffix or 'nothing'!r}",
            path=path,
            expected=f"one of {', '.join(SUFFIXES)}",
        )
    check_file(path, overwrite=overwrite)
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f"there is no folder {path.parent}",
            path=path,
            remedy="make it, or give another path",
        )
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{path.absolute().parent} cannot be written to",
            path=path,
            remedy="give another path",
        )


def save_picture(figure: Figure, path: Path, *, overwrite: bool, dpi: float = 150) -> None:
    """Write a figure whole or not at all, in the kind that the name ends in.

    Parameters
    ----------
    figure : Figure
        What to write.
    path : Path
        It ends in .png, .svg or .pdf.
    overwrite : bool
        Whether a file that is there may be replaced.
    dpi : float, default=150
        Dots per inch of a PNG.

    Raises
    ------
    OutputError
        For the reasons that :func:`check_picture` names, or if the system refuses to write.
    """
    import matplotlib as mpl

    check_picture(path, overwrite=overwrite)
    kind = path.suffix.lower()
    with (
        replaced_file(path.absolute(), overwrite=overwrite) as new,
        mpl.rc_context({"svg.hashsalt": "lorakit"}),  # else ids are random
    ):
        figure.savefig(new, format=kind[1:], dpi=dpi, metadata=_NO_DATES[kind])
