"""Options that commands share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import click

from .._listing import SEED
from ..io.formats.registry import abouts
from ._completion import complete_device, complete_format
from ._errors import debug_option
from ._values import FiniteNumber, read_assignments, read_initial, read_jobs, read_padding, read_rank

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Return the decorator that adds all of these options, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class SourcesCommand(click.Command):
    """A command whose ``--sources`` takes everything up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled: list[str] = []
        taking = first = False
        for arg in args:
            if arg == "--sources":
                taking = first = True
            elif taking and not arg.startswith("-"):
                spelled += ["--sources", arg]
                first = False
            else:
                if first:
                    break
                taking = False
                spelled.append(arg)
        if first and not ctx.resilient_parsing:  # which is set while a shell asks what the Tab key offers
            raise click.UsageError("--sources needs the adapters that the result was made of", ctx)
        return super().parse_args(ctx, spelled)


def needed(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Require a value, unless a recipe is given that may have one."""
    if value in (None, ()) and not ctx.params.get("recipe") and not ctx.resilient_parsing:
        raise click.MissingParameter(ctx=ctx, param=param)
    return value


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _default_layouts() -> str:
    """Return the layout that most formats write by default, and the formats that have another one."""
    first = {known.name: known.layouts[0] for known in abouts() if known.layouts}
    common = Counter(first.values()).most_common(1)[0][0]
    return ", ".join((common, *(f"for {name} {layout}" for name, layout in first.items() if layout != common)))


adapters_argument = click.argument("paths", metavar="ADAPTER...", nargs=-1, callback=needed, type=click.Path())
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout, nothing else.")

base_option = click.option(
    "--base", metavar="PATH", type=click.Path(),
    help="Base model that the adapters were trained on: a safetensors file or a folder. Used where an adapter's files "
         "do not say all of its update: VeRA, MiSS, PiSSA, OLoRA, DoRA.",
)  # fmt: skip

initial_option = click.option(
    "--initial", metavar="PATH|NAME=PATH", multiple=True, callback=read_initial,
    help="Adapter as it was saved before training, which is taken away from the adapters, or from one of them by its "
         "name: for PiSSA, OLoRA, CorDA and LoRA-GA.",
)  # fmt: skip

_format_option = click.option(
    "--format", metavar="FORMAT", shell_complete=complete_format,
    help=f"Format of the adapters' files: {_listed(known.name for known in abouts())}.  "
         "[default: what their content shows]",
)  # fmt: skip
_names_option = click.option(
    "--name", "names", metavar="NAME", multiple=True,
    help="Name of an adapter; repeat it, one for each in order.  [default: the folders' names]",
)  # fmt: skip
_name_option = click.option("--name", "names", metavar="NAME", multiple=True,
                            help="Name of the adapter.  [default: the folder's name]")  # fmt: skip
_extra_options = together(
    click.option("--modules-to-save", type=click.Choice(["refuse", "drop", "first"]), default="refuse",
                 show_default=True,
                 help="Weights trained beside the LoRA factors, such as a new head: refuse the adapter, leave them out "
                      "of the result, or put those of the first adapter that has some into it, unmerged."),
    click.option("--differences", type=click.Choice(["refuse", "keep", "drop"]), default="refuse", show_default=True,
                 help="Differences of biases and norms, which have no factors: refuse the adapter, add them up "
                      "with the methods that can (concat, svd, task_arithmetic), or leave them out."),
)  # fmt: skip
_file_options = together(
    click.option("--assume-alpha", type=FiniteNumber(), metavar="FLOAT",
                 help="lora_alpha where an adapter's files lack it."),
    click.option("--allow-pickle", is_flag=True,
                 help="Read weights that are a pickle, such as adapter_model.bin; nothing in it is run."),
    initial_option,
)  # fmt: skip
_contents_options = together(_extra_options, _file_options)
reading_options_beside_a_base = together(_format_option, _names_option, _contents_options)
reading_options = together(base_option, reading_options_beside_a_base)
reading_options_of_one = together(base_option, _format_option, _name_option, _contents_options)
# A record says what was carried along
reading_options_of_record = together(base_option, _format_option, _file_options)

tolerance_option = click.option(
    "--tolerance", type=FiniteNumber(min=0), metavar="FLOAT",
    help="Relative error up to which a module counts as the same.  "
         "[default: what rounding to the dtypes of the files can do to it]",
)  # fmt: skip

jobs_option = click.option("-j", "--jobs", type=int, metavar="N", callback=read_jobs,
                           help="Modules at a time, -1 for one per core. Never changes the result.  "
                                "[default: the cores that may be used, as far as memory goes]")  # fmt: skip

device_option = click.option("--device", metavar="DEVICE", shell_complete=complete_device,
                             help="Device to compute on, as torch names it.  [default: cpu]")  # fmt: skip

strict_option = click.option("--strict", is_flag=True,
                             help="Refuse adapters that name different base models, instead of warning.")  # fmt: skip

output_option = click.option("-o", "--output", callback=needed, type=click.Path(), metavar="OUT",
                             help="Folder to make, or file for formats that are one.")  # fmt: skip


def rank_option(default: str) -> Decorator:
    """Return the option ``-k``; ``default`` says what the rank is without it."""
    return click.option(
        "-k", callback=read_rank, metavar="RANK",
        help="Rank of the result: a number; a share of the energy below 1, such as 0.9, or auto, for a rank per "
             "module; mean:N or mean:N,max:M, to spread N times the number of modules where the singular values are "
             "large; size:50MiB, to spread the bytes of a file in the compact layout; sv_ratio:N, sv_fro:SHARE or "
             f"sv_cumulative:SHARE, also with ,max:M, as in resize_lora.py.  [default: {default}]",
    )  # fmt: skip


method_options = together(
    click.option("-p", "--param", "params", metavar="NAME=VALUE", multiple=True, callback=read_assignments,
                 help="Any other parameter of the method, such as density=0.5 or align=svd; repeat it. "
                      "`lorakit methods` lists them."),
    click.option("--seed", type=int, metavar="N", default=SEED, show_default=True,
                 help="Seed of methods that draw random numbers: the same seed, the same bytes."),
    jobs_option,
    device_option,
)  # fmt: skip

file_options = together(
    click.option("--layout", type=click.Choice(["portable", "compact"]),
                 help="portable: one rank for all modules, padded with zeros; every reader of PEFT files gets it "
                      "right. compact: each module at its own rank; for PEFT itself.  "
                      f"[default: {_default_layouts()}]"),
    click.option("--pad-to", metavar="N|server", callback=read_padding,
                 help="Rank to pad the portable layout to; server: the next one that vLLM takes as its largest.  "
                      "[default: no more than needed]"),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
                 help="Dtype of the numbers in the file.  [default: that of the inputs]"),
    click.option("--overwrite", is_flag=True, help="Replace an adapter that is there; never a folder of other files."),
)  # fmt: skip

recipe_options = together(
    click.option("--recipe", metavar="FILE", is_eager=True, type=click.Path(dir_okay=False),
                 help="Take sources, steps and output from a recipe, in YAML; see the user guide. Sources and output "
                      "that are given stand for those of the recipe."),
    click.option("--save-recipe", metavar="FILE", type=click.Path(),
                 help="Also write what is done as a recipe, with the hashes of the sources."),
)  # fmt: skip

writing_options = together(
    file_options,
    click.option("-n", "--dry-run", is_flag=True,
                 help="Read and check everything, try the method on one module of each shape, say what would be "
                      "done; write nothing."),
    click.option("--report", "with_report", is_flag=True,
                 help="Write an HTML page about the result beside it, as OUT.report.html."),
    json_option,
    click.option("-q", "--quiet", is_flag=True, help="No table and no progress; warnings and errors only."),
    debug_option,
)  # fmt: skip
