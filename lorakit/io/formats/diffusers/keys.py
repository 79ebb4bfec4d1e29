"""The keys of diffusers' files, of all its versions, as today's module names."""

from __future__ import annotations

import re

from ...names.component import ModuleName, split_component
from .._pairs import Place, place_of_key

# Attention processors held their factors themselves: "attn1.processor.to_q_lora.down.weight".
_PROCESSOR_LINEARS = {
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}


def read_key(key: str) -> tuple[ModuleName, Place] | None:
    """Return the module of a key, named as today, and what the tensor is to it; None if it is no part of a LoRA.

    Examples
    --------
    >>> name, place = read_key("mid_block.attentions.0.attn1.processor.to_out_lora.up.weight")
    >>> str(name), place.slot
    ('unet.mid_block.attentions.0.attn1.to_out.0', 'B')
    """
    place = place_of_key(key)
    if place is None:
        return None
    component, local = split_component(place.module)
    local = local.replace(".processor.", ".")
    if place.spelling == "_lora.":
        linears = _PROCESSOR_LINEARS.get(re.sub(r"_\d+$", "", component), _PROCESSOR_LINEARS["unet"])
        parent, _, linear = local.rpartition(".")
        local = f"{parent}.{linears.get(linear, linear)}"
    return ModuleName(component, local), place
