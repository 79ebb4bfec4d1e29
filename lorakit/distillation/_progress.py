"""A bar over the steps of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._bars import bar
from .._execution import report_progress


@contextmanager
def step_bar(verbose: int) -> Iterator[None]:
    """Draw a bar over the steps that are reported in this block, if ``verbose`` asks for it."""
    if not verbose:
        yield
        return
    with bar("distill: steps") as drawn, report_progress(drawn):
        yield
