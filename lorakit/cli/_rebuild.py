"""What a record says of how a result was made, and the estimators that did it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._ranks import RankBudget, RankRule
from .._recipes import RecipeError, from_recipe
from ..adapters import Adapter
from ..cluster import MSUKMeans
from ..discovery import all_estimators
from ..files.safetensors import read_header
from ..io.formats.record import read_record


class CannotTell(Exception):
    """Something that was recorded cannot be done again."""


def record_of(result: Adapter) -> Mapping[str, Any]:
    """Return what the file of an adapter says of how it was made.

    Raises
    ------
    CannotTell
        If it holds no record, or one that cannot be read or does not reach back to its sources.
    """
    path = result.provenance.sources[0].path
    assert path is not None  # it was read from a file
    try:
        record = read_record(read_header(path).metadata) if path.suffix == ".safetensors" else None
    except ValueError as error:
        raise CannotTell(str(error)) from error
    if record is None:
        raise CannotTell("it holds no record of how it was made: it was not written by lorakit, or not in safetensors")
    if record["result"] is None:
        raise CannotTell("a step that made it, or one of its sources, left no record")
    return record


def rebuild(operation: Mapping[str, Any], *, device: str | None, n_jobs: int | None) -> Any:
    """Make the estimator that a recorded operation describes.

    Parameters
    ----------
    operation : mapping
        One of the operations of a record.
    device : str or None
        Where it is to run now.
    n_jobs : int or None
        Modules at a time.

    Raises
    ------
    CannotTell
        If there is no such estimator in this version, or a parameter was not recorded.

    Examples
    --------
    >>> rebuild({"class": "SVDMerger", "params": {"k": 4, "device": "mps"}}, device=None, n_jobs=2)
    SVDMerger(k=4, n_jobs=2)
    >>> rebuild({"class": "Popen", "params": {"args": "ls"}}, device=None, n_jobs=None)
    Traceback (most recent call last):
    lorakit.cli._rebuild.CannotTell: this version has no method 'Popen'
    """
    if "class" not in operation:
        text = operation["text"]
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise CannotTell(f"the operation {shown} is no estimator with its parameters")
    try:
        return from_recipe(operation, _known(), device=device, n_jobs=n_jobs)
    except RecipeError as error:
        raise CannotTell(str(error)) from error


def _known() -> dict[str, Callable[..., Any]]:
    found = (all_estimators("merger"), all_estimators("pruner"), all_estimators("transformer"))
    classes = [*(cls for by_method in found for cls in by_method.values()), MSUKMeans, RankBudget, RankRule]
    return {cls.__name__: cls for cls in classes}
