"""Making an output again from its own record: the operations, and then every file that was written on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import Adapter, bake, load_adapter, load_adapters, results_on_disk, save_adapter
from ..checkpoints.baked_record import baked_record
from ..exceptions import SourceError
from ..io.formats._record_form import is_forms
from ..io.formats.record import file_digest, operation_text
from ..io.formats.registry import about
from ._bounds import check_padding, check_strengths
from ._checkpoints import check_extraction, extracted_again, is_extracted
from ._conversions import converted
from ._rebuild import CannotTell, record_of
from ._recompute import recompute
from ._search import Search
from ._values import check_named
from .convert import cut_report, with_error


class Replayed(NamedTuple):
    """What was made again.

    Parameters
    ----------
    path : Path
        Where it is.
    operations : tuple of str
        What was done, in order.
    sources : tuple of mapping
        Name, hash and path of each source.
    versions : mapping of str to str
        Of lorakit and other libraries, as the record has them.
    """

    path: Path
    operations: tuple[str, ...]
    sources: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]


class Run(NamedTuple):
    """How to make it again.

    Parameters
    ----------
    scratch : Path
        An empty folder.
    output : Path
        Where to write it.
    overwrite : bool
        Whether what is there may be replaced.
    reading : mapping of str to object
        Options of reading that are not in the record.
    device, n_jobs
        Of the estimators.
    """

    scratch: Path
    output: Path
    overwrite: bool
    reading: Mapping[str, Any]
    device: str | None
    n_jobs: int | None


def replay(result: Path, search: Search, run: Run) -> Replayed:
    """Make an output again.

    Raises
    ------
    CannotTell
        If the record does not say enough, or something in it cannot be done again.
    SourceError
        If a source is not found.
    """
    baked = baked_record(result)
    if baked is not None:
        return _baked(baked, search, run)
    adapter = load_adapter(
        result, **{**run.reading, "modules_to_save": "first", "differences": "keep", "base": None, "initial": None}
    )
    record = _record(adapter)
    forms = record["written"]
    carried = adapter.provenance.extra_weights is not None
    reading = dict(run.reading)
    reading["modules_to_save"] = "first" if carried else "drop"
    reading["differences"] = "drop" if adapter.differences is None else "keep"
    start, sources, made = _nearest(forms, search, reading, run) or _from_sources(record, search, reading, run)
    if start == 0 and is_extracted(record):
        made = made.renamed(forms[0]["name"])
    for i in range(start, len(forms)):
        last = i == len(forms) - 1
        format = about(forms[i]["format"])
        between = run.scratch / f"{i}{'' if format.directory else format.suffix}"
        path = _written(made, forms[i], run.output if last else between, overwrite=last and run.overwrite)
        if not last:
            more = {name: reading[name] for name in ("modules_to_save", "differences")}
            made = load_adapter(path, name=forms[i + 1]["name"], **more)
    done = tuple(dict.fromkeys(operation_text(operation) for operation in record["operations"])) if not start else ()
    written = tuple(f"written as {form['format']}, {form['dtype']}, {form['layout']}" for form in forms[start:])
    return Replayed(run.output, (*done, *written), tuple(sources), record["versions"])


def _record(result: Adapter) -> Mapping[str, Any]:
    record = record_of(result)
    if not is_forms(record.get("written")) or record["written"][-1] is None:
        raise CannotTell(
            f"lorakit {record['versions']['lorakit']}, which wrote it, did not record all that its bytes depend on; "
            "`lorakit verify` compares the updates"
        )
    return record


Begun = tuple[int, list[dict[str, Any]], Adapter]  # the first file to write, the sources, and what is written


def _nearest(forms: list[Any], search: Search, reading: Mapping[str, Any], run: Run) -> Begun | None:
    """Begin with the last file on the way that is still there; None if there is none."""
    for i in range(len(forms) - 1, 0, -1):
        before = forms[i].get("of") if forms[i] is not None else None
        if before is None or not isinstance(before.get("sha256"), str):
            continue
        source = {"name": forms[i]["name"], "sha256": before["sha256"], "config_sha256": before.get("config_sha256")}
        try:
            path = search.adapter(source)
        except SourceError:
            continue
        # a file that lorakit wrote needs neither
        plainly = {**reading, "name": source["name"], "base": None, "initial": None}
        return i, [{**source, "path": path}], load_adapter(path, **plainly)
    return None


def _from_sources(record: Mapping[str, Any], search: Search, reading: Mapping[str, Any], run: Run) -> Begun:
    if any(form is None for form in record["written"]):
        raise CannotTell("an earlier lorakit, which wrote a file on the way, did not record how; give that file")
    wanted = record["sources"]
    if is_extracted(record):
        check_extraction(record)
        paths = [_checkpoint(search, source) for source in wanted]
        rows = [{**source, "path": path} for source, path in zip(wanted, paths, strict=True)]
        return 0, rows, extracted_again(record, paths, device=run.device, n_jobs=run.n_jobs)
    check_named("--initial", reading.get("initial"), [source["name"] for source in wanted])
    paths = [search.adapter(source) for source in wanted]
    adapters = [_opened(path, source, reading) for path, source in zip(paths, wanted, strict=True)]
    with results_on_disk(run.scratch):
        made = recompute(record, adapters, device=run.device, n_jobs=run.n_jobs)
        made = _with_error(made, record, adapters)
    return 0, [{**source, "path": path} for source, path in zip(wanted, paths, strict=True)], made


def _with_error(made: Adapter, record: Mapping[str, Any], sources: Sequence[Adapter]) -> Adapter:
    """Measure the error of a cut again, where the record has it."""
    operation = record["operations"][record["result"]["operation"]] if "operation" in record["result"] else {}
    cut = operation.get("inputs") or [{}]
    if "relative_error" not in operation or "source" not in cut[0]:
        return made
    return with_error(made, cut_report(made, sources[cut[0]["source"]])["relative_error"])


def _checkpoint(search: Search, source: Mapping[str, Any]) -> str:
    path = search.checkpoint(f"the checkpoint {source['name']!r}", name=source["name"])
    seen, expected = file_digest(Path(path)), source["sha256"]
    if expected is not None and seen != expected:
        raise SourceError(
            f"source {source['name']!r}: {path} has the sha256 {seen}",
            name=source["name"],
            path=str(search.result),
            seen_sha256=seen,
            expected_sha256=expected,
            expected=expected,
            remedy="say where the right one is: --sources PATH...",
        )
    return path


def _opened(path: str, source: Mapping[str, Any], reading: Mapping[str, Any]) -> Adapter:
    said = {"assume_alpha": source["assume_alpha"]} if isinstance(source.get("assume_alpha"), float) else {}
    initial = reading.get("initial")
    began = initial.get(source["name"]) if isinstance(initial, dict) else initial
    adapter = load_adapter(path, **{**reading, **said, "initial": began, "name": source["name"]})
    if isinstance(source.get("hub"), str):  # found elsewhere, and the same
        (known,) = adapter.provenance.sources
        adapter = adapter.with_provenance(sources=(replace(known, hub=source["hub"]),))
    return adapter


def _written(adapter: Adapter, form: Mapping[str, Any], output: Path, *, overwrite: bool) -> Path:
    made = converted(adapter, form.get("conversions", [])).renamed(form["name"])
    check_padding(form, made)
    dtype = getattr(torch, form["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise CannotTell(f"its record names the dtype {form['dtype']!r}")
    return save_adapter(
        made,
        output,
        format=form["format"],
        layout=form["layout"],
        pad_to=form["rank"] if form["layout"] == "portable" else None,
        dtype=dtype,
        overwrite=overwrite,
    )


def _baked(record: Mapping[str, Any], search: Search, run: Run) -> Replayed:
    check_strengths(record["params"]["strengths"])
    base, *wanted = record["sources"]
    # a bake refuses extra weights that are not dropped, so that they never change its result
    kept = "keep" if any(source.get("differences") is True for source in wanted) else "drop"
    reading = {**run.reading, "modules_to_save": "drop", "differences": kept}
    path = search.checkpoint("the base", headers=base["headers_sha256"])
    rows = [{"config_sha256": None, **source} for source in wanted]
    paths = [search.adapter(source) for source in rows]
    adapters = load_adapters(
        paths, names=[source["name"] for source in wanted], same_names=False, **{"base": path, **reading}
    )
    strengths = record["params"]["strengths"]
    bake(path, list(adapters), run.output, strengths=strengths, overwrite=run.overwrite)
    sources = [{"name": "base", "sha256": base["headers_sha256"], "path": path}]
    sources += [{**source, "path": place} for source, place in zip(rows, paths, strict=True)]
    return Replayed(run.output, (f"bake(strengths={strengths})",), tuple(sources), record["versions"])
