"""``lorakit replay``: an output made again from its own record, byte for byte."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from ._errors import debug_option
from ._options import SourcesCommand, device_option, jobs_option, json_option, reading_options_of_record
from ._streams import say

SAME, OTHER, CANNOT_TELL = 0, 1, 3
_VERDICTS = {SAME: "the same", OTHER: "different", CANNOT_TELL: "cannot tell"}


@click.command(
    cls=SourcesCommand,
    epilog="""\b
Examples:
  lorakit replay merged/
  lorakit replay merged/ -o again/
  lorakit replay merged/ --sources moved/law moved/medicine
  lorakit replay model/ --sources base/ adapters/

Exit codes: 0 the same bytes; 1 others; 2 wrong usage, unreadable input or missing sources; 3 cannot tell.""",
)
@click.argument("result", metavar="OUT")
@click.option(
    "--sources", multiple=True, metavar="PATH...",
    help="Where the sources are: adapters, checkpoints, or folders that hold them.  [default: OUT's folder, the "
         "current one, the folders in both; and the Hugging Face Hub for what came from there]",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(), metavar="NEW", help="Write what is made again there.")
@click.option("--overwrite", is_flag=True, help="Replace what is at NEW; never a folder of other files.")
@jobs_option
@device_option
@reading_options_of_record
@json_option
@debug_option
@click.pass_context
def replay(
    ctx: click.Context,
    result: str,
    sources: tuple[str, ...],
    output: str | None,
    overwrite: bool,
    jobs: int | None,
    device: str | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Make OUT again from its own record, and compare every byte.

    OUT is what any command of lorakit wrote, or `save_adapter` in Python. Its record names the operations with their
    parameters, the hashes of the sources, and how the file was written. Sources are found by their hashes. One that is
    missing or has changed is an error that names it, with the hash that it should have; --sources says where it is now.

    Without -o nothing is kept: what is made is compared and deleted. OUT itself is never changed.

    The bytes depend on the versions of lorakit and of its libraries, which the record names; the report says where they
    are others now. `lorakit verify` compares updates, and allows for rounding.
    """
    from ._progress import progress_bar
    from ._rebuild import CannotTell
    from ._replay import Run
    from ._replay import replay as made_again
    from ._report import show_json
    from ._search import Search

    started = perf_counter()
    path = _whole(Path(result))
    if output is None and overwrite:
        raise click.UsageError("--overwrite is for -o")
    search = Search(sources, path, allow_pickle=reading["allow_pickle"])
    report: dict[str, Any] = {"command": "replay", "result": result, "output": output, "verdict": None, "reason": None}
    with tempfile.TemporaryDirectory(prefix="lorakit-", dir=None if output is None else _beside(output)) as scratch:
        # under its own name, which may stand in what is written
        again = Path(scratch) / "made" / path.absolute().name if output is None else Path(output)
        run = Run(Path(scratch), again, overwrite, reading, device, jobs)
        try:
            with progress_bar("replay: modules", quiet=False):
                found = made_again(path, search, run)
            report |= _compared(path, again)
            report |= {"operations": found.operations, "sources": found.sources, "versions": _changed(found.versions)}
            verdict = SAME if report["identical"] else OTHER
        except CannotTell as error:
            verdict = CANNOT_TELL
            report["reason"] = str(error)
    report |= {"verdict": _VERDICTS[verdict], "seconds": round(perf_counter() - started, 3)}
    if as_json:
        show_json(report)
    else:
        _show(report)
    ctx.exit(verdict)


def _whole(path: Path) -> Path:
    """Return the folder of an adapter, of the weights in it."""
    from ..io.formats.registry import abouts

    inside = {name for known in abouts() if known.directory for name in known.weights}
    return path.parent if path.is_file() and path.name in inside else path


def _beside(output: str) -> Path:
    from ._outputs import existing_parent

    return existing_parent(Path(output))


def _compared(before: Path, after: Path) -> dict[str, Any]:
    """Say for each file that was made again whether it is, byte for byte, the one that is there."""
    import filecmp

    made = [after] if after.is_file() else sorted(file for file in after.rglob("*") if file.is_file())
    files = {}
    for file in made:
        name = file.name if after.is_file() else file.relative_to(after).as_posix()
        old = before if after.is_file() else before / name
        files[name] = old.is_file() and filecmp.cmp(old, file, shallow=False)
    return {"files": files, "identical": all(files.values())}


def _changed(recorded: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the versions that are others now: name to the one of the record and the one that is here."""
    from ..io.formats.record import versions

    here = versions()
    return {name: [seen, here[name]] for name, seen in recorded.items() if name in here and here[name] != seen}


def _show(report: Mapping[str, Any]) -> None:
    from ._report import show_table

    for i, operation in enumerate(report.get("operations", ()), start=1):
        say(f"{i}. {operation}")
    if report.get("sources"):
        say()
        show_table(
            ("source", "sha256", "path"),
            [(row["name"], (row["sha256"] or "-")[:12], row["path"]) for row in report["sources"]],
            left=3,
        )
        say()
    versions = ", ".join(f"{name} {old}, here {new}" for name, (old, new) in report.get("versions", {}).items())
    if report["reason"]:
        say(f"{report['verdict']}: {report['reason']}")
        return
    differ = [name for name, same in report["files"].items() if not same]
    if differ:
        why = f" (made with {versions}, and the files name the versions)" if versions else ""
        say(f"different: {', '.join(differ)} of {report['result']} {'is' if len(differ) == 1 else 'are'} others{why}")
    else:
        say(f"the same: all {len(report['files'])} files of {report['result']}, byte for byte")
    if report["output"]:
        say(f"wrote {report['output']}")
