"""What each method is, as a table in a file: read where nothing is to be imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["merger", "pruner", "transformer"]

# What can be done to an adapter's factors without changing its update: reorder, negate or rescale its MSUs; mix them.
GAUGES = ("permutation", "sign", "rescaling", "GL(r)")
FOLDERS: dict[Kind, str] = {"merger": "merging", "pruner": "pruning", "transformer": "preparing"}
TABLE = Path(__file__).with_name("methods.json")


@dataclass(frozen=True)
class MethodInfo:
    """One entry of the registry: what a method is and what it needs, with its default parameters.

    Parameters
    ----------
    kind : {'merger', 'pruner', 'transformer'}
        What it is.
    method : str
        Its name on the command line.
    name : str
        Its class.
    summary : str
        First line of its docstring.
    paper : str or None
        Where it comes from.
    needs_equal_ranks, needs_data : bool
        Whether the adapters must share one rank; whether it takes more than adapters.
    spaces : tuple of str
        Values of its parameter ``space``, if it has one.
    invariances : frozenset of str
        Reparametrizations of the factors, of ``lorakit.base.GAUGES``, that leave its result as it is.
    parameters : dict
        Parameters and their defaults.
    """

    kind: Kind
    method: str
    name: str
    summary: str
    paper: str | None
    needs_equal_ranks: bool
    needs_data: bool
    spaces: tuple[str, ...]
    invariances: frozenset[str]
    parameters: dict[str, Any]


def listed(kind: Kind) -> list[MethodInfo]:
    """Return what the table says of every method of one kind: what ``lorakit.discovery.all_methods`` finds.

    A test compares the two; ``python tests/list_methods.py`` writes the table.
    """
    rows = [row for row in json.loads(TABLE.read_text(encoding="utf-8")) if row["kind"] == kind]
    return [
        MethodInfo(**{**row, "spaces": tuple(row["spaces"]), "invariances": frozenset(row["invariances"])})
        for row in rows
    ]


def table_of(methods: Mapping[Kind, list[MethodInfo]]) -> str:
    """Return the table of these methods, as the file holds it."""
    rows = [
        {**asdict(info), "spaces": list(info.spaces), "invariances": sorted(info.invariances)}
        for infos in methods.values()
        for info in infos
    ]
    return json.dumps(rows, indent=1) + "\n"
