"""``lorakit inspect``: what adapters hold, and whether they can be merged with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from .._few import few
from ..files.printable import printable
from ._errors import debug_option, message, say_error
from ._options import adapters_argument, json_option, reading_options
from ._streams import say, say_aside
from ._values import check_named

if TYPE_CHECKING:
    from .. import Adapter


@click.command(
    epilog="""\b
Examples:
  lorakit inspect law/
  lorakit inspect law/ medicine/ finance/ --json
  lorakit inspect merged/ --servers"""
)
@adapters_argument
@click.option("--servers", is_flag=True, help="Say which programs can load the files as they are.")
@reading_options
@json_option
@debug_option
@click.pass_context
def inspect(
    ctx: click.Context,
    paths: tuple[str, ...],
    servers: bool,
    names: tuple[str, ...],
    as_json: bool,
    **reading: Any,
) -> None:
    """Say what LoRA adapters hold, and whether they can be merged with one another.

    The trainer and the kind of model are said where the files show them: by a trainer's mark in metadata or keys, by
    names and widths of modules. So is the rank of the plain LoRA as which an adapter of another kind is read.

    What is added to biases and norms without factors is said, and what other commands do with it. Of a file that is
    refused, the trainer is said with the reason.

    Every weight is read and checked. Of several adapters that can be merged, the cosines between their updates are
    shown: near 0 they hardly interfere, near 1 they do the same, below 0 they work against each other.

    With --servers, what vLLM, SGLang, TGI, LoRAX, llama.cpp, PEFT, diffusers and MLX do with each: yes, they load it;
    no; or wrong, they load it and hold other updates without a word. None of them is run: these are rules, read in the
    source of the version shown. What depends on the base model cannot be known.

    The exit code is 0 if each adapter can be read, whether or not they fit together.
    """
    from .. import AdapterSet, load_adapter
    from ..io.load import distinct_names, spoken_path
    from ..io.origin import trainer_at
    from ..io.servers import check_servers
    from ._differences import warn_of_cancelling
    from ._inspection import describe, fit_together
    from ._naming import reading_of
    from ._report import show_json

    if names and len(set(names)) != len(paths):
        raise click.UsageError(f"--name must be given {len(paths)} times, once for each adapter, and differ")
    opened: list[Adapter] = []
    unreadable = []
    chosen = names or distinct_names([spoken_path(path) for path in paths])
    check_named("--initial", reading["initial"], chosen)
    for path, name in zip(paths, chosen, strict=True):
        try:
            # to say what is there loses nothing, so that what is added to other parameters need not be refused
            adapter = load_adapter(path, name=name, **{**reading_of(name, reading), "differences": "keep"})
            warn_of_cancelling(adapter)  # reads every module, and raises if one is damaged or not finite
            for parameter in () if adapter.differences is None else adapter.differences.infos:
                adapter.differences.read(parameter)  # type: ignore[union-attr]
            opened.append(adapter)
        except (ValueError, OSError) as error:
            say_error(error)
            trainer = trainer_at(Path(path))
            if trainer is not None:
                say_aside(f"{path}: trainer {trainer}")
            unreadable.append({"path": path, "error": message(error), "trainer": trainer})
    adapters = AdapterSet(opened)
    rows = [describe(adapter, reading["differences"]) for adapter in adapters]
    report: dict[str, Any] = {"adapters": rows, "unreadable": unreadable}
    for row, adapter in zip(report["adapters"], adapters, strict=True) if servers else ():
        row["servers"] = [asdict(check) for check in check_servers(adapter)]
    if len(adapters) > 1:
        report |= fit_together(adapters)
    if as_json:
        show_json(report)
    elif opened:
        _show(report)
    if unreadable:
        ctx.exit(2)


def _show(report: Mapping[str, Any]) -> None:
    from ._report import bytes_text, number_text, ranks_text, show_table

    rows = report["adapters"]
    words = {
        "format": [row["format"] for row in rows],
        "kind": [", ".join(row["kinds"]) for row in rows],
        "base model": [row["base_model"] or "-" for row in rows],
        "dtype": [row["dtype"] for row in rows],
    }
    # What is the same of all stands once, so that the table fits a terminal of 80 columns.
    same = {title: cells[0] for title, cells in words.items() if len(set(cells)) == 1}
    columns = [[row["name"] for row in rows], *(cells for title, cells in words.items() if title not in same)]
    numbers = {
        "modules": [str(row["modules"]) for row in rows],
        "rank": [ranks_text([int(rank) for rank in row["ranks"]]) for row in rows],
        "scaling": ["/".join(f"{scale:g}" for scale in row["scaling"] or ()) or "-" for row in rows],
        "parameters": [f"{row['parameters']:,}" for row in rows],
        "bytes": [bytes_text(row["bytes"]) for row in rows],
    }
    titles = ("adapter", *(title for title in words if title not in same), *numbers)
    show_table(titles, list(zip(*columns, *numbers.values(), strict=True)), left=len(columns))
    if same:
        say(f"\n{'All: ' if len(rows) > 1 else ''}{', '.join(printable(f'{title} {same[title]}') for title in same)}.")
    _show_origins(rows)
    _show_contents(rows)
    for row in rows:
        if "servers" in row:
            say(f"\n{row['name']}, rank {ranks_text([int(rank) for rank in row['ranks']])}:\n")
            _show_servers(row["servers"])
    if "mergeable" not in report:
        return
    if not report["mergeable"]:
        say(f"\nThey cannot be merged with one another: {report['reason']}")
        return
    equal = report["equal_ranks"]
    some = "by every method" if equal else "by methods that take different ranks"
    if any(row["differences"] is not None and row["differences"]["then"] != "left out" for row in rows):
        some = "by concat, svd and task_arithmetic, and by others with --differences drop"
    say(f"\nThey can be merged with one another, {some} (see `lorakit methods`).")
    if report["cosines"] is not None:
        say("\nCosines between their updates:\n")
        names = [row["name"] for row in rows]
        cells = [(name, *map(number_text, cosines)) for name, cosines in zip(names, report["cosines"], strict=True)]
        show_table(("", *names), cells, left=1)


def _show_origins(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say who trained the adapters, for what, and what they are read as; once for those of which it is the same."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        trainer, family = row["trainer"] or "unknown", row["family"] or "an unknown model"
        text = f"trainer {trainer}; for {family}; read as {row['read_as']}."
        alike.setdefault(text, []).append(row["name"])
    for text, names in alike.items():
        whose = "" if len(rows) == 1 else "All: " if len(alike) == 1 else f"{', '.join(names)}: "
        line = text[0].upper() + text[1:] if not whose else text
        say(fill(printable(whose + line), 80, break_on_hyphens=False, subsequent_indent="  " if whose else ""))


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _show_contents(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say which adapters add to parameters without factors, and which are for several models of a pipeline."""
    for row in rows:
        whose = "" if len(rows) == 1 else f"{row['name']}: "
        added = row["differences"]
        if added is not None:
            text = (
                f"{whose}also adds to {_counted(added['parameters'], 'parameter')} without factors, of "
                f"{_counted(len(added['layers']), 'layer')} ({few(added['layers'])}); {added['then']}."
            )
            say(fill(printable(text[0].upper() + text[1:] if not whose else text), 80, break_on_hyphens=False))
        if len(row["components"]) > 1:
            names = " and ".join(row["components"])
            text = f"{whose}{'h' if whose else 'H'}olds modules of {names}; --component of merge and convert takes one."
            say(fill(printable(text), 80, break_on_hyphens=False))


def _show_servers(checks: Sequence[Mapping[str, Any]]) -> None:
    from ._report import show_table

    cells = [(check["server"], check["version"], check["loads"], check["setting"] or "-") for check in checks]
    show_table(("server", "as of", "loads it", "with"), cells, left=4)
    say()
    for check in checks:
        for line in [*check["reasons"], *(f"note: {note}" for note in check["notes"])]:
            say(f"{check['server']}: {line}")
    say("Rules read in the source of these versions; what depends on the served model cannot be known here.")
