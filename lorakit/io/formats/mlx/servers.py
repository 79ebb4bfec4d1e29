"""What mlx-lm does with its directory, read from ``tuner/utils.py`` of version 0.32.2."""

from __future__ import annotations

from .._servers import Server, no_rules

# One rank and one scale for all modules; a tensor of another shape is an error (load_adapters).
SERVERS = (Server("MLX", "mlx-lm 0.32.2", no_rules, ("mlx",)),)
