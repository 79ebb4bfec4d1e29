"""Progress bars of long fits: on a terminal, and in a notebook, where nothing more need be installed for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar while the block runs.

    Parameters
    ----------
    label : str
        What is counted.

    Yields
    ------
    callable
        To be called with how many are done, and of how many.
    """
    if _in_notebook():
        yield _NotebookBar(label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class _NotebookBar:
    """The browser's own bar, updated in place."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._handle: Any = None
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        if self._handle is not None and done < total and (done - self._shown) * 100 < total:
            return  # a hundred updates are enough
        from IPython.display import HTML, display

        shown = HTML(self._html(done, total))
        self._shown = done
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def _html(self, done: int, total: int) -> str:
        return (
            f'<label>{escape(self._label)} <progress value="{done}" max="{total}"></progress> {done} of {total}</label>'
        )
