"""The sum ``W + B @ A`` of one tensor, some rows at a time, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..exceptions import OutputError
from ..factors import dtype_name, promoted_dtype

BLOCK = 2**17  # numbers that are computed at a time: half a megabyte in float32, which a processor's cache holds


class Term(NamedTuple):
    """What is added to some rows of a tensor, ``left @ right``.

    Parameters
    ----------
    first_row : int
        Where its rows begin in the tensor, seen as a matrix.
    left : Tensor of shape (n_rows, r)
        With the strength in it.
    right : Tensor of shape (r, n_cols)
        The other factor.
    """

    first_row: int
    left: Tensor
    right: Tensor


@dataclass
class Rounding:
    """What rounding to the dtype of the base took from an update: squared norms, as they add up."""

    update: float = 0.0
    lost: float = 0.0

    @property
    def share(self) -> float:
        """Norm of what was lost over the norm of the update."""
        return (self.lost / self.update) ** 0.5 if self.update else 0.0


def compute_dtype(stored: torch.dtype) -> torch.dtype:
    """Return the dtype in which a sum is computed: at least twice as precise as the one it is rounded to, if there is.

    The result is then the exact sum, rounded once.
    """
    return torch.float32 if stored in (torch.bfloat16, torch.float16) else torch.float64


def joined(terms: Sequence[Term]) -> list[Term]:
    """Join the terms of the same rows into one, and order them. A term is cut where others begin or end."""
    cuts = sorted({row for term in terms for row in (term.first_row, term.first_row + len(term.left))})
    by_row: dict[int, list[Term]] = {}
    for first, left, right in terms:
        inside = [row for row in cuts if first <= row < first + len(left)]
        for row, end in pairwise([*inside, first + len(left)]):
            by_row.setdefault(row, []).append(Term(row, left[row - first : end - first], right))
    joint = []
    for row, same in sorted(by_row.items()):
        dtype = promoted_dtype(x.dtype for term in same for x in term[1:])
        left = torch.cat([term.left.to(dtype) for term in same], dim=1)
        joint.append(Term(row, left, torch.cat([term.right.to(dtype) for term in same])))
    return joint


def summed_rows(
    rows: Callable[[int, int], Tensor], n_rows: int, n_cols: int, terms: Sequence[Term], rounding: Rounding, where: str
) -> Iterator[Tensor]:
    """Yield the rows of a tensor with the terms added, in blocks.

    Computed in :func:`compute_dtype` and rounded once, to the dtype of the tensor.

    Parameters
    ----------
    rows : callable
        From first row, and past the last, to these rows as they are stored.
    n_rows, n_cols : int
        Shape of the tensor, seen as a matrix.
    terms : sequence of Term
        In any order.
    rounding : Rounding
        Is added to.
    where : str
        The tensor, for messages.

    Raises
    ------
    OutputError
        If a sum does not fit the dtype.
    """
    size = max(1, BLOCK // max(1, n_cols))
    done = 0
    for term in joined(terms):
        for start in range(done, term.first_row, size):
            yield rows(start, min(start + size, term.first_row))
        end = term.first_row + len(term.left)
        rounding.update += _squared_norm(term.left, term.right)
        for start in range(term.first_row, end, size):
            stop = min(start + size, end)
            stored = rows(start, stop)
            dtype = compute_dtype(stored.dtype)
            part = term.left[start - term.first_row : stop - term.first_row].to(stored.device, dtype)
            yield _sum(stored, part, term.right.to(stored.device, dtype), rounding, where)
        done = end
    for start in range(done, n_rows, size):
        yield rows(start, min(start + size, n_rows))


def _sum(stored: Tensor, left: Tensor, right: Tensor, rounding: Rounding, where: str) -> Tensor:
    total = torch.addmm(stored.to(left.dtype), left, right)
    new = total.to(stored.dtype)
    lost = torch.linalg.vector_norm(new.to(left.dtype) - total).item()
    if not math.isfinite(lost):
        largest = total.abs().max().item()
        raise OutputError(
            f"{where}: the sum has values that {dtype_name(stored.dtype)} cannot hold (the largest is {largest:.3g})",
            remedy="lower the strength, or take a base in bfloat16 or float32",
        )
    rounding.lost += lost**2
    return new


def _squared_norm(left: Tensor, right: Tensor) -> float:
    """Squared Frobenius norm of ``left @ right``, from products of the thin factors."""
    grams = (left.double().mT @ left.double()) * (right.double() @ right.double().mT)
    return max(0.0, grams.sum().item())
