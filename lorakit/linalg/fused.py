"""Fused projections: updates of several layers, one above the other in one matrix.

A layer that computes Q, K and V at once has the three weights one above the other. So has its update: the rows of B are
those of Q, K and V, and A is common to them. All functions here are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["join_outputs", "slice_outputs"]


def slice_outputs(a: Tensor, b: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return the update of some of a layer's outputs.

    A is shared, and the rows of B are cut. A unit that is zero at these outputs belongs to others, or pads the rank,
    and is left out, so that a block-diagonal B, as :func:`join_outputs` makes it, comes apart into its blocks. If all
    of B is zero, as before training, every unit stays.

    Parameters
    ----------
    a : Tensor of shape (r, d_in)
        The factor A.
    b : Tensor of shape (d_out, r)
        The factor B.
    start, stop : int
        The outputs, as in ``range(start, stop)``.

    Returns
    -------
    a : Tensor of shape (q, d_in)
        Rows of ``a``.
    b : Tensor of shape (stop - start, q)
        Part of ``b``.

    Examples
    --------
    >>> a, b = torch.ones(2, 3), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> [tuple(factor.shape) for factor in slice_outputs(a, b, 0, 1)]
    [(1, 3), (1, 1)]
    """
    part = b[start:stop]
    kept = part.any(dim=0)
    return (a, part) if bool(kept.all()) or not bool(b.any()) else (a[kept], part[:, kept])


def join_outputs(parts: Sequence[tuple[Tensor, Tensor] | int]) -> tuple[Tensor, Tensor]:
    """Return the update of layers that are joined into one, the outputs of the first above those of the second.

    A is stacked and B is block-diagonal, but for units of different layers that have the same row of A: such units are
    one unit of the result. Layers with one A therefore keep their rank, others add their ranks.

    Parameters
    ----------
    parts : sequence of (Tensor, Tensor) or int
        A of shape (r_i, d_in) and B of shape (d_i, r_i) of each layer; or a number of outputs, for a layer without an
        update. At least one is a pair.

    Returns
    -------
    a : Tensor of shape (r, d_in)
        The distinct rows of all A.
    b : Tensor of shape (sum of d_i, r)
        Zero where a unit is of another layer.

    Examples
    --------
    >>> a = torch.ones(1, 3)
    >>> [tuple(factor.shape) for factor in join_outputs([(a, torch.ones(2, 1)), (a, torch.ones(2, 1)), 2])]
    [(1, 3), (6, 1)]
    """
    places: dict[tuple[bytes, int], int] = {}
    rows: list[Tensor] = []
    units: list[list[int]] = []  # of each part: the units of the result that its units are
    for part in parts:
        seen: Counter[bytes] = Counter()
        own = []
        for row in part[0].detach().cpu().contiguous() if not isinstance(part, int) else ():
            content = bytes(row.view(torch.uint8).numpy())
            place = places.setdefault((content, seen[content]), len(places))
            seen[content] += 1  # two equal rows of one layer stay two units
            if place == len(rows):
                rows.append(row)
            own.append(place)
        units.append(own)
    like = next(part[1] for part in parts if not isinstance(part, int))
    heights = [part if isinstance(part, int) else len(part[1]) for part in parts]
    b = like.new_zeros(sum(heights), len(rows))
    start = 0
    for part, own, height in zip(parts, units, heights, strict=True):
        if not isinstance(part, int):
            b[start : start + height, own] = part[1]
        start += height
    width = next(part[0].shape[1] for part in parts if not isinstance(part, int))
    a = torch.stack(rows) if rows else like.new_zeros(0, width)
    return a.to(like.device), b
