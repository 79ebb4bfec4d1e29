"""``lorakit methods``: what can be merged and pruned with."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ._distill import METHOD
from ._errors import debug_option
from ._options import json_option
from ._streams import say

if TYPE_CHECKING:
    from .._listing import Kind, MethodInfo

_KINDS: tuple[Kind, ...] = ("merger", "pruner")


@click.command()
@json_option
@debug_option
def methods(as_json: bool) -> None:
    """List the methods of merge and prune, with their parameters.

    Of each with its default parameters: "ranks" says whether the adapters must share one rank; "keeps" which changes
    of factors that leave the updates as they are leave the result as it is too: reordering (permutation), negating
    (sign) or rescaling the units of an adapter, mixing them by any invertible matrix (GL(r)).
    """
    from .._listing import listed
    from ._report import show_json

    found = {f"{kind}s": listed(kind) for kind in _KINDS}
    if as_json:
        show_json({kind: [_plain(info) for info in infos] for kind, infos in found.items()})
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
    from .._listing import GAUGES
    from ._estimators import OWN_OPTIONS
    from ._report import show_table

    for kind, infos in found.items():
        say(f"{kind}: lorakit {kind.removesuffix('rs')} --method METHOD\n")
        rows = []
        for info in infos:
            needs = "equal" if info.needs_equal_ranks else "any"
            kept = "all" if info.invariances >= set(GAUGES) else ", ".join(sorted(info.invariances)) or "none"
            about = _needs(info)
            rows.append((info.method, info.name, needs, kept, info.paper or "", about + info.summary))
        show_table(("method", "class", "ranks", "keeps", "paper", "what it does"), rows, left=6)
        say("\nparameters: --param NAME=VALUE\n")
        width = max(len(info.method) for info in infos)
        for info in infos:
            own = {name: value for name, value in info.parameters.items() if name not in OWN_OPTIONS}
            shown = ", ".join(f"{name}={value}" for name, value in own.items()) or "-"
            if info.spaces:
                shown += f"  (spaces: {', '.join(info.spaces)})"
            say(f"{info.method:<{width}}  {shown}")
        say()
