"""Names of modules of a diffusion pipeline: which of its models, and where in that model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# What a conversion can be asked for
COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
# Attributes of pipelines that take LoRA. GPT-2's own "transformer.h" is no part of any diffusers model.
_COMPONENT = re.compile(
    r"(unet|prior|connectors|text_conditioner|text_encoder(?:_\d+)?|transformer(?:_2|_ref)?(?!\.h\.\d))\.(.+)"
)
# Files of versions before 0.17 hold the UNet alone and do not say so.
_OF_UNET = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|class_embedding)\."
)
_CLIP_LAYER = re.compile(r"encoder\.layers\.\d+\.(?:self_attn|mlp|layer_norm)")


class ModuleName(NamedTuple):
    """A module of a pipeline: which of its models, and where in that."""

    component: str  # "" if the file does not say, as those of a single model's save_lora_adapter
    local: str  # as the config of that model sees it

    def __str__(self) -> str:
        return f"{self.component}.{self.local}" if self.component else self.local

    @property
    def full(self) -> str:
        """The name with ``text_model.`` where only some versions of transformers have that part."""
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


def components_of(names: Iterable[str]) -> list[str]:
    """Return the models of a pipeline that modules are of, sorted; '' for those whose names do not say.

    Examples
    --------
    >>> components_of(["unet.mid_block.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1"])
    ['text_encoder', 'unet']
    """
    return sorted({split_component(name).component for name in names})
