"""Families of diffusion models: one table each, of what its layers are called in which code."""

from __future__ import annotations

from .flux import FLUX
from .flux2 import FLUX_2
from .hunyuan_video import HUNYUAN_VIDEO
from .ltx import LTX
from .lumina2 import LUMINA_2
from .mochi import MOCHI
from .qwen_image import QWEN_IMAGE
from .sd3 import SD_3
from .wan import WAN
from .z_image import Z_IMAGE

__all__ = ["FAMILIES"]

FAMILIES = (FLUX, FLUX_2, SD_3, HUNYUAN_VIDEO, WAN, QWEN_IMAGE, Z_IMAGE, LTX, LUMINA_2, MOCHI)
