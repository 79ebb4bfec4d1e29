"""``lorakit merge``: many adapters in, one out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .._listing import MERGE_SCALE, OWN_SCALE
from ..io.names.component import COMPONENTS
from ._ahead import hash_ahead
from ._completion import methods_of
from ._distill import completion, distill_options
from ._engine import engine_options
from ._options import (
    method_options,
    needed,
    output_option,
    rank_option,
    reading_options,
    recipe_options,
    strict_option,
    writing_options,
)
from ._parts import part_options, scaler_of
from ._recipe import strengths_of, with_recipe
from ._values import read_scale, read_weights, split_strengths

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe


@click.command(
    epilog="""\b
Examples:
  lorakit merge law/ medicine/ finance/ -o merged/ -k 16
  lorakit merge law/ medicine/ -o merged/ --weights law=2,medicine=1 --scale 1
  lorakit merge law/:0.7 medicine/:0.5 -o merged/ --method svd -k 16
  lorakit merge law/ medicine/ -o merged/ --module-weights 'law@.*mlp.*=0.3' --module-weights '.*mlp.*=0.5'
  lorakit merge law/ medicine/ -o merged/ --method ties -p density=0.3
  lorakit merge law/ medicine/ -o merged/ --method svd -k 8 --dry-run
  lorakit merge law/ medicine/ -o merged/ --method distill -k 16 --model base/ --heads heads.yaml
  lorakit merge law/ medicine/ -o merged/ -k 16 --save-recipe merge.yaml
  lorakit merge --recipe merge.yaml"""
)
@click.argument("given", metavar="ADAPTER[:STRENGTH]...", nargs=-1, callback=needed, type=click.Path())
@output_option
@click.option(
    "-m",
    "--method",
    default="tsv",
    show_default=True,
    metavar="METHOD",
    shell_complete=methods_of("merger"),
    help="How to merge; see `lorakit methods`.",
)
@rank_option("the method's choice, which `lorakit methods METHOD` says")
@click.option(
    "-w",
    "--weights",
    callback=read_weights,
    metavar="WEIGHTS",
    help="Shares, in place of strengths: one number for each adapter in order, 1,2,1, or by name, law=2,medicine=1; "
    "normalised to sum 1.  [default: equal]",
)
@click.option(
    "--scale",
    callback=read_scale,
    metavar="FLOAT|match",
    help="Factor on the merged update; match gives each module the mean norm of the adapters' updates, 1 leaves the "
    "method's own.  [default: match; 1 where an adapter has a strength]",
)
@click.option(
    "--component",
    type=click.Choice(COMPONENTS),
    help="Model of a diffusion pipeline to take of adapters that are for several, such as the two transformers of "
    "Wan 2.2, which other files name alike.  [default: all]",
)
@part_options
@distill_options
@method_options
@engine_options
@recipe_options
@reading_options
@strict_option
@writing_options
@with_recipe("merge")
def merge(
    *,
    method: str,
    k: Any,
    given: tuple[str, ...],
    weights: Any,
    scale: Any,
    model: str | None,
    heads: str | None,
    prompts: tuple[str, ...],
    recipe: Recipe | None,
    module_weights: tuple[str, ...],
    block_weights: tuple[str, ...],
    **shared: Any,
) -> None:
    """Merge LoRA adapters into one, of any rank.

    An ADAPTER is a folder or a file in any format that lorakit reads. All must come from one base model, which itself
    is not needed; their ranks may differ. OUT is written whole or not at all.

    The default method and scale are those that did well on real adapters without anything being tuned. Without -k the
    default method cuts nothing, and the rank is the sum of the adapters'. In Python the default scale is 1, so a merge
    gives the same adapter only with scale='match'. The closing line, and the record in OUT, name the factor by which
    the method's own result was multiplied.

    A STRENGTH multiplies an adapter's update before the merge, and is 1 for an adapter without one: with --method
    concat, a/:0.7 b/:-0.3 gives exactly 0.7 A - 0.3 B. Strengths are factors as they stand, so that the scale is then
    1, and not match, unless --scale is given. A path that exists is never split at its colon.

    The closing table says how near the merged update is to each adapter's: their cosine, and the norm of their
    difference over the norm of the adapter's update.
    """
    paths, strengths = split_strengths(given)
    if not shared["dry_run"]:
        hash_ahead(paths, jobs=shared["jobs"])
    from ._pipelines import last_method
    from ._run import run

    if weights is not None and strengths is not None:
        raise click.UsageError(
            "--weights are shares, of which only the ratios count, and strengths such as law/:0.7 are factors as they "
            "stand; give one of them"
        )
    if recipe is not None:
        method = last_method(recipe)
        strengths = strengths_of(recipe, strengths, in_steps=True)
    complete = completion(method, model=model, heads=heads, prompts=prompts, dry_run=shared["dry_run"])
    if scale is None and strengths is None and method not in OWN_SCALE:
        scale = MERGE_SCALE
    of_merge = {"k": k, "weights": weights, "strengths": strengths, "scale": scale}
    prepare = scaler_of(module_weights, block_weights)
    run("merger", method, given=of_merge, paths=paths, complete=complete, prepare=prepare, recipe=recipe, **shared)
