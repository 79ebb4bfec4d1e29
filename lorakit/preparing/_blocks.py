"""Blocks of diffusion models, by the names that image tools give them, and how deep in a model a module is.

A U-Net of Stable Diffusion has the blocks BASE (text encoders), IN00 to IN11, M00 and OUT00 to OUT11. FLUX.1 and models
like it have CLIP and T5 (text encoders), IN, D00 and on (double blocks), S00 and on (single blocks) and OUT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import isfinite
from typing import Any

from ..exceptions import ParameterError

Block = tuple[str, int]  # family and number: ("IN", 4); of a block that has no number ("BASE", -1)

_TEXT = re.compile(r"lora_te\d?_|text_encoder|text_encoders|conditioner|cond_stage_model|.*text_model[._]encoder")
_T5 = re.compile(r".*(?:t5xxl|SelfAttention|DenseReluDense|EncDecAttention)")
_FLUX = re.compile(
    r"(?:.*[._])?(?:double_blocks|(?<!single_)transformer_blocks)[._](\d+)(?:[._]|$)"
    r"|(?:.*[._])?(?:single_blocks|single_transformer_blocks)[._](\d+)(?:[._]|$)"
)
_FLUX_IN = re.compile(
    r"(?:.*[._])?(?:img_in|txt_in|time_in|guidance_in|vector_in|x_embedder|context_embedder|time_text_embed)(?:[._]|$)"
)
_FLUX_OUT = re.compile(r"(?:.*[._])?(?:final_layer|norm_out|proj_out)(?:[._]|$)")
# input_blocks is the numbering of the first implementation; diffusers counts three levels in each of its blocks
_SGM = re.compile(r"(?:.*[._])?(input_blocks|output_blocks|middle_block)(?:[._](\d+))?(?:[._]|$)")
_DIFFUSERS = re.compile(
    r"(?:.*[._])?(?:(down|up)_blocks[._](\d+)[._](resnets|attentions|downsamplers|upsamplers)[._](\d+)|mid_block)(?:[._]|$)"
)
_CONV_IN = re.compile(r"(?:.*[._])?conv_in(?:[._]|$)")
_ATTENTION = re.compile(r".*(?:attentions|transformer_blocks|attn|proj_in|proj_out)")
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")  # a whole part of a name

_BASE, _MID = ("BASE", -1), ("M", 0)
_UNET_LISTS: dict[int, list[Block]] = {
    12: [_BASE, *(("IN", i) for i in (4, 5, 7, 8)), _MID, *(("OUT", i) for i in range(6))],
    17: [_BASE, *(("IN", i) for i in (1, 2, 4, 5, 7, 8)), _MID, *(("OUT", i) for i in range(3, 12))],
    20: [_BASE, *(("IN", i) for i in range(9)), _MID, *(("OUT", i) for i in range(9))],
    26: [_BASE, *(("IN", i) for i in range(12)), _MID, *(("OUT", i) for i in range(12))],
}
_ORDER = ("BASE", "CLIP", "T5", "IN", "M", "D", "S", "OUT")
_OTHER_NAMES = {"MID": "M00"}  # sd-scripts calls it so
_SPAN = re.compile(r"([A-Z]\w*?)(\d*)(?:-([A-Z]\w*?)(\d+))?")


def block_name(block: Block) -> str:
    """Return a block's name.

    Examples
    --------
    >>> block_name(("OUT", 3)), block_name(("BASE", -1))
    ('OUT03', 'BASE')
    """
    family, number = block
    return family if number < 0 else f"{family}{number:02}"


def blocks_of(modules: Sequence[str]) -> dict[str, Block]:
    """Return the block of each module that is in one; they are those of one model."""
    flux = {module: found for module in modules if (found := _flux_block(module)) is not None}
    if any(family in "DS" for family, _ in flux.values()):
        return flux
    return {module: block for module in modules if (block := _unet_block(module)) is not None}


def _flux_block(module: str) -> Block | None:
    if _TEXT.match(module):
        return ("T5" if _T5.match(module) else "CLIP", -1)
    if _unet_block(module) is not None:
        return None  # its attentions have transformer_blocks as well
    if (found := _FLUX.match(module)) is not None:
        return ("D", int(found[1])) if found[1] is not None else ("S", int(found[2]))
    if _FLUX_IN.match(module):
        return ("IN", -1)
    return ("OUT", -1) if _FLUX_OUT.match(module) else None


def _unet_block(module: str) -> Block | None:
    if _TEXT.match(module):
        return _BASE
    if (found := _SGM.match(module)) is not None:
        if found[1] == "middle_block":
            return _MID
        return None if found[2] is None else ({"i": "IN", "o": "OUT"}[found[1][0]], int(found[2]))
    if (found := _DIFFUSERS.match(module)) is not None:
        if found[1] is None:
            return _MID
        block, layer = int(found[2]), int(found[4])
        if found[1] == "down":
            return ("IN", 3 * block + 3 if found[3] == "downsamplers" else 3 * block + layer + 1)
        return ("OUT", 3 * block + 2 if found[3] == "upsamplers" else 3 * block + layer)
    return ("IN", 0) if _CONV_IN.match(module) else None


def factors_of_blocks(
    given: Any, modules: Sequence[str], wanted: Iterable[str], *, strict: bool = True
) -> dict[str, float]:
    """Return the factor of each module whose block has one.

    Parameters
    ----------
    given : list of float, or mapping of str to float
        One value for each block in order, or values by the names of blocks: ``OUT03``, ``OUT03-OUT05``, or ``OUT`` for
        all blocks of that kind.
    modules : sequence of str
        Names of modules of one model.
    wanted : iterable of str
        Those of them whose factors are wanted.
    strict : bool, default=True
        Whether each name of a mapping must have a module.

    Raises
    ------
    ParameterError
        If the number of values is not one that the model has, or a block is named that has no module.
    """
    blocks = blocks_of(modules)
    if not blocks:
        raise ParameterError(
            f"blocks are given, and no module is in a block of a diffusion model; they are named like {modules[0]!r}",
            remedy="give factors for patterns of module names",
        )
    if isinstance(given, Mapping):
        values = _named_values(given, set(blocks.values()), strict)
    else:
        values = _listed_values([float(value) for value in given], blocks)
    if not all(map(isfinite, values.values())):
        raise ParameterError(f"blocks={given!r}", expected="finite numbers", remedy="correct it")
    return {module: values[blocks[module]] for module in wanted if blocks.get(module) in values}


def _listed_values(given: Sequence[float], blocks: Mapping[str, Block]) -> dict[Block, float]:
    layouts = _flux_lists(blocks.values()) if any(family in "DS" for family, _ in blocks.values()) else _UNET_LISTS
    layout = layouts.get(len(given))
    if layout is not None:
        # what is not attention keeps its update where a short list has no place for it, as in sd-scripts
        left = [module for module, block in blocks.items() if block not in layout and _ATTENTION.match(module)]
        if not left:
            return dict(zip(layout, given, strict=True))
    right = [n for n, known in layouts.items() if all(b in known for m, b in blocks.items() if _ATTENTION.match(m))]
    raise ParameterError(
        f"blocks has {len(given)} values",
        expected=f"{' or '.join(map(str, right)) or 'values by name'} for this model, whose attention is in the blocks "
        + ", ".join(_spans(block for module, block in blocks.items() if _ATTENTION.match(module))),
        remedy="give one value for each block in order, or values by the names of blocks, such as 0.5 for OUT03-OUT05",
    )


def _flux_lists(blocks: Iterable[Block]) -> dict[int, list[Block]]:
    seen = {family: max((n for f, n in blocks if f == family), default=-1) + 1 for family in "DS"}
    layouts: dict[int, list[Block]] = {}
    for doubles, singles in (
        (seen["D"], seen["S"]),
        (19, 38),
    ):  # the latter are FLUX.1's, which files may hold a part of
        if doubles >= seen["D"] and singles >= seen["S"]:
            inner = [*(("D", i) for i in range(doubles)), *(("S", i) for i in range(singles))]
            layouts[len(inner)] = inner
            layouts[len(inner) + 4] = [("CLIP", -1), ("T5", -1), ("IN", -1), *inner, ("OUT", -1)]
    return layouts


def _named_values(given: Mapping[str, float], present: set[Block], strict: bool) -> dict[Block, float]:
    values: dict[Block, float] = {}
    for name, value in given.items():
        found = [block for block in present if _inside(block, name)]
        if not found and strict:
            raise ParameterError(
                f"blocks names {name!r}, which has no module",
                expected=f"some of {', '.join(_spans(present))}",
                remedy="leave it out, or give the list of all blocks, in which such places are allowed",
            )
        values.update((block, float(value)) for block in found if block not in values)
    return values


def _inside(block: Block, name: str) -> bool:
    found = _SPAN.fullmatch(_OTHER_NAMES.get(name, name))
    if found is None:
        return False
    first, low, last, high = found.groups()
    if last is not None:
        return bool(low) and _place((first, int(low))) <= _place(block) <= _place((last, int(high)))
    return block[0] == first and (not low or block[1] == int(low))


def _place(block: Block) -> tuple[int, int]:
    """Where a block is on the way through the model."""
    return _ORDER.index(block[0]) if block[0] in _ORDER else -1, block[1]


def _spans(blocks: Iterable[Block]) -> list[str]:
    """Name blocks in order, neighbours together.

    Examples
    --------
    >>> _spans([("OUT", 4), ("IN", 1), ("OUT", 3), ("OUT", 5)])
    ['IN01', 'OUT03-OUT05']
    """
    ordered = sorted(set(blocks), key=_place)
    runs = [
        [block for _, block in run]
        for _, run in groupby(enumerate(ordered), key=lambda pair: (pair[1][0], pair[1][1] - pair[0]))
    ]
    return [block_name(run[0]) + (f"-{block_name(run[-1])}" if len(run) > 1 else "") for run in runs]


def depths(modules: Sequence[str]) -> Callable[[str], float | None]:
    """Return a function from a module's name to how deep in its model it is, from 0 to 1; None if that is not known.

    In diffusion models it is the place of its block among those that have modules. Elsewhere it is the number of its
    layer, the first number in its name, over the largest such number behind the same beginning.
    """
    placed = {m: block for m, block in blocks_of(modules).items() if block[1] >= 0}
    order = {block: i for i, block in enumerate(sorted(set(placed.values()), key=_place))}
    last = max(1, len(order) - 1)
    largest: dict[str, int] = {}
    numbers = {module: found for module in modules if (found := _NUMBER.search(module)) is not None}
    for module, found in numbers.items():
        if module not in placed:
            stack = module[: found.start()]
            largest[stack] = max(largest.get(stack, 0), int(found[0]))

    def depth(module: str) -> float | None:
        if module in placed:
            return order[placed[module]] / last
        found = numbers.get(module)
        return None if found is None else int(found[0]) / max(1, largest[module[: found.start()]])

    return depth
