"""What is known of files of bare names without opening one."""

from __future__ import annotations

from ..about import About

ABOUT = About(
    name="bare", title="a single file of bare names (DiffSynth)", layouts=("portable", "compact"), differences=True
)
