"""``lorakit convert``: one adapter in, the same updates in another format, layout or dtype out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option
from ._options import file_options, json_option, reading_options
from ._streams import say

if TYPE_CHECKING:
    from .. import Adapter


@click.command(
    epilog="""\b
Examples:
  lorakit convert law/ -o law-for-servers/ --pad-to server
  lorakit convert law/ -o law-half/ --dtype bfloat16
  lorakit convert style.safetensors -o style/ --to peft
  lorakit convert style/ -o style.safetensors --to kohya"""
)
@click.argument("path", metavar="IN")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="OUT", help="Folder or file to make.")
@click.option("--to", "target", metavar="FORMAT", help="Format to write.  [default: that of IN]")
@click.option(
    "--component",
    type=click.Choice(["unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]),
    help="Model of a diffusion pipeline: the one to take, of several; or the one that the modules belong to, where "
    "their names do not say.  [default: all]",
)
@file_options
@reading_options
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No table; warnings and errors only.")
@debug_option
def convert(
    path: str,
    output: str,
    target: str | None,
    component: str | None,
    layout: Any,
    pad_to: Any,
    dtype: str | None,
    overwrite: bool,
    names: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **reading: Any,
) -> None:
    """Write a LoRA adapter in another format, layout or dtype.

    Any format that can be read is taken. What was written is read back and compared with IN, module by module: the
    updates are the same but for rounding to the dtype of the file, and the largest relative error is reported. The
    compact layout leaves out units of zeros, which padding to one rank made.
    """
    import torch

    from .. import load_adapter, save_adapter
    from ..io.save import chosen_layout
    from ._differences import differences
    from ._measure import distinct_ranks, finite, source_bytes, weights_bytes
    from ._naming import under_names_of
    from ._outputs import check_outputs
    from ._report import show_json

    started = perf_counter()
    if len(names) > 1:
        raise click.UsageError("there is one adapter, so --name can be given once")
    adapter = load_adapter(path, name=names[0] if names else None, **reading)
    before = adapter.provenance.format
    target = target or before
    check_outputs([Path(output)], [target], overwrite=overwrite)
    made = under_names_of(adapter, target, component)
    compact = chosen_layout(target, layout) == "compact"
    if compact or Path(output).exists():  # what is there may be IN, which is gone when the two are compared
        made = _in_memory(made, without_padding=compact)
    stored = adapter.dtype if dtype is None else getattr(torch, dtype)
    bytes_in = source_bytes(adapter)
    save_adapter(made, output, format=target, layout=layout, pad_to=pad_to, dtype=stored, overwrite=overwrite)
    written = load_adapter(output, format=target, modules_to_save=reading.get("modules_to_save", "refuse"))
    found, totals = differences(written, made, dtypes=([stored], [stored, adapter.dtype]))
    lost = [d.module for d in found if not (d.same or d.unsure)]
    if lost:
        raise RuntimeError(f"{output}: was written, and holds other updates than {path} in {', '.join(lost[:3])}")
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
        "seconds": round(perf_counter() - started, 3),
    }
    if as_json:
        show_json(report)
    elif not quiet:
        _show(report)


def _in_memory(adapter: Adapter, *, without_padding: bool) -> Adapter:
    """Return an adapter that holds its factors; without the units of zeros that padding to one rank left, if wanted."""
    from .. import Adapter, LoraFactors

    modules = {}
    for module, factors in adapter.items():
        a, b = factors
        if without_padding:
            kept = a.any(dim=1) & b.any(dim=0)
            a, b = a[kept], b[:, kept]
        modules[module] = LoraFactors(a, b)
    kinds = {module: info.kind for module, info in adapter.infos.items()}
    return Adapter(modules, name=adapter.name, kinds=kinds, provenance=adapter.provenance)


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
    if report["identical"]:
        say("\nRead back and compared: the same factors, bit for bit.")
    else:
        worst = report["worst_module"]
        say(
            f"\nRead back and compared: relative error of the update {report['relative_error']:.2g}; "
            f"at most {worst['relative_error']:.2g}, in {worst['module']}"
        )
    say(f"wrote {report['output']} ({report['dtype']}, {report['layout']})")
