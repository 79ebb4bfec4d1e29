"""MiSS, which was called Bone: one block of r inputs, repeated along all inputs (Kang and Yin 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ....adapters import ModuleInfo
from ....linalg.structured import with_identity
from .kind import Factored, Kind, Tensors


def _factored(tensors: Tensors) -> Factored:
    """Check the block of a module. The inputs' width is not known from it: ``info.d_in`` is 0."""
    (part,) = tensors.keys
    shape = tensors.shape(part)
    tensors.require_shapes(
        len(shape) == 2 or (len(shape) == 3 and shape[1] == shape[2]), f"{part} (r, out), or (out / r, r, r)"
    )
    if len(shape) == 3:
        return Factored((part,), ModuleInfo(shape[1], 0, shape[0] * shape[1]), of_blocks, shape[1])
    return Factored((part,), ModuleInfo(shape[0], 0, shape[1]), repeated, shape[0])


def repeated(block: Tensor, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """A and B of the block, (r, out or a part of it), repeated along the inputs and the outputs.

    A says which of the block's rows an input takes: they follow one another, and the last block may be cut.
    """
    r = len(block)
    a = torch.eye(r, dtype=block.dtype, device=block.device).repeat(1, -(-d_in // r))[:, :d_in].contiguous()
    return a, block.mT.repeat(d_out // block.shape[1], 1)


def of_blocks(blocks: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of ``W M + M`` in blocks of r x r, which 'bat' makes of the weight: a matrix of full rank.

    ``blocks`` are (out / r, r, r), one M for each row of blocks of the weight, (out, in).
    """
    d_out, d_in = weight.shape
    r = blocks.shape[1]
    tiles = weight.reshape(d_out // r, r, d_in // r, r).permute(2, 0, 1, 3)
    update = (tiles @ blocks + blocks).permute(1, 2, 0, 3).reshape(d_out, d_in)
    return with_identity(update)


MISS = Kind("MiSS", frozenset(("miss_block",)), _factored)
BONE = Kind("Bone", frozenset(("bone_block",)), _factored)
