"""Whole differences of weights, as LyCORIS trains them ("full") and ComfyUI extracts them: updates without factors."""

from __future__ import annotations

import math

from torch import Tensor

from ....adapters import ModuleInfo
from ....linalg.structured import with_identity
from .kind import Factored, Kind, Tensors, kind_of_kernel


def _factored(tensors: Tensors) -> Factored:
    """Check the shape of a difference: (out, in), or (out, in, kernel...)."""
    shape = tensors.shape("diff")
    tensors.require_shapes(2 <= len(shape) <= 5, "(out, in) or (out, in, kernel...)")
    d_out, d_in = shape[0], math.prod(shape[1:])
    rank = min(d_out, d_in)
    tensors.require_size(rank * (d_in + d_out))
    return Factored(("diff",), ModuleInfo(rank, d_in, d_out, kind_of_kernel(shape[2:])), whole, None)


def whole(diff: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of a difference: itself, and an identity on its smaller side."""
    return with_identity(diff.flatten(1))


FULL = Kind("Full", frozenset({"diff"}), _factored)
