"""``lorakit diff``: whether two adapters hold the same updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ._errors import debug_option
from ._options import jobs_option, json_option, reading_options, tolerance_option
from ._streams import say

DIFFERENT, CANNOT_TELL = 1, 3


@click.command(
    epilog="""\b
Examples:
  lorakit diff law/ law-converted/
  lorakit diff law/ law-pruned/ --tolerance 0.1
  lorakit diff law/ law.safetensors --all --json

Exit codes: 0 the same; 1 different; 2 wrong usage or unreadable input; 3 cannot tell."""
)
@click.argument("first", metavar="A", type=click.Path())
@click.argument("second", metavar="B", type=click.Path())
@tolerance_option
@click.option("--all", "show_all", is_flag=True, help="Show the modules that are the same, too.")
@jobs_option
@reading_options
@json_option
@debug_option
@click.pass_context
def diff(
    ctx: click.Context,
    first: str,
    second: str,
    tolerance: float | None,
    show_all: bool,
    jobs: int | None,
    names: tuple[str, ...],
    as_json: bool,
    **reading: Any,
) -> None:
    """Say whether two LoRA adapters hold the same updates, module by module.

    Updates are compared, B @ A with its scale, and not factors: files that hold one update in different factors, at
    different ranks, scales, layouts or dtypes are the same. A module that only one of them has is a zero update in the
    other. Files of different formats are compared where their names for modules can be converted exactly.

    Where huge units cancel to a small update, rounding could explain any difference; then the answer is "cannot tell".

    The relative error is the norm of the difference over the larger norm of the two updates.
    """
    from .. import AdapterSet, load_adapters
    from ..differences import refuse_differences
    from ._differences import differences
    from ._jobs import modules_at_a_time
    from ._naming import named_alike
    from ._report import show_json

    if names and len(names) != 2:
        raise click.UsageError("--name must be given twice, once for each adapter")
    x, y = load_adapters((first, second), names=names or None, same_names=False, **reading)
    refuse_differences([x, y], "lorakit diff")
    with modules_at_a_time(jobs, AdapterSet([x, y])):
        found, totals = differences(*named_alike(x, y), tolerance=tolerance, n_jobs=jobs)
    found.sort(key=lambda d: (d.same, -(float("inf") if d.relative_error is None else d.relative_error)))
    report = {
        "a": first,
        "b": second,
        "same": totals.same,
        "unsure": totals.unsure,
        "identical": totals.identical,
        "relative_error": totals.relative_error,
        "tolerance": tolerance,
        "modules": len(found),
        "modules_different": sum(not d.same for d in found),
        "differences": [d.row() for d in found if show_all or not d.same],
    }
    if as_json:
        show_json(report)
    else:
        _show(report)
    ctx.exit(0 if totals.same else CANNOT_TELL if totals.unsure else DIFFERENT)


def _show(report: Mapping[str, Any]) -> None:
    show_differences(report["differences"], names=("A", "B"))
    if report["differences"]:
        say()
    count = report["modules"]
    if report["identical"]:
        say(f"The same factors, bit for bit, in all {count} modules.")
    elif report["same"]:
        say(f"The same updates in all {count} modules: relative error {report['relative_error']:.2g}.")
    elif report["unsure"]:
        say(
            f"Cannot tell: in {report['modules_different']} of {count} modules huge units cancel to a small update, "
            "and rounding could explain the difference."
        )
    else:
        error = report["relative_error"]
        over_all = "" if error is None else f"; over all modules the relative error is {error:.2g}"
        say(f"Different updates in {report['modules_different']} of {count} modules{over_all}.")


def show_differences(rows: list[Mapping[str, Any]], *, names: tuple[str, str]) -> None:
    """Print a table of modules, if there are any."""
    from ._report import number_text, show_table

    if not rows:
        return
    show_table(
        ("module", "", "relative error", "tolerance", "cosine", f"norm {names[0]}", f"norm {names[1]}"),
        [
            (
                row["module"],
                row["note"] or ("same" if row["same"] else "cannot tell" if row["unsure"] else "different"),
                "-" if row["relative_error"] is None else f"{row['relative_error']:.2g}",
                f"{row['tolerance']:.2g}",
                number_text(row["cosine"]),
                *(f"{norm:.4g}" for norm in row["norms"]),
            )
            for row in rows
        ],
        left=2,
    )
