"""What merge and prune do: open, fit_transform, measure, save, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import Adapter, AdapterSet, load_adapters, results_on_disk, save_adapter
from .._version import __version__
from ..io.formats.record import hash_beside
from ..io.load import distinct_names, spoken_path
from ..io.save import chosen_layout
from ..metrics import Comparison, compare_adapters, compare_to_each
from ._dry_run import infos_of_dry_run
from ._engine import check_engine, on_engine
from ._errors import parameters_checked
from ._estimators import make_estimator
from ._full_rank import refuse_full_rank
from ._measure import distinct_ranks, nearness, source_bytes, weights_bytes, written_bytes
from ._outputs import check_outputs, distinct_stems, existing_parent, one_output_each
from ._page_beside import PageBeside
from ._pipelines import after, for_run, in_python, method_of, reported
from ._progress import progress_bar
from ._report import show_json, show_run
from ._values import check_named

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe
    from ._recipe import Saving


def run(
    kind: Literal["merger", "pruner"],
    method: str,
    *,
    given: Mapping[str, Any],
    paths: Sequence[str],
    output: str,
    params: Mapping[str, Any],
    seed: int,
    jobs: int | None,
    device: str | None,
    names: Sequence[str],
    modules_to_save: Literal["refuse", "drop", "first"],
    differences: Literal["refuse", "keep", "drop"],
    assume_alpha: float | None,
    allow_pickle: bool,
    format: str | None,
    base: str | None,
    initial: Any,
    engine: str | None,
    address: str | None,
    layout: Literal["portable", "compact"] | None,
    pad_to: Any,
    dtype: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    with_report: bool = False,
    strict: bool = False,
    component: str | None = None,
    complete: Callable[[Any, AdapterSet], Any] | None = None,
    prepare: Callable[[AdapterSet], Any] | None = None,
    recipe: Recipe | None = None,
    saving: Saving,
) -> None:
    """Run one estimator, or the pipeline of a recipe, on adapters and write what it makes, or say what it would make.

    The parameters are the options of the command line; ``given`` holds those that only one command has. ``complete``
    gives the estimator what can be known only when the adapters are open, and ``prepare`` makes a step before it.
    """
    started = perf_counter()
    check_engine(engine, address)
    own_jobs = jobs if engine is None else None  # a number of an estimator's own would beat the engine
    one = kind == "merger"  # all adapters become one; a pruner makes one of each
    named = names or distinct_names([spoken_path(path) for path in paths])
    stems = [] if one else distinct_stems(named)
    adapters = load_adapters(
        paths,
        names=named,
        format=format,
        modules_to_save=modules_to_save,
        differences=differences,
        assume_alpha=assume_alpha,
        allow_pickle=allow_pickle,
        base=base,
        initial=initial,
        same_base="strict" if strict else "warn",
        same_names=one,
        component=component,
    )
    refuse_full_rank(adapters, given.get("k"))
    formats = [adapter.provenance.format for adapter in adapters]  # of one family if they are to be merged
    outputs = [Path(output)] if one else one_output_each(Path(output), stems, formats)
    check_outputs(outputs, formats, overwrite=overwrite)
    page = PageBeside(output, wanted=with_report, overwrite=overwrite)
    of_run: dict[str, Any] = {"n_jobs": own_jobs, "device": device}
    if recipe is None:
        estimator = make_estimator(kind, method, given={**given, **of_run}, params=params, seed=seed)
    else:
        from ..recipes.sources import check_adapters

        check_adapters(recipe, adapters)
        estimator = for_run(recipe.pipeline, **of_run)
        method = method_of(estimator)
    # The estimator takes more names than there are adapters, for cross-validation; here one too many is a typing error.
    check_named("--weights", given.get("weights"), adapters.names)
    layouts = [chosen_layout(kept, layout) for kept in formats[: len(outputs)]]
    if complete is not None:
        estimator = complete(estimator, adapters)
    first = None if prepare is None else prepare(adapters)
    if first is not None:
        estimator = after(first, estimator)
        method = method_of(estimator)
    beside = existing_parent(outputs[0])  # on a disk that has room for what is to be written
    whole = getattr(reported(estimator), "space", "") == "delta"
    with (
        progress_bar(f"{method}: modules", quiet=quiet),
        parameters_checked(),
        results_on_disk(beside),
        on_engine(engine, address, jobs, adapters, device=device, whole_updates=whole) as workers,
    ):
        if workers > 1 and not dry_run:  # on one core it would only be in the way of the rest
            hash_beside(source for adapter in adapters for source in adapter.provenance.sources)
        results, compared = (None, []) if dry_run else _made(estimator, adapters, one=one, jobs=own_jobs)
        made = infos_of_dry_run(estimator, adapters) if results is None else [result.infos for result in results]
    dtypes = [adapters.dtype] if one else [adapter.dtype for adapter in adapters]
    if dtype is not None:
        dtypes = [getattr(torch, dtype)] * len(dtypes)
    rows: list[dict[str, Any]] = [
        {"name": adapter.name, "path": path, "rank_in": adapter.ranks, "bytes_in": source_bytes(adapter)}
        for adapter, path in zip(adapters, paths, strict=True)
    ]
    for row, strength in zip(rows, _strengths(estimator, adapters.names), strict=False):
        row["strength"] = strength
    sizes = [
        written_bytes(infos, layout=kept, pad_to=pad_to, dtype=stored)
        for infos, kept, stored in zip(made, layouts, dtypes, strict=True)
    ]
    if results is not None:
        # Measured before it is written: OUT may replace an input, and an interruption until then leaves it as it was.
        for row, comparison in zip(rows, compared, strict=True):
            row |= nearness(comparison)
        page.make(adapters, estimator, results, n_jobs=jobs)
        with progress_bar("hashing the sources: MB", quiet=quiet, late=True):
            for result, target, kept in zip(results, outputs, dtypes, strict=True):
                save_adapter(result, target, layout=layout, pad_to=pad_to, dtype=kept, overwrite=overwrite)
        page.save()
        sizes = [weights_bytes(target) for target in outputs]
        saving.write(
            lambda: _steps().steps_of(estimator),
            adapters,
            output=output,
            written={"layout": layout, "pad_to": pad_to, "dtype": dtype},
            reading={
                "format": format,
                "modules_to_save": modules_to_save,
                "differences": differences,
                "assume_alpha": assume_alpha,
                "base": base,
                "initial": initial,
                "component": component,
            },
            left_out=lambda: _steps().left_out_of(estimator),
        )
    if not one:
        for row, infos, size, target in zip(rows, made, sizes, outputs, strict=True):
            row |= {"output": str(target), "rank_out": distinct_ranks(infos), "bytes_out": size}
    report = {
        "lorakit": __version__,
        "command": "merge" if one else "prune",
        "dry_run": dry_run,
        "method": method,
        "parameters": reported(estimator).shown().get_params(deep=False),
        "python": in_python(estimator),
        "factor": _factor(results[0]) if one and results is not None else None,
        "adapters": rows,
        "output": output,
        "report": None if page.path is None else str(page.path),
        "format": "/".join(sorted(set(formats))),
        "layout": "/".join(sorted(set(layouts))),
        "dtype": "/".join(sorted({str(kept).removeprefix("torch.") for kept in dtypes})),
        "modules": len({module for infos in made for module in infos}),
        "rank_out": sorted({rank for infos in made for rank in distinct_ranks(infos)}),
        "bytes_in": sum(row["bytes_in"] for row in rows),
        "bytes_out": sum(sizes),
        "seconds": round(perf_counter() - started, 3),
    }
    if as_json:
        show_json(report)
    elif not quiet:
        show_run(report)


def _made(estimator: Any, adapters: AdapterSet, *, one: bool, jobs: int | None) -> tuple[AdapterSet, list[Comparison]]:
    """Run the estimator; return its results, and how near they are to the adapters."""
    if one and hasattr(estimator, "fit_compare"):
        compared = estimator.fit_compare(adapters)
        return estimator.transform(adapters), compared
    results = estimator.fit_transform(adapters)
    if one:  # a pipeline, whose first steps change the adapters
        return results, compare_to_each(results[0], adapters, n_jobs=jobs)
    return results, [compare_adapters(result, adapter) for result, adapter in zip(results, adapters, strict=True)]


def _steps() -> Any:
    from ..recipes import steps  # few runs save a recipe, and it takes long

    return steps


def _factor(result: Adapter) -> dict[str, float] | None:
    """Return what the scale of a merge came to, smallest, median and largest over the modules."""
    made = result.provenance.made
    return None if made is None or made.step.recipe is None else made.step.recipe.get("factor")


def _strengths(estimator: Any, names: Sequence[str]) -> Sequence[float]:
    """Return the strengths of a merge; nothing if it has none, or they are those of what steps before it made."""
    strengths = getattr(reported(estimator), "strengths", None)
    if isinstance(strengths, Mapping):
        return [strengths[name] for name in names] if set(names) <= set(strengths) else ()
    return () if strengths is None else strengths
