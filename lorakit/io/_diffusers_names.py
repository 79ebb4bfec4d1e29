"""The keys of diffusers' files, of all its versions, as today's module names."""

from __future__ import annotations

import re
from typing import NamedTuple

from ._pairs import Place, place_of_key

# Attributes of pipelines that take LoRA. GPT-2's own "transformer.h" is no part of any diffusers model.
_COMPONENT = re.compile(
    r"(unet|prior|connectors|text_conditioner|text_encoder(?:_\d+)?|transformer(?:_2|_ref)?(?!\.h\.\d))\.(.+)"
)
# Files of versions before 0.17 hold the UNet alone and do not say so.
_OF_UNET = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|class_embedding)\."
)
_CLIP_LAYER = re.compile(r"encoder\.layers\.\d+\.(?:self_attn|mlp|layer_norm)")
# Attention processors held their factors themselves: "attn1.processor.to_q_lora.down.weight".
_PROCESSOR_LINEARS = {
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}


class ModuleName(NamedTuple):
    """A module of a pipeline: which of its models, and where in that."""

    component: str  # "" if the file does not say, as those of a single model's save_lora_adapter
    local: str  # as the config of that model sees it

    def __str__(self) -> str:
        return f"{self.component}.{self.local}" if self.component else self.local

    @property
    def full(self) -> str:
        """The one name of a module that versions of transformers put at ``text_model.`` or not."""
        if self.component.startswith("text_encoder") and _CLIP_LAYER.match(self.local):
            return f"{self.component}.text_model.{self.local}"
        return str(self)

    @property
    def in_any_version(self) -> str:
        """The local name without ``text_model.``: PEFT's patterns match what ends in it."""
        bare = self.local.removeprefix("text_model.")
        return bare if self.component.startswith("text_encoder") and _CLIP_LAYER.match(bare) else self.local


def split_component(name: str) -> ModuleName:
    """Split the name of a module, or a key, at its component.

    Examples
    --------
    >>> split_component("text_encoder_2.text_model.encoder.layers.0.mlp.fc1")
    ModuleName(component='text_encoder_2', local='text_model.encoder.layers.0.mlp.fc1')
    >>> split_component("transformer_blocks.0.attn.to_q")
    ModuleName(component='', local='transformer_blocks.0.attn.to_q')
    """
    found = _COMPONENT.fullmatch(name)
    if found is not None:
        return ModuleName(found[1], found[2])
    return ModuleName("unet" if _OF_UNET.match(name) else "", name)


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
