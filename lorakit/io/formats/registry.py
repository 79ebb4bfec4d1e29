"""The list of formats."""

from __future__ import annotations

from . import comfyui, diffusers
from .codec import Codec
from .kohya import codec as kohya
from .mlx import codec as mlx
from .peft import codec as peft

# Asked in this order; a new format is one file with a Codec, and one entry here.
CODECS: tuple[Codec, ...] = (mlx.CODEC, diffusers.CODEC, comfyui.CODEC, kohya.CODEC, peft.CODEC)
