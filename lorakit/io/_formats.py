"""The list of formats."""

from __future__ import annotations

from . import comfyui, diffusers, kohya, mlx, peft
from ._codec import Codec

# Asked in this order; a new format is one file with a Codec, and one entry here.
CODECS: tuple[Codec, ...] = (mlx.CODEC, diffusers.CODEC, comfyui.CODEC, kohya.CODEC, peft.CODEC)
