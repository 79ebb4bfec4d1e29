"""The difference of two checkpoints, one tensor at a time, and what of it is rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..factors import promoted_dtype
from ..files.checkpoint import Checkpoint
from ..files.safetensors import FLOAT_DTYPES
from .sums import BLOCK

# Mean of the squared rounding error over the squared number, in squares of the spacing of the dtype at 1: a number has
# the error of a uniform draw, 1/12 of the squared spacing, and mantissas are spread evenly on a logarithmic scale.
_ROUNDING = (1 - 0.25) / (2 * math.log(2)) / 12


class Energy(NamedTuple):
    """Squared norms of a tensor's change, of what of it rounding alone would make, and of the base's tensor."""

    change: float
    rounding: float
    base: float


def difference(
    tuned: Checkpoint,
    name: str,
    base: Checkpoint,
    other: str,
    keep: bool,
    spans: Sequence[tuple[int, int]] | None = None,
) -> tuple[Tensor | None, Energy]:
    """Return ``tuned - base`` of one tensor, seen as a matrix, in float32 or better; and its energy.

    Parameters
    ----------
    tuned, base : Checkpoint
        The two.
    name, other : str
        The tensor's names in them.
    keep : bool
        Whether the difference is wanted, and not only its energy.
    spans : sequence of (int, int), optional
        The rows that are meant, in the order in which they are returned. Defaults to all.
    """
    rows, cols = tuned.matrix_shape(name)
    stored = [FLOAT_DTYPES[checkpoint.infos[n].dtype] for checkpoint, n in ((tuned, name), (base, other))]
    dtype = promoted_dtype([torch.float32, *stored])
    common = min(rows, base.matrix_shape(other)[0])
    meant = ((0, rows),) if spans is None else spans
    whole = torch.empty(sum(stop - start for start, stop in meant), cols, dtype=dtype) if keep else None
    energy = [0.0, 0.0, 0.0]
    size = max(1, BLOCK // max(1, cols))
    done = 0
    for start, stop in ((i, min(i + size, end)) for begin, end in meant for i in range(begin, end, size)):
        new = tuned.rows(name, start, stop).to(device="cpu", dtype=dtype)
        old = torch.zeros_like(new)
        if start < common:  # rows that the base does not have are new as a whole
            old[: common - start] = base.rows(other, start, min(stop, common)).to(device="cpu", dtype=dtype)
        change = torch.sub(new, old, out=None if whole is None else whole[done : done + len(new)])
        done += len(new)
        for i, part in enumerate((change, new, old)):
            energy[i] += torch.linalg.vector_norm(part).item() ** 2
    spacing = max(torch.finfo(one).eps for one in stored)
    return whole, Energy(energy[0], energy[1] * spacing**2 * _ROUNDING, energy[2])
