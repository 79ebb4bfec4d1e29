"""``lorakit verify``: whether an adapter is what its own record says was made of given sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option
from ._options import SourcesCommand, device_option, jobs_option, json_option, reading_options, tolerance_option
from ._streams import say

if TYPE_CHECKING:
    from .. import Adapter

YES, NO, CANNOT_TELL = 0, 1, 3
_VERDICTS = {YES: "yes", NO: "no", CANNOT_TELL: "cannot tell"}
_BESIDE = {"same_base": "base model", "same_initial": "initial adapter"}  # keys of a row


@click.command(
    cls=SourcesCommand,
    epilog="""\b
Examples:
  lorakit verify merged/ --sources law/ medicine/ finance/
  lorakit verify model/ --sources base/ law/ medicine/
  lorakit verify adapter/ --sources tuned/ base/

Exit codes: 0 yes; 1 no; 2 wrong usage or unreadable input; 3 cannot tell.""",
)
@click.argument("merged", metavar="RESULT", type=click.Path())
@click.option(
    "--sources",
    required=True,
    multiple=True,
    metavar="ADAPTER...",
    type=click.Path(),
    help="What it was made of, in any order.",
)
@tolerance_option
@jobs_option
@device_option
@reading_options
@json_option
@debug_option
@click.pass_context
def verify(
    ctx: click.Context,
    merged: str,
    sources: tuple[str, ...],
    tolerance: float | None,
    jobs: int | None,
    device: str | None,
    names: tuple[str, ...],
    as_json: bool,
    **reading: Any,
) -> None:
    """Check that RESULT is what its own record says, by making it again from its sources.

    lorakit writes into every file which estimators made it, with their parameters, and the SHA-256 of each source. The
    sources given are told apart by these hashes; one whose hash is another, or was not recorded, by its name, or by its
    place. In which dtype and layout RESULT is stored does not matter; rounding to its dtype is allowed for.

    Of a model that `lorakit bake` made, give the base and then the adapters: every tensor must be the same, bit for
    bit. Of an adapter that `lorakit extract` made, give the tuned model and its base.

    Extra weights that RESULT carries, its config and the base model that it names are compared too.

    The answer is "cannot tell" where there is no record, or it names something that cannot be done again: a method that
    this version lacks, a clusterer or data of the user's own, random numbers without a seed, more work than its sources
    could have needed. A result of another version of lorakit may differ because that version computed otherwise.
    """
    from .. import load_adapter
    from ..checkpoints.baked_record import baked_record
    from ._checkpoints import baked_again
    from ._rebuild import CannotTell
    from ._report import show_json

    if names and len(names) != len(sources):
        raise click.UsageError(f"--name must be given {len(sources)} times, once for each source")
    report: dict[str, Any] = {"command": "verify", "result": merged, "verdict": None, "reason": None, "remark": None}
    baked = baked_record(merged)
    try:
        if baked is not None:
            verdict = YES if baked_again(report, baked, merged, sources, reading) else NO
        else:
            result = load_adapter(merged, **{**reading, "base": None, "initial": None})
            given = _given(result, sources, names, reading)
            verdict = _answer(
                report,
                result,
                sources,
                given,
                tolerance=tolerance,
                dropped=reading["modules_to_save"] == "drop",
                device=device,
                n_jobs=jobs,
            )
    except CannotTell as error:
        verdict = CANNOT_TELL
        report["reason"] = str(error)
    report["verdict"] = _VERDICTS[verdict]
    if as_json:
        show_json(report)
    else:
        _show(report)
    ctx.exit(verdict)


def _given(
    result: Adapter, sources: tuple[str, ...], names: tuple[str, ...], reading: dict[str, Any]
) -> list[Adapter] | None:
    """Open the sources; None if RESULT is an adapter that was extracted from checkpoints."""
    from ..io.load import load_adapters
    from ._checkpoints import is_extracted
    from ._rebuild import CannotTell, record_of

    try:
        if is_extracted(record_of(result)):
            return None
    except CannotTell:  # said when the sources have been read
        pass
    return list(load_adapters(sources, names=names or None, same_names=False, **reading))


def _answer(
    report: dict[str, Any],
    result: Adapter,
    paths: tuple[str, ...],
    given: list[Adapter] | None,
    *,
    tolerance: float | None,
    dropped: bool,
    device: str | None,
    n_jobs: int | None,
) -> int:
    """Fill the report; return the exit code."""
    from .. import AdapterSet
    from .._version import __version__
    from ..factors import dtype_name
    from ..files.safetensors import FLOAT_NAMES
    from ..io.formats.record import operation_text
    from ._checkpoints import extracted_again, extracted_sources, under_recorded_names
    from ._contents import other_than_made
    from ._differences import differences
    from ._jobs import modules_at_a_time
    from ._late import load_late
    from ._progress import progress_bar
    from ._rebuild import CannotTell, record_of

    load_late()
    from ._recompute import match_sources, recompute

    record = record_of(result)
    report |= {
        "lorakit": record["versions"]["lorakit"],
        "operations": [operation_text(operation) for operation in record["operations"]],
    }
    matches = []
    if given is not None:
        with progress_bar("verify: MB hashed", quiet=False, late=True):
            matches = match_sources(record, paths, given)
    with (
        progress_bar("verify: modules", quiet=False),
        modules_at_a_time(n_jobs, AdapterSet(given or ()), device=device),
    ):
        if given is None:
            again = extracted_again(record, paths, device=device, n_jobs=n_jobs)
            again = under_recorded_names(again, record, paths)
            report["sources"] = extracted_sources(record, paths)
        else:
            report["sources"] = [match.row() for match in matches]
            report["unused"] = [
                path
                for path, adapter in zip(paths, given, strict=True)
                if all(adapter is not match.adapter for match in matches)
            ]
            again = recompute(record, [match.adapter for match in matches], device=device, n_jobs=n_jobs)
    before = [dtype for dtype in FLOAT_NAMES if dtype_name(dtype) in record["rounded_to"]]
    found, totals = differences(
        *_alike(result, again),
        tolerance=tolerance,
        dtypes=([result.dtype, *before], [again.dtype]),
        stored_as=result.dtype,
        trusted=True,
        n_jobs=n_jobs,
    )
    found.sort(key=lambda d: (d.same, -(float("inf") if d.relative_error is None else d.relative_error)))
    report |= {
        "dtype": dtype_name(result.dtype),
        "rounded_to": record["rounded_to"],
        "identical": totals.identical,
        "relative_error": totals.relative_error,
        "modules": len(found),
        "modules_different": sum(not d.same for d in found),
        "differences": [d.row() for d in found if not d.same],
        "other_than_made": other_than_made(result, again, dropped=dropped),
        "sources_differ": [row["name"] for row in report["sources"] if not _is_recorded(row, given is None)],
    }
    if totals.unsure and not report["other_than_made"]:
        raise CannotTell(
            f"in {report['modules_different']} modules huge units cancel to a small update, and rounding could explain "
            "the difference"
        )
    if totals.same and not report["other_than_made"]:
        return YES
    made_by = record["versions"]["lorakit"]
    if made_by != __version__:
        report["remark"] = f"it says that lorakit {made_by} made it, and this is {__version__}; ask that version too"
    return NO


def _is_recorded(row: Mapping[str, Any], is_checkpoint: bool) -> bool:
    """Whether a source is the recorded one, read as recorded; a checkpoint of several files has a name and no hash."""
    if row.get("same_base") is False or row.get("same_initial") is False:
        return False
    return row["matched_by"] == ("name" if is_checkpoint and row["sha256"] is None else "sha256")


def _alike(result: Adapter, again: Adapter) -> tuple[Adapter, Adapter]:
    from ..exceptions import UnsupportedAdapterError
    from ._naming import named_alike
    from ._rebuild import CannotTell

    try:
        return named_alike(result, again)
    except UnsupportedAdapterError as error:
        raise CannotTell(f"it names its modules in another way than its sources: {error}") from error


def _show(report: Mapping[str, Any]) -> None:
    from ._report import show_table
    from .diff import show_differences

    if report.get("operations"):
        for i, operation in enumerate(dict.fromkeys(report["operations"]), start=1):
            say(f"{i}. {operation}")
        say()
    if report.get("sources"):
        show_table(
            ("source", "sha256", "given", "matched by", "config"),
            [
                (
                    row["name"],
                    (row["sha256"] or "-")[:12],
                    row["path"],
                    row["matched_by"],
                    {True: "the same", False: "another", None: "-"}[row["same_config"]],
                )
                for row in report["sources"]
            ],
            left=5,
        )
        say()
    for row in report.get("sources") or ():
        for key, what in _BESIDE.items():
            if row.get(key) is False:
                say(f"{row['name']}: read with another {what} than the record names\n")
    if report.get("unused"):
        say(f"Given, and not a source: {', '.join(report['unused'])}\n")
    if report["verdict"] == "no" and "differences" in report:
        show_differences(report["differences"], names=("stored", "made again"))
        if report["differences"]:
            say()
    if report["verdict"] == "no" and report.get("other_than_made"):
        say("\n".join(report["other_than_made"]))
    remark = f" ({report['remark']})" if report["remark"] else ""
    say(f"{report['verdict']}: {report['reason'] or _finding(report)}{remark}")


def _finding(report: Mapping[str, Any]) -> str:
    count = report["modules"]
    if report["verdict"] == "no":
        different = report["modules_different"]
        if not different:
            return f"the updates of {report['result']} are what these sources give, and what is beside them is not"
        return f"{different} of {count} modules of {report['result']} are not what these sources give"
    differ = report["sources_differ"]
    others = f"; {', '.join(map(repr, differ))} by other files than the record names" if differ else ""
    if report["identical"]:
        rounded = f" once rounded to {report['dtype']}" if report["relative_error"] else ""
        return f"the same factors, bit for bit{rounded}, in all {count} modules{others}"
    before = f"; it says that it was stored as {', '.join(report['rounded_to'])} before" if report["rounded_to"] else ""
    return f"the same updates in all {count} modules, relative error {report['relative_error']:.2g}{before}{others}"
