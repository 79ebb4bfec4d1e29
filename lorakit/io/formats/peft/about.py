"""What is known of PEFT's format without opening a file."""

from __future__ import annotations

from ..about import About

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"

ABOUT = About(
    name="peft",
    title="PEFT's directory",
    layouts=("portable", "compact"),
    weights=(WEIGHTS,),
    config=CONFIG,
    card=CARD,
    directory=True,
    extra_weights=True,
    differences=True,
    experts=True,
    initial=True,
)
