"""T matrices of one shape, seen some rows at a time: tensors that are there, or products that are formed as needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..factors import LoraFactors

TILE = 2**20  # entries of all matrices together that are worked on at a time: a few MB, near the caches
_KEPT = 2**24  # entries of all matrices together up to which all are formed, and only once: 64 MB in float32


class Matrices(Protocol):
    """T matrices of shape (m, n), on which an element-wise rule acts."""

    shape: tuple[int, int, int]  # (T, m, n)
    tiles: list[slice]  # of rows, one after the other

    def empty(self) -> Tensor:
        """Return a new tensor of shape (m, n) in their dtype."""
        ...

    def whole(self, i: int, scratch: Tensor) -> Tensor:
        """Return matrix i, which may lie in ``scratch``, of shape (m, n)."""
        ...

    def stacked(self, rows: slice, change: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return some rows of all, each changed by ``change(i, block)``: (T, rows, n), valid until the next call."""
        ...


class Stack:
    """Matrices that are there: A, B, or the updates in a small space."""

    def __init__(self, stack: Tensor) -> None:
        self._stack = stack
        t, m, n = stack.shape
        self.shape = (t, m, n)
        self.tiles = [slice(0, m)]

    def empty(self) -> Tensor:
        return torch.empty_like(self._stack[0])

    def whole(self, i: int, scratch: Tensor) -> Tensor:
        return self._stack[i]

    def stacked(self, rows: slice, change: Callable[[int, Tensor], Tensor]) -> Tensor:
        return torch.stack([change(i, x[rows]) for i, x in enumerate(self._stack)])


class Products:
    """The dense products of T pairs of factors: of large ones, one at a time is whole, and some rows of all."""

    def __init__(self, updates: Sequence[LoraFactors]) -> None:
        first = updates[0]
        self._updates = updates
        self.shape = (len(updates), first.d_out, first.d_in)
        step = max(1, TILE // (first.d_in * len(updates)))
        self.tiles = [slice(start, min(start + step, first.d_out)) for start in range(0, first.d_out, step)]
        self._small = math.prod(self.shape) <= _KEPT
        self._formed: dict[int, Tensor] = {}
        self._buffer: Tensor | None = None  # of all tiles: fresh memory takes longer than the product

    def empty(self) -> Tensor:
        return self._updates[0].A.new_empty(self.shape[1:])

    def whole(self, i: int, scratch: Tensor) -> Tensor:
        whole = self.empty() if self._small else scratch
        for rows in self.tiles:  # a whole product may differ from its tiles in the last bits; thresholds are compared
            torch.mm(self._updates[i].B[rows], self._updates[i].A, out=whole[rows])
        if self._small:
            self._formed[i] = whole
        return whole

    def stacked(self, rows: slice, change: Callable[[int, Tensor], Tensor]) -> Tensor:
        if self._buffer is None:
            first = self.tiles[0]
            self._buffer = self.empty().new_empty(self.shape[0] * (first.stop - first.start) * self.shape[2])
        shape = (self.shape[0], rows.stop - rows.start, self.shape[2])
        stack = self._buffer[: math.prod(shape)].view(shape)
        for i, (block, update) in enumerate(zip(stack, self._updates, strict=True)):
            made = self._formed.get(i)
            block.copy_(change(i, made[rows] if made is not None else torch.mm(update.B[rows], update.A, out=block)))
        return stack
