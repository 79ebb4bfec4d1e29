"""``lorakit report``: one HTML page about a merge, a prune, or adapters before a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option
from ._options import SourcesCommand, adapters_argument, jobs_option, json_option, reading_options
from ._streams import say, say_aside

if TYPE_CHECKING:
    from .. import Adapter, AdapterSet


@click.command(
    cls=SourcesCommand,
    epilog="""\b
Examples:
  lorakit report law/ medicine/ finance/ -o adapters.html
  lorakit report merged/ -o merged.html
  lorakit report merged/ -o merged.html --sources law/ medicine/ finance/
  lorakit report small/law small/medicine -o small.html --sources law/ medicine/""",
)
@adapters_argument
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Page to make; .html.")  # fmt: skip
@click.option("--sources", multiple=True, metavar="ADAPTER...",
              help="What each ADAPTER was made of, in any order.  [default: looked for beside it, by the hashes that "
                   "its record names]")  # fmt: skip
@click.option("--search", multiple=True, metavar="FOLDER",
              type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Look for the sources in this folder too, under any name; repeat it.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@reading_options
@jobs_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no closing line.")
@debug_option
def report(
    paths: tuple[str, ...],
    output: Path,
    sources: tuple[str, ...],
    search: tuple[Path, ...],
    overwrite: bool,
    names: tuple[str, ...],
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    **reading: Any,
) -> None:
    """Make one HTML page about a merge, a prune, or adapters before a merge.

    The page needs no network and no other file. It says what went in, how alike the adapters are and where they
    conflict, what rank their mean needs, what each kept and lost, what to look at before the result is used, and how to
    make the result again.

    Several ADAPTERs are shown as a set that might be merged. One ADAPTER that lorakit made is shown with its sources,
    which are looked for in its own folder, in the current one and in those of --search: by name, and then by the
    SHA-256 that its record names. Give --sources if they lie elsewhere.

    `lorakit merge --report` and `lorakit prune --report` make the page with the result.
    """
    from .. import load_adapters
    from ..reporting.report import check_report
    from ..reporting.report import report as make_report
    from ._jobs import modules_at_a_time
    from ._progress import progress_bar
    from ._report import show_json

    check_report(output, overwrite=overwrite)
    given = load_adapters(paths, names=names or None, same_names=False, **reading)
    with progress_bar("report: modules", quiet=quiet), modules_at_a_time(jobs, given):
        if sources or len(given) == 1:
            adapters, results, matched = _with_sources(given, paths, sources, search, reading)
            result: Any = results[0] if len(results) == 1 else results or None
            made = make_report(
                adapters, result, estimator=_clusters(adapters, results), matched=matched, n_jobs=jobs
            )  # fmt: skip
        else:
            made = make_report(given, n_jobs=jobs)
    made.save(output, overwrite=overwrite)
    if as_json:
        show_json({"command": "report", "output": str(output), "title": made.title, "warnings": list(made.warnings)})
        return
    for text in made.warnings:
        say_aside(text, kind="warning")
    if not quiet:
        say(f"wrote {output}")


def _with_sources(
    given: AdapterSet, paths: Sequence[str], sources: Sequence[str], search: Sequence[Path], reading: Mapping[str, Any]
) -> tuple[AdapterSet, list[Adapter], list[str]]:
    """Return the sources in the order of the records, the results, and how each source was matched."""
    from .. import AdapterSet, load_adapters
    from ._rebuild import CannotTell
    from ._recompute import match_sources

    records = [record_of(adapter) for adapter in given]
    if not sources:
        record = records[0]
        if record is None:
            return given, [], []
        here = Path(paths[0]).absolute().parent
        found = _found(record, here, search)
        if found is None:
            return AdapterSet([]), list(given), []
        sources = [str(path) for path in found]
    opened = load_adapters(sources, same_names=False, **reading)
    adapters, matched = [], []
    for adapter, record, path in zip(given, records, paths, strict=True):
        if record is None:
            raise click.UsageError(f"{path} has no record of what it was made of, so --sources has no meaning for it")
        try:
            fitting = [i for i, s in enumerate(opened) if len(given) == 1 or _is_of(record, s)]
            if len(given) > 1 and not fitting:
                raise CannotTell("no source fits its record")
            matches = match_sources(record, [sources[i] for i in fitting], [opened[i] for i in fitting])
        except CannotTell as error:
            raise click.UsageError(f"{adapter.name}: {error}") from error
        adapters += [match.adapter.renamed(match.name) for match in matches]
        matched += [match.by for match in matches]
    return AdapterSet(adapters), list(given), matched


def _is_of(record: Mapping[str, Any], source: Adapter) -> bool:
    from ..io.formats.record import file_digest

    known = source.provenance.sources[0]
    digest = file_digest(known.path, known.opened[0])
    return any(one["sha256"] == digest or one["name"] == source.name for one in record["sources"])


def _found(record: Mapping[str, Any], here: Path, search: Sequence[Path]) -> list[Path] | None:
    from ._find_sources import find_sources

    found = find_sources(record, [here, Path.cwd()], search)
    return None if any(path is None for path in found) else [path for path in found if path is not None]


def record_of(adapter: Adapter) -> Mapping[str, Any] | None:
    """Return the record of an adapter that was made of others; None if it was not, or keeps none that can be read."""
    from ..files.safetensors import read_header
    from ..io.formats.record import read_record

    path = adapter.provenance.sources[0].path
    with suppress(ValueError):
        if path is not None and path.suffix == ".safetensors":
            record = read_record(read_header(path).metadata)
            if record is not None and record["operations"] and record["sources"]:
                return record
    return None


def _clusters(adapters: AdapterSet, results: Sequence[Adapter]) -> Any:
    """Fit LoRA-LEGO again, which gives the same clusters as before; None for other methods."""
    from ._rebuild import CannotTell, rebuild

    record = record_of(results[0]) if len(results) == 1 and len(adapters) else None
    if record is None or len(record["operations"]) != 1 or record["operations"][0].get("class") != "LegoMerger":
        return None
    with suppress(CannotTell, ValueError):
        return rebuild(record["operations"][0], device=None, n_jobs=None).fit(adapters)
    return None
