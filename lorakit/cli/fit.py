"""``lorakit fit``: whether adapters fit a base checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option
from ._options import adapters_argument, json_option, needed, reading_options_beside_a_base, recipe_options
from ._recipe import with_recipe
from ._streams import say

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..checkpoints.fitting import Fit
    from ..recipes.recipe import Recipe
    from ._recipe import Saving

DOES_NOT_FIT = 1
_SHOWN = 12


@click.command(
    epilog="""\b
Examples:
  lorakit fit base/ law/
  lorakit fit base/ law/ medicine/ --json
  lorakit fit base/ law/ --rename law-renamed/

Exit codes: 0 all fit; 1 one does not; 2 wrong usage or unreadable input."""
)
@click.argument("base", metavar="BASE", required=False, callback=needed, type=click.Path())
@adapters_argument
@click.option(
    "--rename",
    type=click.Path(),
    metavar="OUT",
    help="Write the adapter with the names of the base, where one change of the beginning of its names mends it.",
)
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is there; never a folder of other files.")
@recipe_options
@reading_options_beside_a_base
@json_option
@debug_option
@click.pass_context
@with_recipe("rename")
def fit(
    ctx: click.Context,
    base: str,
    paths: tuple[str, ...],
    rename: str | None,
    overwrite: bool,
    names: tuple[str, ...],
    as_json: bool,
    recipe: Recipe | None,
    saving: Saving,
    **reading: Any,
) -> None:
    """Say whether LoRA adapters fit a base model: whether each of their modules has a tensor of its shape.

    Only headers are read, so that it takes no longer for a large model. An adapter that does not fit is one that other
    programs refuse, or take and then do nothing with. For modules without a tensor, names of the base that are near
    are shown.
    """
    from .. import check_fit, load_adapters, save_adapter
    from ..files.open_checkpoint import open_checkpoint
    from ..io.load import distinct_names, spoken_path
    from ..recipes.sources import check_adapters, check_checkpoint
    from ._conversions import renamed_modules
    from ._report import show_json

    if rename is None and saving.file is not None:
        raise click.UsageError("--save-recipe is for --rename: without it nothing is written")
    if rename is not None and len(paths) > 1:
        raise click.UsageError("--rename takes one adapter")
    checkpoint = open_checkpoint(base)
    adapters = load_adapters(
        paths,
        names=names or distinct_names([spoken_path(path) for path in paths]),
        base=base,
        same_names=False,
        **reading,
    )
    if recipe is not None:
        check_checkpoint(recipe, recipe.base, base)
        check_adapters(recipe, adapters)
    fits = [check_fit(checkpoint, adapter) for adapter in adapters]
    rows = [_row(found, adapter, path) for found, adapter, path in zip(fits, adapters, paths, strict=True)]
    report: dict[str, Any] = {"command": "fit", "base": base, "fits": all(found.fits for found in fits)}
    report |= {"adapters": rows, "renamed": None}
    if rename is not None:
        renaming = fits[0].renaming
        if not renaming:
            why = "fits as it is" if fits[0].fits else "has no names that one change of their beginning would mend"
            raise click.UsageError(f"{paths[0]} {why}, so there is nothing to rename")
        renamed = renamed_modules(adapters[0], renaming)
        report["renamed"] = str(save_adapter(renamed, Path(rename), overwrite=overwrite))
        saving.write(lambda: [{"rename": {}}], adapters, base=base, output=rename, reading=reading)
    if as_json:
        show_json(report)
    else:
        _show(report)
    ctx.exit(0 if report["fits"] else DOES_NOT_FIT)


def _row(found: Fit, adapter: Adapter, path: str) -> dict[str, Any]:
    return {
        "name": found.adapter,
        "path": path,
        "fits": found.fits,
        "modules": len(adapter),
        "tensors": len({target.tensor for targets in found.targets.values() for target in targets}),
        "base_model": found.base_model,
        "missing": {module: list(near) for module, near in found.missing.items()},
        "differing": dict(found.differing),
        "renaming": dict(found.renaming),
    }


def _show(report: Mapping[str, Any]) -> None:
    from ._report import show_table

    rows: Sequence[Mapping[str, Any]] = report["adapters"]
    show_table(
        ("adapter", "fits", "trained on", "modules", "tensors", "missing", "of another shape"),
        [
            (
                row["name"],
                "yes" if row["fits"] else "no",
                row["base_model"] or "-",
                *(str(row[key]) for key in ("modules", "tensors")),
                *(str(len(row[key])) for key in ("missing", "differing")),
            )
            for row in rows
        ],
        left=3,
    )
    for row in rows:
        _show_wrong(row)
        if row["renaming"]:
            old, new = next(iter(row["renaming"].items()))
            say(f"{row['name']}: would fit under other names, such as {new} for {old}: --rename OUT writes it")
    if report["renamed"]:
        say(f"wrote {report['renamed']}, which fits")


def _show_wrong(row: Mapping[str, Any]) -> None:
    lines = [
        f"{module}: no tensor" + (f"; the base has {', '.join(near)}" if near else "")
        for module, near in row["missing"].items()
    ]
    lines += [f"{module}: {why}" for module, why in row["differing"].items()]
    for line in lines[:_SHOWN]:
        say(f"{row['name']}: {line}")
    if len(lines) > _SHOWN:
        say(f"{row['name']}: and {len(lines) - _SHOWN} more; --json shows all")
