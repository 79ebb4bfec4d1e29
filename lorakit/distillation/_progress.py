"""A bar over the steps of a training, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._execution import report_progress


@contextmanager
def step_bar(verbose: int) -> Iterator[None]:
    """Draw a bar over the steps that are reported in this block, if ``verbose`` asks for it."""
    if not verbose:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("distill: steps", total=None)
        with report_progress(lambda done, total: progress.update(task, completed=done, total=total)):
            yield
