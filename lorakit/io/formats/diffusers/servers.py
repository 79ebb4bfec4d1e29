"""What diffusers does with files that it loads: read from ``utils/peft_utils.py`` and ``loaders/`` of 0.42.1."""

from __future__ import annotations

from .._servers import Server, no_rules

# Ranks are read from the tensors, alphas from the file (get_peft_kwargs).
DIFFUSERS = Server("diffusers", "0.42.1", no_rules, ("diffusers", "kohya"))
