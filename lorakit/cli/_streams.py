"""Standard streams as they may be found: closed, full, or read by a program that has gone away."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

import click

from ..files.printable import printable


def say(text: str = "") -> None:
    """Print lines on stdout; what is not printable in them is escaped."""
    click.echo("\n".join(map(printable, text.split("\n"))))


def say_aside(text: str, *, kind: str | None = None) -> None:
    """Print one line on stderr, with ``lorakit:`` and the kind before it if there is one.

    Where stderr cannot be written to there is nobody to tell, and what was done is done: the exit code says it.
    """
    line = printable(" ".join(text.split()))
    if kind is not None:
        coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        colour = "yellow" if kind == "warning" else "red"
        line = f"lorakit: {click.style(kind, fg=colour, bold=True) if coloured else kind}: {line}"
    try:
        # Not click.echo: while a progress bar is drawn, sys.stderr is rich's, which prints above the bar.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)


def open_missing() -> None:
    """Give the process the standard streams that it was started without; what is written there is dropped.

    Else the next file that is opened would get the number of one of them, and what a library prints would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error


def discard(stream: TextIO) -> None:
    """Drop what a stream still holds: Python writes it once more when it shuts down, and would complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
