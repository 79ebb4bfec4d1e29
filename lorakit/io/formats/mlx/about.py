"""What is known of mlx-lm's format without opening a file."""

from __future__ import annotations

from ..about import About

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"

ABOUT = About(
    name="mlx",
    title="mlx-lm's directory",
    layouts=("portable",),
    weights=(WEIGHTS,),
    config=CONFIG,
    directory=True,
    experts=True,
)
