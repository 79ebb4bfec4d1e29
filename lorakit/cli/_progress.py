"""A bar over the modules, on stderr, where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, *, quiet: bool, late: bool = False) -> Iterator[None]:
    """Draw a bar while the library loops over modules in this block; it is gone afterwards.

    A late one is drawn from the first step that is reported on: for what may have nothing to wait for.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .._execution import report_progress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(label, total=None, visible=not late)
        with report_progress(lambda done, total: progress.update(task, completed=done, total=total, visible=True)):
            yield
