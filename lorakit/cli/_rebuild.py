"""From a recorded operation to the estimator that did it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._ranks import RankBudget, RankRule
from .._recipes import RecipeError, from_recipe
from ..cluster import MSUKMeans
from ..discovery import all_estimators


class CannotTell(Exception):
    """Something that was recorded cannot be done again."""


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
