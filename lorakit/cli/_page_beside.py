"""``--report``: the page about a result, beside the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .. import AdapterSet
    from ..reporting.report import Report


class PageBeside:
    """The page that ``--report`` asks for; without the option there is none, and nothing is done.

    Parameters
    ----------
    output : str
        Where the result goes.
    wanted : bool
        Whether ``--report`` was given.
    overwrite : bool
        Whether a page that is there may be replaced.

    Raises
    ------
    OutputError
        If it may not.
    """

    def __init__(self, output: str, *, wanted: bool, overwrite: bool) -> None:
        self.path = page_path(Path(output)) if wanted else None
        self._overwrite = overwrite
        self._made: Report | None = None
        if self.path is not None:
            from ..reporting.report import check_report

            check_report(self.path, overwrite=overwrite)

    def make(self, adapters: AdapterSet, estimator: Any, results: AdapterSet, *, n_jobs: int | None) -> None:
        """Make the page, before the result is written: it may replace an input."""
        if self.path is None:
            return
        from ..reporting.report import report

        given = estimator if hasattr(estimator, "merged_") else results
        self._made = report(adapters, given, n_jobs=n_jobs)

    def save(self) -> None:
        """Write the page, if one was made."""
        if self._made is not None and self.path is not None:
            self._made.save(self.path, overwrite=self._overwrite)


def page_path(output: Path) -> Path:
    """Return where the page about a result goes.

    Examples
    --------
    >>> page_path(Path("runs/merged")).as_posix(), page_path(Path("merged.v2.safetensors")).as_posix()
    ('runs/merged.report.html', 'merged.v2.report.html')
    """
    return output.with_name(f"{output.name.removesuffix('.safetensors')}.report.html")
