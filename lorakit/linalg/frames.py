"""Orthonormal frames of thin matrices: small coordinates that stand for long columns, exactly.

The columns of ``[C_1 ... C_T]``, (d, R), span at most R dimensions. In an orthonormal basis Q of them each ``C_i`` is a
small (R, r_i) matrix, and whatever does not depend on the choice of a basis (products, norms, singular values and
vectors) can be computed there. Q itself is seldom needed: only its product with a few small columns at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .products import Update, gram_of
from .signs import fix_signs

# Largest condition number of a Gram matrix, in float64, that is used: its error is then at most 1e-16 * 1e7 = 1e-9, far
# below the 6e-8 with which float32 factors are known. Above it, QR is used.
CONDITION = 1e7
# Up to this condition number, combining the columns in float32 loses less than 1e-5: float32's 6e-8, times the square
# root of the condition number.
_CONDITION_SINGLE = 1e4


class Frame(Protocol):
    """An orthonormal basis Q, (d, p), of the columns of T matrices."""

    @property
    def blocks(self) -> list[Tensor]:
        """T float64 matrices (p, r_i); ``Q @ blocks[i]`` are the columns of the i-th matrix."""
        ...

    def coordinates(self, vector: Tensor) -> Tensor:
        """Return ``Q.T @ vector``: float64 (d,) to (p,)."""
        ...

    def expand(self, coordinates: Tensor) -> Tensor:
        """Return ``Q @ coordinates``: (p, k) to (d, k), in the dtype of the columns."""
        ...

    def expand_rows(self, coordinates: Tensor) -> Tensor:
        """Return ``coordinates @ Q.T``: (k, p) to (k, d), rows one after the other in memory."""
        ...


def frame_of(columns: Sequence[Tensor], *, gram: bool | Tensor = True) -> Frame:
    """Find an orthonormal frame of the columns of T matrices.

    The frame comes from the Cholesky factor of the columns' Gram matrix where that is accurate: this is cheaper than
    QR, and Q is never formed. QR in float64 is used where the columns are nearly linearly dependent, where there are
    more columns than rows, and for columns in float64, because the Gram matrix would lose half of their digits.

    Parameters
    ----------
    columns : sequence of T tensors of shape (d, r_i)
        R columns in total.
    gram : bool or Tensor of shape (R, R), default=True
        Whether the Gram matrix may be used, or the matrix itself, where it is known; False always uses QR.

    Returns
    -------
    Frame
    """
    widths, pool = [c.shape[1] for c in columns], joined(columns)
    if gram is not False and uses_gram(pool):
        found = _gram_frame(pool, widths, gram_of([pool]) if gram is True else gram)
        if found is not None:
            return found
    q, r = torch.linalg.qr(pool.double())
    return _QRFrame(list(torch.split(r, widths, dim=1)), q, pool.dtype)


def uses_gram(columns: Tensor) -> bool:
    """Whether :func:`frame_of` tries the Gram matrix of these columns first."""
    d, n = columns.shape
    return 0 < n <= d and columns.dtype != torch.float64


def joined(columns: Sequence[Tensor]) -> Tensor:
    """Return ``[C_1 ... C_T]``, laid out in memory by rows or by columns, as the first of them is."""
    if len(columns) == 1:
        return columns[0]
    # Transposing long columns in memory would take as long as all the work that is done on them
    by_rows = columns[0].stride(1) == 1
    return torch.cat(list(columns), dim=1) if by_rows else torch.cat([c.mT for c in columns]).mT


def combine(columns: Tensor, mix: Tensor, *, double: bool) -> Tensor:
    """Return ``columns @ mix``, (d, R) by float64 (R, k), in the dtype of the columns."""
    return (columns.double() @ mix).to(columns.dtype) if double else columns @ mix.to(columns.dtype)


def combine_rows(mix: Tensor, rows: Tensor, *, double: bool) -> Tensor:
    """Return ``mix @ rows``, float64 (k, R) by (R, d), in the dtype of the rows."""
    return (mix @ rows.double()).to(rows.dtype) if double else mix.to(rows.dtype) @ rows


class Compressed(NamedTuple):
    """Updates in orthonormal frames of all their outputs and of all their inputs."""

    updates: list[tuple[Tensor, Tensor]]  # T pairs (A, B) of shapes (r_i, q) and (p, r_i), in the updates' own dtype
    outputs: Frame
    inputs: Frame

    def expand(self, update: Update) -> tuple[Tensor, Tensor]:
        """Bring an update, (k, q) and (p, k), back to the module's widths, (k, d_in) and (d_out, k); signs fixed."""
        a, b = update
        a, b = self.inputs.expand_rows(a), self.outputs.expand(b)
        sign = fix_signs(a)
        return a.mul_(sign[:, None]), b.mul_(sign)


def compress(updates: Sequence[Update]) -> Compressed:
    """Express all updates of a module in frames of at most R dimensions, so that rules cost the same at any width.

    Use it for rules that commute with rotations of the outputs and of the inputs: rules on singular values and vectors,
    and rules in bases that the updates define. Rules on the entries of A, B or B A do not commute with rotations.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks; the ranks sum to R.
    """
    pairs = [(a, b) for a, b in updates]
    outputs, inputs = frame_of([b for _, b in pairs]), frame_of([a.mT for a, _ in pairs])
    dtype = pairs[0][0].dtype
    small = [(c.mT.to(dtype), b.to(dtype)) for b, c in zip(outputs.blocks, inputs.blocks, strict=True)]
    return Compressed(small, outputs, inputs)


class _QRFrame(NamedTuple):
    blocks: list[Tensor]
    q: Tensor  # (d, p), float64
    dtype: torch.dtype

    def coordinates(self, vector: Tensor) -> Tensor:
        return self.q.mT @ vector

    def expand(self, coordinates: Tensor) -> Tensor:
        return (self.q @ coordinates.double()).to(self.dtype)

    def expand_rows(self, coordinates: Tensor) -> Tensor:
        return (coordinates.double() @ self.q.mT).to(self.dtype)


class _GramFrame(NamedTuple):
    blocks: list[Tensor]
    columns: Tensor  # (d, R)
    inverse: Tensor  # (R, p): Q = columns @ inverse
    double: bool  # whether the columns are to be combined in float64

    def coordinates(self, vector: Tensor) -> Tensor:
        return self.inverse.mT @ (self.columns.mT @ vector.to(self.columns.dtype)).double()

    def expand(self, coordinates: Tensor) -> Tensor:
        return combine(self.columns, self.inverse @ coordinates.double(), double=self.double)

    def expand_rows(self, coordinates: Tensor) -> Tensor:
        return combine_rows(coordinates.double() @ self.inverse.mT, self.columns.mT, double=self.double)


def _gram_frame(columns: Tensor, widths: Sequence[int], gram: Tensor) -> _GramFrame | None:
    lengths = gram.diagonal().sqrt()
    inverse_lengths = torch.where(lengths > 0, 1 / lengths, 0)
    # Columns are scaled to length 1, so that different lengths cost no digits; zero columns (padding) are left alone.
    unit = gram * inverse_lengths[:, None] * inverse_lengths
    unit.diagonal().fill_(1)
    lower, failed = torch.linalg.cholesky_ex(unit)
    if failed:
        return None
    triangle = torch.linalg.solve_triangular(
        lower.mT, torch.eye(len(unit), dtype=unit.dtype, device=unit.device), upper=True
    )  # L^-T
    condition = _norm_1(unit) * _norm_1(triangle @ triangle.mT)
    if not condition <= CONDITION:
        return None
    blocks = (lower.mT * lengths).split(list(widths), dim=1)
    return _GramFrame(list(blocks), columns, inverse_lengths[:, None] * triangle, condition > _CONDITION_SINGLE)


def _norm_1(matrix: Tensor) -> float:
    return float(matrix.abs().sum(dim=0).max())
