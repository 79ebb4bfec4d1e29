"""How far a merged or pruned adapter is from the adapters it came from."""

from .reconstruction import (
    Comparison,
    compare_adapters,
    compare_to_each,
    compare_updates,
    cosine_similarity,
    relative_error,
)

__all__ = [
    "Comparison",
    "compare_adapters",
    "compare_to_each",
    "compare_updates",
    "cosine_similarity",
    "relative_error",
]
