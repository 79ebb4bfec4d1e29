"""What is known of XLabs' format without opening a file."""

from __future__ import annotations

from ..about import About

ABOUT = About(name="xlabs", title="XLabs' single file", layouts=("compact", "portable"))
