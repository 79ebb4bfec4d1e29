"""``lorakit convert``: one adapter in, the same updates in another format, layout or dtype out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..io.names.component import COMPONENTS
from ._completion import complete_format
from ._errors import debug_option
from ._options import (
    file_options,
    jobs_option,
    json_option,
    needed,
    rank_option,
    reading_options_of_one,
    recipe_options,
)
from ._recipe import with_recipe
from ._streams import say
from ._values import check_named

if TYPE_CHECKING:
    import torch

    from .. import Adapter
    from ..recipes.recipe import Recipe
    from ._recipe import Saving


@click.command(
    epilog="""\b
Examples:
  lorakit convert law/ -o law-for-servers/ --pad-to server
  lorakit convert law/ -o law-half/ --dtype bfloat16
  lorakit convert style.safetensors -o style/ --to peft
  lorakit convert style/ -o style.safetensors --to kohya
  lorakit convert loha.safetensors -o lora.safetensors -k 16"""
)
@click.argument("path", metavar="IN", required=False, callback=needed, type=click.Path())
@click.option("-o", "--output", callback=needed, type=click.Path(), metavar="OUT", help="Folder or file to make.")
@click.option(
    "--to",
    "target",
    metavar="FORMAT",
    shell_complete=complete_format,
    help="Format to write.  [default: that of IN]",
)
@click.option(
    "--component",
    type=click.Choice(COMPONENTS),
    help="Model of a diffusion pipeline: the one to take, of several; or the one that the modules belong to, where "
    "their names do not say.  [default: all]",
)
@click.option(
    "--family",
    metavar="FAMILY",
    help="Family of diffusion transformers that the adapter is for, such as flux or wan, where its names do not show "
    "it; an error lists those that it can be of.",
)
@rank_option("the rank that the adapter has")
@jobs_option
@recipe_options
@file_options
@reading_options_of_one
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No table; warnings and errors only.")
@debug_option
@with_recipe("convert")
def convert(
    path: str,
    output: str,
    target: str | None,
    component: str | None,
    family: str | None,
    k: Any,
    jobs: int | None,
    layout: Any,
    pad_to: Any,
    dtype: str | None,
    overwrite: bool,
    names: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    recipe: Recipe | None,
    saving: Saving,
    **reading: Any,
) -> None:
    """Write an adapter as a plain LoRA in another format, layout or dtype.

    Any format that can be read is taken. What was written is read back and compared with IN, module by module: the
    updates are the same but for rounding to the dtype of the file, and the largest relative error is reported. The
    compact layout leaves out units of zeros, which padding to one rank made.

    Transformers of FLUX, Stable Diffusion 3, HunyuanVideo, Wan, Qwen-Image, Z-Image and others have other names in each
    format. Layers that are one in some and several in others, such as Q, K and V, are split and joined exactly.

    LoHa, LoKr and AdaLoRA become plain LoRA, exactly, at whatever rank that takes; so do VeRA, MiSS, PiSSA and others
    with --base or --initial. With -k each module is cut to its best approximation of that rank, as `lorakit prune`
    does, and the error of the cut is reported and recorded in OUT. A DoRA, which needs --base, has full rank: it is
    always cut.
    """
    import torch

    from .. import AdapterSet, load_adapter, save_adapter
    from ..io.load import distinct_names, spoken_path
    from ..io.save import chosen_layout
    from ._contents import other_parameters
    from ._conversions import in_memory
    from ._differences import differences, warn_of_cancelling
    from ._full_rank import refuse_full_rank
    from ._jobs import modules_at_a_time
    from ._measure import distinct_ranks, finite, source_bytes, weights_bytes
    from ._naming import reading_of, under_names_of
    from ._outputs import check_outputs
    from ._progress import progress_bar
    from ._report import show_json

    started = perf_counter()
    if len(names) > 1:
        raise click.UsageError("there is one adapter, so --name can be given once")
    name = names[0] if names else distinct_names([spoken_path(path)])[0]
    check_named("--initial", reading["initial"], [name])
    adapter = load_adapter(path, name=names[0] if names else None, **reading_of(name, reading))
    if recipe is not None:
        from ..recipes.sources import check_adapters

        check_adapters(recipe, [adapter])
    refuse_full_rank([adapter], k)
    warn_of_cancelling(adapter)
    before = adapter.provenance.format
    wanted, target = target, target or before
    check_outputs([Path(output)], [target], overwrite=overwrite)
    stored = adapter.dtype if dtype is None else getattr(torch, dtype)
    with modules_at_a_time(jobs, AdapterSet([adapter])):
        cut = adapter if k is None else _at_rank(adapter, k, stored, jobs)
    lost_by_cut = None if k is None else cut_report(cut, adapter)
    if cut is not adapter and lost_by_cut is not None:
        cut = with_error(cut, lost_by_cut["relative_error"])
    made = under_names_of(cut, target, component, family)
    compact = chosen_layout(target, layout) == "compact"
    # what is there may be IN, which is gone when the two are compared; what needs the base takes long to read
    if compact or Path(output).exists() or (reading["base"] and k is None):
        made = in_memory(made, without_padding=compact)
    bytes_in = source_bytes(adapter)
    with progress_bar("hashing IN: MB", quiet=quiet, late=True):
        save_adapter(made, output, format=target, layout=layout, pad_to=pad_to, dtype=stored, overwrite=overwrite)
    kept = {name: reading.get(name, "refuse") for name in ("modules_to_save", "differences")}
    written = load_adapter(output, format=target, **kept)
    found, totals = differences(written, made, dtypes=([stored], [stored, made.dtype]))
    lost = [d.module for d in found if not (d.same or d.unsure)] + other_parameters(written, made)
    if lost:
        raise RuntimeError(f"{output}: was written, and holds other updates than {path} in {', '.join(lost[:3])}")
    saving.write(
        lambda: _steps(wanted, component, family, k),
        [adapter],
        output=output,
        written={"layout": layout, "pad_to": pad_to, "dtype": dtype},
        reading=reading,
    )
    worst = max(found, key=lambda d: d.relative_error or 0.0)
    report = {
        "command": "convert",
        "input": path,
        "output": output,
        "format_in": before,
        "format": target,
        "layout": chosen_layout(target, layout),
        "dtype_in": str(adapter.dtype).removeprefix("torch."),
        "dtype": str(stored).removeprefix("torch."),
        "modules": len(made),
        "rank_in": distinct_ranks(adapter.infos),
        "rank_out": distinct_ranks(written.infos),
        "bytes_in": bytes_in,
        "bytes_out": weights_bytes(Path(output)),
        "identical": totals.identical,
        "relative_error": finite(totals.relative_error or 0.0),
        "worst_module": {"module": worst.module, "relative_error": worst.relative_error},
        "relative_errors": {d.module: d.relative_error for d in found},
        "cut": lost_by_cut,
        "seconds": round(perf_counter() - started, 3),
    }
    if as_json:
        show_json(report)
    elif not quiet:
        _show(report)


def _steps(target: str | None, component: str | None, family: str | None, k: Any) -> list[dict[str, Any]]:
    """Return the step of a recipe that these options are."""
    from ..recipes.steps import readable_rank

    given = {"to": target, "component": component, "family": family, "k": None if k is None else readable_rank(k)}
    return [{"convert": {name: value for name, value in given.items() if value is not None}}]


def _at_rank(adapter: Adapter, k: Any, dtype: torch.dtype, jobs: int | None) -> Adapter:
    """Return the best approximation of an adapter at a rank, as precise as a file of a dtype holds it."""
    from ._late import load_late

    load_late()
    from .. import SVDPruner
    from ..factors import promoted_dtype

    if isinstance(k, int) and k >= max(adapter.ranks, default=k):
        return adapter
    wide = adapter.astype(promoted_dtype((adapter.dtype, dtype)))
    (cut,) = SVDPruner(k=k, n_jobs=jobs).fit_transform([wide])
    return cut


def cut_report(cut: Adapter, adapter: Adapter) -> dict[str, Any]:
    """Return how far an adapter that was cut to a rank is from itself, over all modules and by module."""
    from ..metrics import Comparison, compare_updates
    from ._measure import finite

    spectra = {}
    for module, info in cut.infos.items():
        found = adapter.svd(module, 0) if info.rank < adapter.infos[module].rank else None
        if found is not None:  # the best cut is orthogonal to what it leaves out
            energy = found[1].square()
            kept = float(energy[: info.rank].sum())
            spectra[module] = Comparison(kept, kept, float(energy.sum()))
    rest = [module for module in cut if module not in spectra]
    compared = spectra | (compare_updates(cut.select(rest), adapter.select(rest)) if rest else {})
    first, *others = compared.values()
    worst = max(compared, key=lambda module: compared[module].relative_error)
    return {
        "relative_error": finite(sum(others, first).relative_error),
        "worst_module": {"module": worst, "relative_error": finite(compared[worst].relative_error)},
        "relative_errors": {module: finite(one.relative_error) for module, one in compared.items()},
    }


def with_error(cut: Adapter, error: float | None) -> Adapter:
    """Return an adapter whose record says how far the cut is from what it was made of."""
    made = cut.provenance.made
    if made is None or made.step.recipe is None:
        return cut
    step = replace(made.step, recipe={**made.step.recipe, "relative_error": error})
    return cut.with_provenance(made=made._replace(step=step))


def _show(report: Mapping[str, Any]) -> None:
    from ._report import bytes_text, ranks_text, show_table

    show_table(
        ("", "format", "dtype", "modules", "rank", "bytes"),
        [
            (
                report[which],
                report[f"format{end}"],
                report[f"dtype{end}"],
                str(report["modules"]),
                ranks_text(report[f"rank_{side}"]),
                bytes_text(report[f"bytes_{side}"]),
            )
            for which, end, side in (("input", "_in", "in"), ("output", "", "out"))
        ],
        left=3,
    )
    if report["cut"] is not None:
        worst = report["cut"]["worst_module"]
        click.echo(
            f"\nCut to rank {ranks_text(report['rank_out'])}: relative error of the update "
            f"{report['cut']['relative_error']:.2g}; at most {worst['relative_error']:.2g}, in {worst['module']}"
        )
    if report["identical"]:
        say("\nRead back and compared: the same factors, bit for bit.")
    else:
        worst = report["worst_module"]
        say(
            f"\nRead back and compared: relative error of the update {report['relative_error']:.2g}; "
            f"at most {worst['relative_error']:.2g}, in {worst['module']}"
        )
    say(f"wrote {report['output']} ({report['dtype']}, {report['layout']})")
