"""``--module-weights`` and ``--block-weights``: factors for parts of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from ._options import together
from ._values import check_named

if TYPE_CHECKING:
    from .. import AdapterSet, ModuleScaler

part_options = together(
    click.option("--module-weights", metavar="[NAME@]REGEX=NUMBERS", multiple=True,
                 help="Multiply the updates of the modules whose whole name matches, of all adapters or of the one "
                      "called NAME; repeat it: of those that match a module the first counts. One number, or several "
                      "with commas between them, from the first layer to the last: .*mlp.*=0,0.5,1."),
    click.option("--block-weights", metavar="[NAME@]NUMBERS", multiple=True,
                 help="Multiply the updates in the blocks of a diffusion model: 17 or 26 numbers for Stable Diffusion "
                      "1 and 2, 12, 20 or 26 for XL, 57 or 61 for FLUX.1, in their usual order; or by name, "
                      "OUT03-OUT05=0.5,IN=0. Repeat it with NAMEs, for one adapter each."),
)  # fmt: skip


def scaler_of(
    module_weights: tuple[str, ...], block_weights: tuple[str, ...]
) -> Callable[[AdapterSet], ModuleScaler] | None:
    """Return a function that makes the step for these adapters that multiplies parts of them; None without options."""
    if not module_weights and not block_weights:
        return None
    rules = [_rule(text) for text in module_weights]
    blocks = [(text, _blocks(_without_name(text))) for text in block_weights]

    def scaler(adapters: AdapterSet) -> ModuleScaler:
        from .. import ModuleScaler

        names = list(adapters.names)
        factors = [[_key(pattern, names, adapters.module_names), value] for pattern, value in rules]
        return ModuleScaler(factors or None, blocks=_of_adapters(blocks, names))

    return scaler


def _rule(text: str) -> tuple[str, Any]:
    pattern, equals, given = text.rpartition("=")
    numbers = _numbers(given)
    if not equals or not pattern or not numbers:
        raise click.BadParameter(f"{text!r} is not REGEX=NUMBER, such as .*attn.*=0.5", param_hint="--module-weights")
    return pattern, numbers[0] if len(numbers) == 1 else numbers


def _key(pattern: str, names: list[str], modules: Iterable[str]) -> Any:
    """Split the name of an adapter off a pattern, in which there may be an @ as well if a module has one."""
    owner = next((name for name in names if pattern.startswith(f"{name}@")), None)
    if owner is None and "@" in pattern and not any("@" in module for module in modules):
        check_named("--module-weights", {pattern.partition("@")[0]: None}, names)
    return pattern if owner is None else [owner, pattern.removeprefix(f"{owner}@")]


def _without_name(text: str) -> str:
    return text.rpartition("@")[2]


def _blocks(text: str) -> Any:
    if "=" not in text:
        numbers = _numbers(text)
        if not numbers:
            raise click.BadParameter(
                f"{text!r} is neither 1,0.5,... nor OUT03-OUT05=0.5,IN=0", param_hint="--block-weights"
            )
        return numbers
    named = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        found = _numbers(number)
        if not name.strip() or len(found) != 1:
            raise click.BadParameter(f"{part!r} is not BLOCK=NUMBER, such as OUT03=0.5", param_hint="--block-weights")
        named[name.strip().upper()] = found[0]
    return named


def _numbers(text: str) -> list[float]:
    """Read numbers with commas between them; none if one of them is no number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _of_adapters(blocks: list[tuple[str, Any]], names: list[str]) -> Any:
    """Return what ModuleScaler takes for blocks."""
    if not blocks:
        return None
    owners = [text.rpartition("@")[0] for text, _ in blocks]
    if owners == [""]:
        return blocks[0][1]
    if "" in owners or len(set(owners)) < len(owners):
        raise click.UsageError(
            "--block-weights is given once for all adapters, or once for each NAME that it names: "
            f"NAME@NUMBERS. The adapters are {', '.join(names)}."
        )
    return dict(zip(owners, [values for _, values in blocks], strict=True))
