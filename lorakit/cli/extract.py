"""``lorakit extract``: an adapter out of a fine-tuned checkpoint and its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option, parameters_checked
from ._options import (
    device_option,
    file_options,
    jobs_option,
    json_option,
    needed,
    output_option,
    recipe_options,
)
from ._recipe import with_recipe
from ._streams import say
from ._values import read_rank

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe
    from ._recipe import Saving

_SHOWN = 12


@click.command(
    epilog="""\b
Examples:
  lorakit extract tuned/ base/ -k 16 -o adapter/
  lorakit extract tuned/ base/ -k 0.9 -o adapter/ --modules '.*_proj' --rest drop
  lorakit extract tuned/ base/ -k size:50MiB -o adapter/ --layout compact"""
)
@click.argument("tuned", metavar="TUNED", required=False, callback=needed, type=click.Path())
@click.argument("base", metavar="BASE", required=False, callback=needed, type=click.Path())
@output_option
@click.option(
    "-k",
    callback=read_rank,
    metavar="RANK",
    help="Rank of each module: a number; a share of the energy of its change below 1, such as 0.9; auto, for its "
    "effective rank; mean:N or mean:N,max:M, to spread N times the number of modules where the singular values are "
    "large; size:50MiB, to spread the bytes of a file in the compact layout; sv_ratio:N, sv_fro:SHARE or "
    "sv_cumulative:SHARE, also with ,max:M, as in resize_lora.py.",
)
@click.option(
    "--modules", "patterns", metavar="REGEX", multiple=True,
    help="Regular expression that must match the whole name of a module; repeat it, one must match.  "
         "[default: all linear layers, embeddings and convolutions]",
)  # fmt: skip
@click.option(
    "--rest", type=click.Choice(["refuse", "drop"]), default="refuse", show_default=True,
    help="Changes that no LoRA can hold (norms, biases, new rows of a vocabulary): refuse, or leave them out.",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(["kohya", "diffusers"]),
    help="Name the modules as files of this format do, and write such a file: of a diffusion model, whose fused layers "
         "become modules of their own.  [default: the names of the tensors, in a PEFT folder]",
)  # fmt: skip
@click.option("--exact", is_flag=True, help="Decompose in full, which takes many times longer.")
@click.option("--seed", type=int, metavar="N", default=0, help="Seed of the randomised decomposition.  [default: 0]")
@click.option("-n", "--dry-run", is_flag=True, help="Do everything but write the adapter.")
@jobs_option
@device_option
@recipe_options
@file_options
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No table and no progress; warnings and errors only.")
@debug_option
@with_recipe("extract")
def extract(
    tuned: str,
    base: str,
    output: str,
    k: Any,
    patterns: tuple[str, ...],
    rest: Any,
    format: Any,
    exact: bool,
    seed: int,
    dry_run: bool,
    jobs: int | None,
    device: str | None,
    layout: Any,
    pad_to: Any,
    dtype: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    recipe: Recipe | None,
    saving: Saving,
) -> None:
    """Take a LoRA adapter out of a fine-tuned model: for each module the nearest to TUNED - BASE of a rank.

    TUNED and BASE are safetensors files, or folders with one or with shards. Both are read tensor by tensor. The table
    says what share of the energy of the changes (their squared norm) the adapter holds, beside the share that rounding
    of TUNED to its dtype would make by itself.
    """
    import torch

    from .. import extract_adapter, save_adapter
    from ..recipes.sources import check_checkpoint
    from ._outputs import check_outputs
    from ._progress import progress_bar
    from ._report import show_json

    started = perf_counter()
    if k is None:
        raise click.UsageError("Missing option '-k'.")
    if recipe is not None:
        check_checkpoint(recipe, recipe.sources[0] if recipe.sources else None, tuned)
        check_checkpoint(recipe, recipe.base, base)
    check_outputs([Path(output)], [format or "peft"], overwrite=overwrite)
    with progress_bar("extract: tensors", quiet=quiet), parameters_checked():
        adapter = extract_adapter(
            tuned,
            base,
            k,
            modules=patterns or None,
            rest=rest,
            exact=exact,
            dtype=None if dtype is None else getattr(torch, dtype),
            name=Path(output).name,
            random_state=seed,
            n_jobs=jobs,
            device=device,
            format=format,
        )
    if not dry_run:
        with progress_bar("hashing the checkpoints: MB", quiet=quiet, late=True):
            save_adapter(adapter, output, layout=layout, pad_to=pad_to, overwrite=overwrite)
        saving.write(
            lambda: _steps(k, patterns, rest, format, exact, seed),
            [],
            tuned=tuned,
            base=base,
            output=output,
            written={"layout": layout, "pad_to": pad_to, "dtype": dtype},
        )
    report = _report(adapter, tuned, base, output, dry_run)
    report["seconds"] = round(perf_counter() - started, 3)
    if as_json:
        show_json(report)
    elif not quiet:
        _show(report)


def _steps(
    k: Any, patterns: tuple[str, ...], rest: str, format: str | None, exact: bool, seed: int
) -> list[dict[str, Any]]:
    """Return the step of a recipe that these options are."""
    from ..recipes.steps import readable_rank

    modules = {"modules": list(patterns)} if patterns else {}
    named = {} if format is None else {"format": format}
    return [
        {"extract": {"k": readable_rank(k), **modules, "rest": rest, **named, "exact": exact, "random_state": seed}}
    ]


def _report(adapter: Any, tuned: str, base: str, output: str, dry_run: bool) -> dict[str, Any]:
    from .._version import __version__
    from ..factors import dtype_name

    found = adapter.report
    return {
        "lorakit": __version__,
        "command": "extract",
        "dry_run": dry_run,
        "tuned": tuned,
        "base": base,
        "output": output,
        "dtype": dtype_name(adapter.dtype),
        "parameters": adapter.n_parameters,
        "rank": adapter.ranks,
        "kept": found.kept,
        "rounding": found.rounding,
        "unchanged": found.unchanged,
        "modules": [module._asdict() for module in found.modules],
        "left_out": [tensor._asdict() for tensor in found.left_out],
    }


def _show(report: Mapping[str, Any]) -> None:
    from ._report import ranks_text, show_table

    modules = sorted(report["modules"], key=lambda module: module["kept"])
    show_table(
        ("module", "rank", "change", "kept", "rounding"),
        [
            (m["module"], str(m["rank"]), f"{m['change']:.2g}", f"{m['kept']:.4f}", f"{m['rounding']:.1g}")
            for m in modules[:_SHOWN]
        ],
        left=1,
    )
    if len(modules) > _SHOWN:
        say(f"and {len(modules) - _SHOWN} more, of which more is kept")
    for tensor in report["left_out"][:_SHOWN]:
        share = "" if tensor["share"] is None else f", {tensor['share']:.2g} of all changes"
        say(f"left out: {tensor['tensor']} ({tensor['why']}{share})")
    if len(report["left_out"]) > _SHOWN:
        say(f"left out: and {len(report['left_out']) - _SHOWN} more; --json shows all")
    say(
        f"\n{len(modules)} modules, rank {ranks_text(report['rank'])}: {report['kept']:.4f} of the energy of their "
        f"changes is kept; rounding alone would make {report['rounding']:.1g} of it"
    )
    end = "dry run, nothing written; would write" if report["dry_run"] else "wrote"
    say(f"{end} {report['output']} ({report['dtype']})")
