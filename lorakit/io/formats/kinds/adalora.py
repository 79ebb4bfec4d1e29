"""AdaLoRA: B diag(E) A, of the ranks that its training kept (Zhang et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from ....adapters import ModuleInfo
from .kind import Factored, Kind, Tensors

_PARTS = ("lora_A", "lora_B", "lora_E")


def _factored(tensors: Tensors) -> Factored:
    tensors.require(_PARTS)
    a, b, e = map(tensors.shape, _PARTS)
    tensors.require_shapes(
        len(a) == len(b) == 2 and b[1] == a[0] and e == (a[0], 1), "lora_A (r, in), lora_B (out, r) and lora_E (r, 1)"
    )
    return Factored(_PARTS, ModuleInfo(a[0], a[1], b[0]), fold, a[0])


def fold(a: Tensor, b: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """A and B, with the values between them in A."""
    return a * e, b


ADALORA = Kind("AdaLoRA", frozenset(_PARTS), _factored)
