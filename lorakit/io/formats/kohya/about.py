"""What is known of kohya's format without opening a file."""

from __future__ import annotations

from ..about import About

# Readers take each module's rank from its tensors here, so that ranks of its own are natural
ABOUT = About(name="kohya", title="kohya's single file", layouts=("compact", "portable"), differences=True)
