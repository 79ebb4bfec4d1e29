"""``lorakit plot``: pictures of adapters, and of what LoRA-LEGO makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._errors import debug_option
from ._options import adapters_argument, jobs_option, reading_options
from ._streams import say
from ._values import FiniteNumber, check_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .. import AdapterSet
    from ..adapters import ModuleInfo

Drawn = Callable[["AdapterSet", "Axes"], Any]

_module = click.option("--module", metavar="NAME", help="Module to draw.  [default: the first]")
_rank = click.option("-k", type=click.IntRange(min=1), metavar="RANK",
                     help="Number of clusters.  [default: twice the mean rank]")  # fmt: skip
_seed = click.option("--seed", type=int, default=0, metavar="N", help="Seed of random starts.  [default: 0]")
_tasks = click.option("--task", "tasks", metavar="ADAPTER=TASK", multiple=True, callback=lambda *a: _assigned(a[2]),
                      help="Count an adapter, by name, as one of this task; repeat it.")  # fmt: skip


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every picture."""
    options: list[Callable[..., Any]] = [
        adapters_argument,
        click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
                     help="Picture to make; .png, .svg or .pdf."),
        click.option("--overwrite", is_flag=True, help="Replace a file that is there."),
        click.option("--width", type=FiniteNumber(min=1, max=40), metavar="INCHES", help="Width of the picture."),
        click.option("--height", type=FiniteNumber(min=1, max=40), metavar="INCHES", help="Height of the picture."),
        click.option("--dpi", type=click.IntRange(min=30, max=1200), metavar="N", default=150, show_default=True,
                     help="Dots an inch, of a PNG."),
        reading_options,
        click.option("-q", "--quiet", is_flag=True, help="No progress and no closing line."),
        debug_option,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(
    epilog="""\b
Examples:
  lorakit plot similarity law/ medicine/ finance/ -o cosines.png
  lorakit plot similarity law/ medicine/ -o overlap.svg --measure overlap --side in
  lorakit plot clusters law/ medicine/ finance/ -o clusters.pdf -k 16"""
)
@debug_option
def plot() -> None:
    """Draw LoRA adapters into a PNG, SVG or PDF file. Needs matplotlib.

    The same command makes the same bytes. `lorakit plot KIND --help` lists the options of one kind.
    """


@plot.command()
@_common
@click.option("--measure", type=click.Choice(["cosine", "overlap"]), default="cosine", show_default=True,
              help="Cosines of the updates, or overlaps of their subspaces.")  # fmt: skip
@click.option("--side", type=click.Choice(["out", "in"]), default="out", show_default=True,
              help="Of an overlap: what the updates write to, or what they read.")  # fmt: skip
@jobs_option
def similarity(measure: Any, side: Any, jobs: int | None, **shared: Any) -> None:
    """Draw how alike adapters are, as a heat map."""

    def draw(adapters: AdapterSet, ax: Axes) -> None:
        from ..plotting import AdapterSimilarityDisplay

        AdapterSimilarityDisplay.from_adapters(adapters, measure=measure, side=side, n_jobs=jobs, ax=ax)

    _save(draw, size=lambda adapters: (3.5 + 0.45 * len(adapters), 2.6 + 0.45 * len(adapters)), **shared)


@plot.command()
@_common
@click.option("--kind", type=click.Choice(["values", "energy"]), default="values", show_default=True,
              help="The singular values, or the share of the energy that a rank keeps.")  # fmt: skip
@click.option("--mean", is_flag=True, help="Draw the mean of all adapters too: how much rank a merge needs.")
@click.option("--module", metavar="NAME", help="One module.  [default: all, as root mean square]")
@jobs_option
def spectrum(kind: Any, mean: bool, module: str | None, jobs: int | None, **shared: Any) -> None:
    """Draw the singular values of adapters."""

    def draw(adapters: AdapterSet, ax: Axes) -> None:
        from ..plotting import SingularValuesDisplay

        modules = None if module is None else [module]
        SingularValuesDisplay.from_adapters(adapters, modules=modules, mean=mean, n_jobs=jobs, ax=ax, kind=kind)

    _save(draw, size=(6.4, 3.8), **shared)


@plot.command("map")
@_common
@_module
@click.option("--method", type=click.Choice(["tsne", "pca"]), default="tsne", show_default=True,
              help="t-SNE keeps neighbours together; PCA keeps distances, as far as a plane does.")  # fmt: skip
@click.option("--color-by", type=click.Choice(["task", "cluster"]), default="task", show_default=True,
              help="Mark units by task, or by the cluster that LoRA-LEGO puts them into.")  # fmt: skip
@_rank
@_tasks
@_seed
@jobs_option
def unit_map(
    module: str | None,
    method: Any,
    color_by: Any,
    k: int | None,
    tasks: Any,
    seed: int,
    jobs: int | None,
    **shared: Any,
) -> None:
    """Draw the minimal semantic units of one module as points of a plane."""
    if k is not None and color_by == "task":
        raise click.UsageError("-k is the number of clusters; pass --color-by cluster with it")

    def draw(adapters: AdapterSet, ax: Axes) -> None:
        from .. import AdapterSet, LegoMerger
        from ..plotting import MSUMapDisplay

        check_named("--task", tasks, adapters.names)
        given: dict[str, Any] = {"method": method, "tasks": tasks, "random_state": seed, "ax": ax}
        name = adapters.module_names[0] if module is None else module
        if color_by == "task" or name not in adapters.module_names:  # which raises
            MSUMapDisplay.from_adapters(adapters, module=name, **given)
            return
        # a module's clusters do not depend on the others
        narrow = AdapterSet(adapter.select([name]) for adapter in adapters if name in adapter)
        merger = LegoMerger(k=k, random_state=seed, n_jobs=jobs).fit(narrow)
        MSUMapDisplay.from_estimator(merger, narrow, module=name, **given)

    _save(draw, size=(6.4, 4.4), **shared)


@plot.command()
@_common
@_module
@_rank
@_tasks
@_seed
@jobs_option
def clusters(module: str | None, k: int | None, tasks: Any, seed: int, jobs: int | None, **shared: Any) -> None:
    """Draw whose units LoRA-LEGO's clusters hold, at one module."""

    def draw(adapters: AdapterSet, ax: Axes) -> None:
        from .. import LegoMerger
        from ..plotting import ClusterCompositionDisplay

        check_named("--task", tasks, adapters.names)
        merger = LegoMerger(k=k, random_state=seed, n_jobs=jobs).fit(adapters)
        ClusterCompositionDisplay.from_estimator(merger, adapters, tasks=tasks, ax=ax, module=module)

    _save(draw, size=(7.0, 3.8), **shared)


@plot.command("norm-decay")
@_common
@click.option("--kind", type=click.Choice(["norms", "ratio"]), default="norms", show_default=True,
              help="Norms of centroids against their members', or their ratio against the size.")  # fmt: skip
@click.option("--module", metavar="NAME", help="One module.  [default: all]")
@_rank
@_seed
@jobs_option
def decay(kind: Any, module: str | None, k: int | None, seed: int, jobs: int | None, **shared: Any) -> None:
    """Draw what averaging takes from the norms of LoRA-LEGO's units."""

    def draw(adapters: AdapterSet, ax: Axes) -> None:
        from .. import LegoMerger
        from ..plotting import NormDecayDisplay

        merger = LegoMerger(k=k, random_state=seed, n_jobs=jobs).fit(adapters)
        NormDecayDisplay.from_estimator(merger, adapters, ax=ax, kind=kind, module=module)

    _save(draw, size=(6.2, 4.0), **shared)


@plot.command()
@_common
@click.option("--ks", metavar="K,K,...", callback=lambda *a: _numbers(a[2]),
              help="Ranks to merge at.  [default: 1, 2, 4, ... up to the largest there can be]")  # fmt: skip
@_seed
@jobs_option
def variance(ks: list[int] | None, seed: int, jobs: int | None, **shared: Any) -> None:
    """Draw the variance of a LoRA-LEGO merge's outputs against its rank."""

    def draw(adapters: AdapterSet, ax: Axes) -> None:
        from ..plotting import OutputVarianceDisplay

        ranks = ks or _doubling(max(_sum_of_ranks(adapters.infos(module)) for module in adapters.module_names))
        OutputVarianceDisplay.from_adapters(adapters, ks=ranks, random_state=seed, n_jobs=jobs, ax=ax)

    _save(draw, size=(6.0, 3.8), **shared)


def _save(
    draw: Drawn,
    *,
    size: Any,
    paths: tuple[str, ...],
    names: tuple[str, ...],
    output: Path,
    overwrite: bool,
    width: float | None,
    height: float | None,
    dpi: int,
    quiet: bool,
    **reading: Any,
) -> None:
    """Open the adapters, draw, write. ``size`` is in inches, or a function of the adapters."""
    from ..plotting._saving import check_picture, save_picture
    from ..plotting._style import require_matplotlib

    require_matplotlib()
    check_picture(output, overwrite=overwrite)
    from matplotlib.figure import Figure

    from .. import load_adapters
    from ._progress import progress_bar

    adapters = load_adapters(paths, names=names or None, same_names=False, **reading)
    default = size(adapters) if callable(size) else size
    # not pyplot's, which may need a screen
    figure = Figure(figsize=(width or default[0], height or default[1]), layout="constrained")
    with progress_bar("modules", quiet=quiet):
        draw(adapters, figure.subplots())
        save_picture(figure, output, overwrite=overwrite, dpi=dpi)
    if not quiet:
        say(f"wrote {output}")


def _sum_of_ranks(infos: Iterable[ModuleInfo | None]) -> int:
    """Return the largest rank of a LoRA-LEGO merge of one module: that of a concatenation."""
    return sum(info.rank for info in infos if info is not None)


def _doubling(top: int) -> list[int]:
    """Return the powers of two below a number, and the number.

    Examples
    --------
    >>> _doubling(40)
    [1, 2, 4, 8, 16, 32, 40]
    """
    return [2**e for e in range(top.bit_length()) if 2**e < top] + [top]


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of ranks such as 4,8,16") from None
    if found[0] < 1:
        raise click.BadParameter(f"ranks are at least 1; got {found[0]}")
    return found


def _assigned(pairs: tuple[str, ...]) -> dict[str, str] | None:
    found = {}
    for pair in pairs:
        name, sign, task = pair.partition("=")
        if not (name and sign and task):
            raise click.BadParameter(f"{pair!r} is not ADAPTER=TASK")
        found[name] = task
    return found or None
