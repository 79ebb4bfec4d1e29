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
MERGE_SCALE, SEED = "match", 0  # of the command line, where Python has 1.0 and None
OWN_SCALE = ("distill",)  # methods whose training finds the norm
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
    default_rank : str
        What its docstring says of ``k=None``; empty if it takes no ``k``.
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
    default_rank: str = ""


def added_by_command_line(info: MethodInfo) -> dict[str, str]:
    """Return what ``lorakit merge`` and ``lorakit prune`` set of a method where Python's default is another.

    Returns
    -------
    dict of str to str
        From the option to what it is. The rest of the parameters have the class's defaults on the command line too.

    Examples
    --------
    >>> (svd,) = (info for info in listed("merger") if info.method == "svd")
    >>> list(added_by_command_line(svd))
    ['--scale match']
    """
    added = {}
    if info.kind == "merger" and info.method not in OWN_SCALE:
        added[f"--scale {MERGE_SCALE}"] = (
            "each module's merged update gets the mean norm of the adapters' updates; in Python scale=1.0, the size "
            "that the method gives. With a strength at an adapter, such as law/:0.7, it is 1 here too."
        )
    if "random_state" in info.parameters:
        added[f"--seed {SEED}"] = "the same draws every time; in Python random_state=None, other ones every time."
    return added


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
