"""Make a report: measure, choose the sections, fill the page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sklearn.utils.validation import check_is_fitted

from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..discovery import all_estimators
from ..exceptions import OutputError
from ..files.atomic import check_file, replaced_file
from ..io.formats.record import make_record
from ._advice import advice_of
from ._again import in_order
from ._clusters import clusters_of
from ._made import again, clusters, kept_by_merge, kept_by_prune, what_next
from ._measures import measure
from ._page import render
from ._parts import Page, Section
from ._sections import alike, conflicts, modules, sizes, spectra, went_in
from ._sources import about_files
from ._subject import Kind, Subject, weights_of
from ._summary import names_text, summary_of, tiles_of

SUFFIXES = (".html", ".htm")


class Report:
    """A report as one HTML page that needs no other file and no network.

    Made by :func:`~lorakit.report`. A notebook shows it.

    Parameters
    ----------
    page : Page
        What it says.

    Attributes
    ----------
    title : str
        Of the page.
    html : str
        The page.
    warnings : tuple of str
        What the page warns of, each in one sentence or two, with what to do.

    Examples
    --------
    >>> from lorakit import report
    >>> from lorakit.testing import make_adapters
    >>> found = report(make_adapters(3, random_state=0))
    >>> found.title
    'task0, task1 and task2'
    >>> found.html.startswith("<!doctype html>")
    True
    """

    def __init__(self, page: Page) -> None:
        self.title = page.title
        self.warnings = tuple(f"{one.seen} {one.remedy}" for one in page.advice if one.level == "warning")
        self.html = render(page)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the page to a file, whole or not at all.

        Parameters
        ----------
        path : str or PathLike
            A name that ends in .html or .htm. Missing folders are made.
        overwrite : bool, default=False
            Whether a file that is there may be replaced.

        Returns
        -------
        Path
            What was written.

        Raises
        ------
        OutputError
            If the name has another ending, the file exists and may not be replaced, or the system refuses to write.
        """
        output = Path(path)
        check_report(output, overwrite=overwrite)
        with replaced_file(output.absolute(), overwrite=overwrite) as new:
            new.write_text(self.html, encoding="utf-8", errors="backslashreplace", newline="\n")
        return output

    def _repr_html_(self) -> str:
        # A frame of its own: the page's styles stay inside, and those of the notebook outside.
        return (
            f'<iframe title="{escape(self.title)}" sandbox="allow-scripts" srcdoc="{escape(self.html)}" width="100%" '
            'height="640" style="border:1px solid #8888;border-radius:6px"></iframe>'
        )

    def __repr__(self) -> str:
        n = len(self.warnings)
        return f"Report({self.title!r}, {len(self.html) / 1000:.0f} kB, {n} warning{'' if n == 1 else 's'})"


def check_report(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that may not be replaced or has another ending, before any work is done.

    Raises
    ------
    OutputError
        If the name does not end in .html or .htm, or what is there may not be replaced.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"ends in {path.suffix or 'nothing'!r}", path=path, expected=" or ".join(SUFFIXES))
    check_file(path, overwrite=overwrite)


def report(
    adapters: AdapterSet | Iterable[Adapter],
    result: Any = None,
    *,
    estimator: Any = None,
    matched: Sequence[str] = (),
    n_jobs: int | None = None,
) -> Report:
    """Make a report of adapters, and of what was made of them, as one HTML page.

    The page says what went in, how alike the adapters are and where they conflict, what rank their mean needs, what
    each kept and lost, which things to look at before the result is used, and how to make the result again. It needs no
    network and no other file.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        What went in, or what might be merged. May be empty if ``result`` is a merged adapter whose sources are not at
        hand.
    result : estimator, Adapter, AdapterSet or list of Adapter, default=None
        What was made: a fitted merger, or its ``merged_``; or, of a pruner, what ``fit_transform`` returned, one for
        each adapter. Of a fitted :class:`~lorakit.LegoMerger` the report describes the clusters too. None reports on
        the adapters alone.
    estimator : LegoMerger, default=None
        Fitted on ``adapters``: its clusters are described too, where ``result`` is not the estimator itself.
    matched : sequence of str, default=()
        How each adapter was found from the record of ``result``: 'sha256' if its file is the recorded one. Empty if
        they are the adapters that went in.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    Report
        With ``save(path)``; a notebook shows it.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters do not fit together, or not with the result.
    NotFittedError
        If ``result`` is a merger that is not fitted.
    TypeError
        If ``result`` is something else.
    ValueError
        If there is nothing to report on, or there are not as many pruned adapters as adapters.

    Examples
    --------
    >>> from lorakit import TSVMerger, report
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(3, random_state=0)
    >>> merger = TSVMerger(k=8, scale="match").fit(adapters)
    >>> report(adapters, merger).title
    'Merge of task0, task1 and task2'
    """
    X = adapters if isinstance(adapters, AdapterSet) else AdapterSet(adapters)
    merger, results = _results(result)
    kind = _kind(X, result, results)
    if kind == "prune" and len(X) != len(results):
        raise ValueError(f"there are {len(results)} pruned adapters for {len(X)} adapters; pass one for each")
    check_adapters([*X, *results])
    records = [in_order(make_record(one, layout="", dtype=one.dtype)) for one in results]
    weights = weights_of(records[0] if kind == "merge" else None, X.names)
    subject = Subject(
        kind,
        X,
        results,
        records,
        measure(X, results, weights=weights, n_jobs=n_jobs),
        [about_files(adapter) for adapter in X],
        clusters_of(estimator or merger, X) if len(X) else None,
        tuple(matched),
    )
    return Report(_page(subject))


def _results(result: Any) -> tuple[Any, list[Adapter]]:
    if result is None:
        return None, []
    if isinstance(result, Adapter):
        return None, [result]
    if isinstance(result, (AdapterSet, list, tuple)):
        return None, list(AdapterSet(result))
    if hasattr(result, "fit"):
        check_is_fitted(result)
        if hasattr(result, "merged_"):
            return result, [result.merged_]
        last = getattr(result, "steps", [(None, None)])[-1][1]
        if hasattr(last, "merged_"):  # a pipeline: clusters are of what its last step was given
            return None, [last.merged_]
        raise TypeError(f"{type(result).__name__} keeps no result; pass what its fit_transform returned")
    raise TypeError(
        f"result must be a fitted merger, an Adapter or an AdapterSet, got {type(result).__name__}; open files with "
        "lorakit.load_adapter"
    )


def _kind(X: AdapterSet, result: Any, results: Sequence[Adapter]) -> Kind:
    if not results:
        if not len(X):
            raise ValueError("there is nothing to report on; pass adapters, or a result")
        return "set"
    if len(results) > 1 or len(X) == len(results):
        mergers = {cls.__name__ for cls in all_estimators("merger").values()}
        made = results[0].provenance.made
        recipe: Mapping[str, Any] = (made.step.recipe if made is not None else None) or {}
        return "merge" if len(results) == 1 and recipe.get("class") in mergers else "prune"
    return "merge"


def _page(subject: Subject) -> Page:
    names = names_text(subject.names or tuple(str(one["name"]) for one in subject.records[0]["sources"]))
    title = {"set": "{}", "merge": "Merge of {}", "prune": "Prune of {}"}[subject.kind].format(names)
    eyebrow = {"set": "Adapters before a merge", "merge": "Merge report", "prune": "Prune report"}[subject.kind]
    bases = dict.fromkeys(adapter.provenance.base_model for adapter in (*subject.adapters, *subject.results))
    base = next((base for base in bases if base), None)
    if base is not None:
        eyebrow += f" · {base}"
    return Page(title, eyebrow, summary_of(subject), tiles_of(subject), advice_of(subject), _sections(subject))


def _sections(subject: Subject) -> list[Section]:
    several = subject.n > 1 and subject.kind != "prune"
    found = [went_in(subject)]
    if subject.kind == "merge" and subject.n and not subject.is_zero:
        found.append(kept_by_merge(subject))
    if subject.kind == "prune":
        found.append(kept_by_prune(subject))
    if several:
        found += [alike(subject), conflicts(subject)]
    found += [spectra(subject), sizes(subject)]
    found += [section for section in (clusters(subject),) if section is not None]
    found.append(modules(subject))
    if subject.kind == "set" and subject.n > 1:
        found.append(what_next(subject))
    found += [section for section in (again(subject),) if section is not None]
    return found
