"""Pipelines of recipes on the command line: what a run sets in them, and what a report says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._recipes import expression_of, recipe_of

if TYPE_CHECKING:  # a run without a recipe needs none of them, and they take long
    from sklearn.pipeline import Pipeline

    from ..recipes.recipe import Recipe

_LONGEST = 200  # characters, more than which nobody copies from a terminal


def for_run(pipeline: Pipeline, *, n_jobs: int | None, device: str | None) -> Any:
    """Return a copy with what only bears on the run; of one step, that step.

    Examples
    --------
    >>> from lorakit import SVDMerger, SVDPruner
    >>> from sklearn.pipeline import Pipeline
    >>> for_run(Pipeline([("prune", SVDPruner(k=4)), ("merge", SVDMerger(k=8))]), n_jobs=2, device=None)
    Pipeline(steps=[('prune', SVDPruner(k=4, n_jobs=2)),
                    ('merge', SVDMerger(k=8, n_jobs=2))])
    """
    from sklearn.base import clone

    copy = clone(pipeline)
    for _, step in copy.steps:
        takes = step.get_params(deep=False)
        step.set_params(**{k: v for k, v in {"n_jobs": n_jobs, "device": device}.items() if k in takes})
    return copy.steps[0][1] if len(copy.steps) == 1 else copy


def after(first: Any, estimator: Any) -> Pipeline:
    """Return the pipeline of a first step and an estimator.

    Examples
    --------
    >>> from lorakit import ModuleScaler, SVDMerger
    >>> after(ModuleScaler({".*": 0.5}), SVDMerger(k=8))
    Pipeline(steps=[('scale', ModuleScaler(factors={'.*': 0.5})),
                    ('svd', SVDMerger(k=8))])
    """
    from sklearn.pipeline import Pipeline

    return Pipeline([(step.method, step) for step in (first, estimator)])


def method_of(estimator: Any) -> str:
    """Return the methods of an estimator's steps in their order, such as ``select, svd, ties``."""
    steps = [step for _, step in estimator.steps] if _is_pipeline(estimator) else [estimator]
    return ", ".join(step.method for step in steps)


def last_method(recipe: Recipe) -> str:
    """Return the method of the last step of a recipe's pipeline."""
    assert recipe.pipeline is not None  # a recipe of another command is refused before
    method: str = recipe.pipeline.steps[-1][1].method
    return method


def reported(estimator: Any) -> Any:
    """Return the estimator whose parameters a report names: of a pipeline, its merger, else its last step."""
    if not _is_pipeline(estimator):
        return estimator
    from ..base import BaseMerger

    mergers = [step for _, step in estimator.steps if isinstance(step, BaseMerger)]
    return mergers[0] if mergers else estimator.steps[-1][1]


def in_python(estimator: Any) -> str | None:
    """Return what to write in Python for an estimator; None where no short expression makes the same one.

    Examples
    --------
    >>> from lorakit import ModuleScaler, SVDMerger
    >>> in_python(SVDMerger(k=8, scale="match", n_jobs=2))
    "SVDMerger(k=8, scale='match')"
    >>> in_python(after(ModuleScaler({".*": 0.5}), SVDMerger(k=8)))
    "make_pipeline(ModuleScaler(factors={'.*': 0.5}), SVDMerger(k=8))"
    """
    if _is_pipeline(estimator):
        steps = [in_python(step) for _, step in estimator.steps]
        return _short(f"make_pipeline({', '.join(filter(None, steps))})") if all(steps) else None
    shown = estimator.shown() if hasattr(estimator, "shown") else estimator
    parts = [shown, *shown.get_params(deep=True).values()]
    return _short(expression_of(recipe_of(shown), {type(part).__name__: type(part) for part in parts}))


def _short(text: str | None) -> str | None:
    return text if text is not None and len(text) <= _LONGEST else None


def _is_pipeline(estimator: Any) -> bool:
    return hasattr(estimator, "steps")  # no merger and no other step has any
