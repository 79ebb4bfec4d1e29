"""Making baked checkpoints and extracted adapters again, as their records say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import Adapter, bake, extract_adapter, load_adapter
from .._ranks import RankBudget, RankRule
from .._recipes import from_recipe
from .._version import __version__
from ..checkpoints.extracting import RECIPE, Rules
from ..checkpoints.writing import differing_files
from ..files.checkpoint import Checkpoint, FileCheckpoint, headers_digest
from ..files.open_checkpoint import open_checkpoint
from ..io.formats.record import file_digest
from ._beside import same_beside
from ._bounds import check_parameters, check_strengths
from ._naming import reading_of
from ._rebuild import CannotTell
from ._values import check_named


def is_extracted(record: Mapping[str, Any]) -> bool:
    """Whether a record is of an adapter that was extracted from a checkpoint, and nothing else was done to it."""
    return [operation.get("class") for operation in record["operations"]] == [RECIPE]


def check_extraction(record: Mapping[str, Any]) -> None:
    """Refuse a record of an extraction from other sources than two, or with endless parameters.

    Raises
    ------
    CannotTell
        If it is one.
    """
    if len(record["sources"]) != 2:
        raise CannotTell(f"its record names {len(record['sources'])} sources of what is extracted from two")
    check_parameters(record["operations"][0]["params"])


def extracted_again(
    record: Mapping[str, Any], paths: Sequence[str], *, device: str | None, n_jobs: int | None
) -> Adapter:
    """Extract an adapter again.

    Raises
    ------
    CannotTell
        If there are other sources than two, or it cannot be extracted from them.
    """
    if len(paths) != 2:
        raise CannotTell(f"it was extracted from two checkpoints, the tuned one and its base; {len(paths)} are given")
    check_extraction(record)
    try:
        rules = from_recipe(record["operations"][0], {RECIPE: Rules, "RankBudget": RankBudget, "RankRule": RankRule})
        return extract_adapter(paths[0], paths[1], **vars(rules), device=device, n_jobs=n_jobs)
    except (ValueError, TypeError) as error:  # of the record too: nothing in it is believed
        raise CannotTell(f"it cannot be extracted again from these checkpoints: {error}") from error


def extracted_sources(record: Mapping[str, Any], paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row of the report for the tuned model and one for its base; folders are told by their names alone."""
    rows = []
    for source, path in zip(record["sources"], paths, strict=True):
        here = open_checkpoint(path)
        by = "name" if isinstance(here, FileCheckpoint) and here.path.name == source["name"] else "order"
        if source["sha256"] is not None and source["sha256"] == file_digest(Path(path)):
            by = "sha256"
        rows.append(_row(source["name"], source["sha256"], path, by))
    return rows


def under_recorded_names(again: Adapter, record: Mapping[str, Any], paths: Sequence[str]) -> Adapter:
    """Return what was extracted again as from a base of the recorded name: a folder may be called otherwise now."""
    recorded, here = record["sources"][1]["name"], open_checkpoint(paths[1])
    if isinstance(here, FileCheckpoint) and again.provenance.base_model == here.path.name:
        return again.with_provenance(base_model=recorded)
    return again


def baked_again(
    report: dict[str, Any], record: Mapping[str, Any], merged: str, paths: Sequence[str], reading: Mapping[str, Any]
) -> bool:
    """Fill the report; return whether each tensor of a checkpoint is what its sources give, bit for bit.

    Raises
    ------
    CannotTell
        If the sources are others than those recorded, in number or in kind.
    """
    base, *adapters = record["sources"]
    check_strengths(record["params"]["strengths"])
    if len(paths) != len(record["sources"]):
        raise CannotTell(f"it was made of a base and {len(adapters)} adapters, in this order; {len(paths)} are given")
    checkpoint = open_checkpoint(paths[0])
    digest = headers_digest(checkpoint)
    if digest != base["headers_sha256"]:
        raise CannotTell(f"{paths[0]} is not the base that it was made of: its tensors have other names or shapes")
    check_named("--initial", reading.get("initial"), [source["name"] for source in adapters])
    given = [
        load_adapter(path, **reading_of(source["name"], {**reading, "base": checkpoint}))
        for path, source in zip(paths[1:], adapters, strict=True)
    ]
    for source, adapter in zip(adapters, given, strict=True):
        if same_beside(source, replace(adapter.provenance.sources[0], base=None)).get("same_initial") is False:
            raise CannotTell(f"{source['name']!r} is read with another initial adapter than the record names, or none")
    report["lorakit"] = record["versions"]["lorakit"]
    report["operations"] = [f"bake(strengths={record['params']['strengths']})"]
    report["sources"] = [_row("base", digest, paths[0], "tensors' names")] + [
        _row(source["name"], source["sha256"], path, _matched(source, adapter))
        for source, path, adapter in zip(adapters, paths[1:], given, strict=True)
    ]
    try:
        again = bake(checkpoint, given, strengths=record["params"]["strengths"])
    except ValueError as error:
        raise CannotTell(f"it cannot be made again of these sources: {error}") from error
    result = open_checkpoint(merged)
    different = [name for name in dict.fromkeys([*again, *result]) if not _same(result, again, name)]
    others = differing_files(again, Path(merged))
    report |= {
        "tensors": len(result),
        "tensors_different": different,
        "identical": not different,
        "other_than_made": [f"the file {name!r} is not that of the base" for name in others],
    }
    differ = [row["name"] for row in report["sources"] if row["sha256"] is not None and row["matched_by"] == "order"]
    report["sources_differ"] = differ
    if not different and not others:
        named = f"; {', '.join(map(repr, differ))} by other files than the record names"
        report["reason"] = f"the same numbers, bit for bit, in all {len(result)} tensors{named if differ else ''}"
        return True
    report["reason"] = (
        f"{len(different)} of {len(result)} tensors are not what these sources give, first {different[0]!r}"
        if different
        else f"all tensors are what these sources give, and {len(others)} files beside them are not the base's"
    )
    made_by = record["versions"]["lorakit"]
    if different and made_by != __version__:
        report["remark"] = f"it says that lorakit {made_by} made it, and this is {__version__}; ask that version too"
    return False


def _matched(source: Mapping[str, Any], adapter: Adapter) -> str:
    found = adapter.provenance.sources[0]
    same = source["sha256"] is not None and source["sha256"] == file_digest(found.path, found.opened[0])
    return "sha256" if same else "order"


def _row(name: str, digest: str | None, path: str, by: str) -> dict[str, Any]:
    return {"name": name, "sha256": digest, "path": path, "matched_by": by, "same_config": None}


def _same(result: Checkpoint, again: Mapping[str, torch.Tensor], name: str) -> bool:
    if name not in result or name not in again:
        return False
    one, other = result[name], again[name]
    same_form = one.dtype == other.dtype and one.shape == other.shape
    return same_form and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
