"""``lorakit methods``: what can be merged and pruned with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from .._nearest import nearest
from ._completion import complete_method
from ._distill import METHOD
from ._errors import debug_option
from ._options import json_option
from ._streams import say

if TYPE_CHECKING:
    from .._listing import Kind, MethodInfo

_WITHOUT_K = re.compile(r"^None(: | is )?\s*")  # said of k=None
_KINDS: tuple[Kind, ...] = ("merger", "pruner")


@click.command()
@click.argument("names", metavar="[METHOD]...", nargs=-1, shell_complete=complete_method)
@json_option
@debug_option
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """List the methods of merge and prune, or say all of some METHODs: papers, parameters, properties.

    "Ranks" says whether the adapters must share one rank. "Keeps" says which changes of factors that leave the updates
    as they are leave the result as it is too: reordering (permutation), negating (sign) or rescaling the units of an
    adapter, mixing them by any invertible matrix (GL(r)).
    """
    from .._listing import listed
    from ._report import show_json

    found = {f"{kind}s": [info for info in listed(kind) if not names or info.method in names] for kind in _KINDS}
    known = [info.method for kind in _KINDS for info in listed(kind)]
    for name in names:
        if name not in known:
            raise click.UsageError(f"there is no method {name!r}{nearest(name, known)} `lorakit methods` lists them.")
    if as_json:
        show_json({kind: [_plain(info) for info in infos] for kind, infos in found.items()})
    elif names:
        say("\n\n".join(_whole(kind, info) for kind, infos in found.items() for info in infos))
    else:
        _show(found)


def _plain(info: MethodInfo) -> dict[str, object]:
    fields = asdict(info)
    return {"method": info.method, "class": fields.pop("name"), **fields, "invariances": sorted(info.invariances)}


def _needs(info: MethodInfo) -> str:
    """Begin the description of a method with what it needs besides adapters."""
    if not info.needs_data:
        return ""
    return "with --model and --heads. " if info.method == METHOD else "from Python only: needs data. "


def _show(found: dict[str, list[MethodInfo]]) -> None:
    from ._report import show_table

    for kind, infos in found.items():
        say(f"{kind}: lorakit {kind.removesuffix('rs')} --method METHOD\n")
        rows = [(info.method, info.name, _needs(info) + info.summary) for info in infos]
        show_table(("method", "class", "what it does"), rows, left=3)
        say()
    say("lorakit methods METHOD says all of one: its paper, its parameters, what it needs.")


def _whole(kind: str, info: MethodInfo) -> str:
    """Say all of one method, in lines that fit a narrow terminal."""
    from .._listing import GAUGES, added_by_command_line
    from ._estimators import OWN_OPTIONS

    kept = "any change of factors" if info.invariances >= set(GAUGES) else ", ".join(sorted(info.invariances))
    own = {name: value for name, value in info.parameters.items() if name not in OWN_OPTIONS}
    facts = {
        "command": f"lorakit {kind.removesuffix('rs')} --method {info.method}",
        "class": info.name,
        "paper": info.paper or "-",
        "ranks": "equal" if info.needs_equal_ranks else "any",
        "keeps": kept or "nothing",
        "spaces": ", ".join(info.spaces) or "-",
    }
    lines = [f"{info.method} ({kind.removesuffix('s')})", *wrap(_needs(info) + info.summary, 78), ""]
    lines += [f"  {name:<8} {value}" for name, value in facts.items()]
    if not info.needs_data or info.method == METHOD:
        lines += ["", "  what the command line sets, where Python has another default:"]
        lines += _hanging(added_by_command_line(info)) or ["    nothing"]
    lines += ["", "  without -k:", *_indented(_WITHOUT_K.sub("", info.default_rank))]
    lines += ["", "  parameters, by --param NAME=VALUE, with their defaults:"]
    return "\n".join([*lines, *(f"    {name}={value}" for name, value in own.items())] if own else lines[:-2])


def _hanging(said: Mapping[str, str]) -> list[str]:
    return [line for option, text in said.items() for line in _indented(f"{option}: {text}")]


def _indented(text: str) -> list[str]:
    return wrap(text, 78, initial_indent="    ", subsequent_indent="      ")
