"""What is known of ControlLoRA without opening a file."""

from __future__ import annotations

from ..about import About

ABOUT = About(
    name="control_lora",
    title="a ControlLoRA file",
    layouts=("compact", "portable"),
    extra_weights=True,
)
