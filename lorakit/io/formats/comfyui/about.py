"""What is known of ComfyUI's format without opening a file."""

from __future__ import annotations

from ..about import About

ABOUT = About(name="comfyui", title="ComfyUI's single file", layouts=("portable", "compact"), differences=True)
