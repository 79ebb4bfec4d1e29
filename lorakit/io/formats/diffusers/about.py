"""What is known of diffusers' format without opening a file."""

from __future__ import annotations

from ..about import About

ABOUT = About(
    name="diffusers",
    title="diffusers' single file",
    layouts=("portable", "compact"),
    weights=("pytorch_lora_weights.safetensors",),
    differences=True,
)
