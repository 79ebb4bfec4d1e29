"""``lorakit prune``: each adapter in, the same adapter at a lower rank out."""

from __future__ import annotations

from typing import Any

import click

from ._ahead import hash_ahead
from ._completion import methods_of
from ._engine import engine_options
from ._options import (
    adapters_argument,
    method_options,
    output_option,
    rank_option,
    reading_options,
    recipe_options,
    writing_options,
)
from ._recipe import with_recipe


@click.command(
    epilog="""\b
Examples:
  lorakit prune law/ -o small/ -k 4
  lorakit prune law/ medicine/ -o small/ -k 4      writes small/law and small/medicine
  lorakit prune law/ -o small/ -k 4 --method lego -p align=svd"""
)
@adapters_argument
@output_option
@click.option(
    "-m",
    "--method",
    default="svd",
    show_default=True,
    metavar="METHOD",
    shell_complete=methods_of("pruner"),
    help="How to prune; see `lorakit methods`. No adapter of rank k is nearer to the original than svd's.",
)
@rank_option("half of each module's rank")
@method_options
@engine_options
@recipe_options
@reading_options
@writing_options
@with_recipe("prune")
def prune(*, method: str, k: Any, **shared: Any) -> None:
    """Prune LoRA adapters to a lower rank, each by itself.

    An ADAPTER is a folder or a file in any format that lorakit reads. If there is one ADAPTER, OUT is the pruned
    adapter. If there are several, OUT holds a folder or a file for each, under the adapters' names. Modules of rank k
    or less stay as they are. Without -k each module keeps half of its rank.
    """
    if not shared["dry_run"]:
        hash_ahead(shared["paths"], jobs=shared["jobs"])
    from ._run import run

    run("pruner", method, given={"k": k}, **shared)
