"""Which block of the model a module lies in, and which of the block's modules it is."""

from __future__ import annotations

import re

# What numbers the blocks of a model: layers.3, transformer_blocks.0, h.11. Experts and parts of a Sequential do not.
_COUNTED = re.compile(r"(layer|block|resnet|attention|sampler)s?$|^h$|^stages$")


def place_of(module: str) -> tuple[str, str]:
    """Split a module's name into its block and its kind.

    Parameters
    ----------
    module : str
        As an adapter names it.

    Returns
    -------
    block, kind : str
        The block is "" for a module outside of all blocks. Experts of one block are of one kind.

    Examples
    --------
    >>> place_of("model.layers.3.self_attn.q_proj")
    ('model.layers.3', 'self_attn.q_proj')
    >>> place_of("down_blocks.1.attentions.0.transformer_blocks.2.ff.net.0.proj")
    ('down_blocks.1.attentions.0.transformer_blocks.2', 'ff.net.0.proj')
    >>> place_of("model.layers.3.mlp.experts.7.down_proj"), place_of("lm_head")
    (('model.layers.3', 'mlp.experts.*.down_proj'), ('', 'lm_head'))
    """
    parts = module.split(".")
    counted = [
        i for i in range(1, len(parts) - 1) if parts[i].isdecimal() and _COUNTED.search(parts[i - 1].lower())
    ] or [i for i in range(1, len(parts) - 1) if parts[i].isdecimal() and parts[i - 1] != "experts"][:1]
    cut = counted[-1] + 1 if counted else 0
    kind = re.sub(r"(^|\.)experts\.\d+(?=\.|$)", r"\1experts.*", ".".join(parts[cut:]))
    return ".".join(parts[:cut]), kind


def short_blocks(blocks: list[str]) -> list[str]:
    """Return the names of blocks without the part that all of them begin with.

    Examples
    --------
    >>> short_blocks(["model.layers.0", "model.layers.1"]), short_blocks(["", "model.layers.0"])
    (['layers.0', 'layers.1'], ['outside', 'layers.0'])
    """
    named = [block.split(".") for block in blocks if block]
    common = 0
    # the last two parts always stay: what is counted, and its number
    while named and all(len(parts) > common + 2 and parts[common] == named[0][common] for parts in named):
        common += 1
    return [".".join(block.split(".")[common:]) if block else "outside" for block in blocks]
