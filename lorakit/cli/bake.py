"""``lorakit bake``: adapters added to a base checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option
from ._options import json_option, needed, output_option, reading_options_beside_a_base, recipe_options, strict_option
from ._recipe import strengths_of, with_recipe
from ._streams import say
from ._values import split_strengths

if TYPE_CHECKING:
    from ..checkpoints import Baked
    from ..recipes.recipe import Recipe
    from ._recipe import Saving


@click.command(
    epilog="""\b
Examples:
  lorakit bake base/ law/ -o law-model/
  lorakit bake base/ law/:0.7 medicine/:0.5 -o both/
  lorakit bake sdxl.safetensors style.safetensors:0.8 -o styled.safetensors
  lorakit verify both/ --sources base/ law/ medicine/"""
)
@click.argument("base", metavar="BASE", required=False, callback=needed, type=click.Path())
@click.argument("given", metavar="ADAPTER[:STRENGTH]...", nargs=-1, callback=needed, type=click.Path())
@output_option
@click.option("--overwrite", is_flag=True, help="Replace a result that is there; never a folder with other files.")
@click.option("-n", "--dry-run", is_flag=True, help="Check everything against the headers; write nothing.")
@strict_option
@recipe_options
@reading_options_beside_a_base
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No table and no progress; warnings and errors only.")
@debug_option
@with_recipe("bake")
def bake(
    base: str,
    given: tuple[str, ...],
    output: str,
    overwrite: bool,
    dry_run: bool,
    strict: bool,
    names: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    recipe: Recipe | None,
    saving: Saving,
    **reading: Any,
) -> None:
    """Add LoRA adapters to the weights of a base model, each with its strength.

    BASE is a safetensors file, a folder with one or with shards, or a folder of a diffusers pipeline. OUT has the same
    files: a tensor W becomes W + 0.7 B A for an ADAPTER:0.7, rounded once to the dtype of W, and all else is taken
    along. Strengths are factors as they stand, 1 where none is given. A path that exists is never split at its colon.

    No model is loaded, and a few rows of one tensor are in memory at a time. OUT is written whole or not at all.
    Each module of each adapter must have its tensor; `lorakit fit` says more about those that do not.
    """
    from .. import bake as library_bake
    from .. import load_adapters
    from ..checkpoints.writing import check_output
    from ..io.load import distinct_names, spoken_path
    from ..recipes.sources import check_adapters, check_checkpoint
    from ._progress import progress_bar
    from ._report import show_json

    started = perf_counter()
    paths, found = split_strengths(given)
    adapters = load_adapters(
        paths,
        same_names=False,
        names=names or distinct_names([spoken_path(path) for path in paths]),
        same_base="strict" if strict else "warn",
        base=base,
        **reading,
    )
    strengths = found or [1.0] * len(paths)
    if recipe is not None:
        check_checkpoint(recipe, recipe.base, base)
        check_adapters(recipe, adapters)
        strengths = strengths_of(recipe, found) or strengths
    if dry_run:
        baked = library_bake(base, list(adapters), strengths=strengths)
        check_output(baked, Path(output), overwrite=overwrite)
    else:
        with progress_bar("bake: tensors", quiet=quiet):
            baked = library_bake(base, list(adapters), output, strengths=strengths, overwrite=overwrite)
        saving.write(lambda: [{"bake": {}}], adapters, strengths=strengths, base=base, output=output, reading=reading)
    report = _report(baked, base, paths, output, dry_run)
    report["seconds"] = round(perf_counter() - started, 3)
    if as_json:
        show_json(report)
    elif not quiet:
        _show(report)


def _report(baked: Baked, base: str, paths: list[str], output: str, dry_run: bool) -> dict[str, Any]:
    from .._version import __version__

    shares = dict(sorted(baked.rounding.items(), key=lambda item: -item[1]))
    worst = next(iter(shares), None)
    return {
        "lorakit": __version__,
        "command": "bake",
        "dry_run": dry_run,
        "base": base,
        "adapters": [
            {
                "name": adapter.name,
                "path": path,
                "strength": strength,
                "modules": len(adapter),
                "rank": adapter.ranks,
            }
            for adapter, path, strength in zip(baked.adapters, paths, baked.strengths, strict=True)
        ],
        "output": output,
        "tensors": len(baked),
        "tensors_changed": len(baked.changed),
        "tensors_added": list(baked.added),
        "left_out": list(baked.left_out),
        "lost_to_rounding": shares,
        "worst": None if worst is None else {"tensor": worst, "share": shares[worst]},
    }


def _show(report: Mapping[str, Any]) -> None:
    from ._report import ranks_text, show_table

    show_table(
        ("adapter", "strength", "modules", "rank"),
        [
            (row["name"], f"{row['strength']:g}", str(row["modules"]), ranks_text(row["rank"]))
            for row in report["adapters"]
        ],
        left=1,
    )
    say(f"\nchanges {report['tensors_changed']} of the {report['tensors']} tensors of {report['base']}")
    for name in report["tensors_added"]:
        say(f"adds {name}, which the base shares with its embedding")
    if report["left_out"]:
        say(f"leaves out, as other copies of the base's weights: {', '.join(report['left_out'])}")
    if report["worst"] is not None:
        worst = report["worst"]
        say(f"rounding took at most {worst['share']:.2g} of an update, in {worst['tensor']}")
    end = "dry run, nothing written; would write" if report["dry_run"] else "wrote"
    say(f"{end} {report['output']}")
