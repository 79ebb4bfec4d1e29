"""Inner products, norms and sums of updates, from r x r algebra."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Update = Iterable[Tensor]  # unpacks as A (r, d_in), B (d_out, r); LoraFactors is one
_SHORT = 4  # times the number of units: up to this width of a module, products of all units are cheap
_CHUNK = 2**17  # numbers converted at a time: 1 MB in float64, which stays in the cache


def inner_product(x: Update, y: Update) -> Tensor:
    """Frobenius inner product of two updates.

    ``<B_x A_x, B_y A_y> = sum((B_x^T B_y) * (A_x A_y^T))``: two (r_x, r_y) matrices instead of two (d_out, d_in) ones.

    Parameters
    ----------
    x, y : (A, B)
        Factors of one module, A of shape (r, d_in), B of shape (d_out, r); the ranks may differ.

    Returns
    -------
    Tensor
        A 0-d float64 tensor.
    """
    (a_x, b_x), (a_y, b_y) = narrowed(x), narrowed(y)
    # float64: callers subtract these products from one another, and in float32 only round-off would be left
    return ((b_x.mT.double() @ b_y.double()) * (a_x.double() @ a_y.mT.double())).sum()


def gram_matrix(updates: Sequence[Update]) -> Tensor:
    """Matrix of the inner products of T updates.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module.

    Returns
    -------
    Tensor of shape (T, T)
        Symmetric, float64; entry (i, j) is ``<W_i, W_j>``.
    """
    pairs = [narrowed(update) for update in updates]
    # (R, R); the block (i, j) sums to <W_i, W_j>
    products = gram_of([b for _, b in pairs]) * gram_of([a.mT for a, _ in pairs])
    member = torch.zeros(len(pairs), len(products), dtype=products.dtype, device=products.device)
    ranks = torch.tensor([a.shape[0] for a, _ in pairs])
    member[torch.repeat_interleave(torch.arange(len(pairs)), ranks), torch.arange(len(products))] = 1
    return member @ products @ member.mT


def narrowed(update: Update) -> tuple[Tensor, Tensor]:
    """Return an update with a rank of at most its smaller width: a file may hold any rank, and r x r can be large.

    Parameters
    ----------
    update : (A, B)
        A of shape (r, d_in), B of shape (d_out, r).

    Returns
    -------
    A, B
        Those given if r is at most both widths; else ``B @ A``, which is then smaller than a factor, and the identity.
        These are in float64.
    """
    a, b = update
    d_in, d_out = a.shape[1], b.shape[0]
    if a.shape[0] <= min(d_in, d_out):
        return a, b
    dense = b.double() @ a.double()
    if d_in <= d_out:
        return torch.eye(d_in, dtype=dense.dtype, device=dense.device), dense
    return dense, torch.eye(d_out, dtype=dense.dtype, device=dense.device)


def gram_of(columns: Sequence[Tensor]) -> Tensor:
    """Gram matrix of the columns of T matrices, (R, R), summed in float64.

    The columns are converted a few rows at a time, so that no float64 copy of them is ever whole in memory.
    """
    widths = [c.shape[1] for c in columns]
    n, d = sum(widths), columns[0].shape[0]
    gram = torch.zeros(n, n, dtype=torch.float64, device=columns[0].device)
    if n == 0:
        return gram
    # NumPy sees that both operands are one array and does half the work; torch does all of it, and SciPy holds the GIL
    total = gram.numpy() if gram.device.type == "cpu" else None
    # Each part has the memory layout of the columns: transposing it would take as long as converting it
    by_rows = columns[0].stride(1) == 1
    step = max(1, _CHUNK // n)
    if total is not None and d <= step:  # one part: of small modules, each call counts
        whole = torch.cat(list(columns), dim=1) if by_rows else torch.cat([c.mT for c in columns])
        few = whole.double().numpy()
        total += few.T @ few if by_rows else few @ few.T
        return gram
    buffer = gram.new_empty(min(step, d) * n)
    for start in range(0, d, step):
        rows = slice(start, min(start + step, d))
        size = rows.stop - start
        part = buffer[: size * n].view((size, n) if by_rows else (n, size))
        for piece, c in zip(torch.split(part, widths, dim=1 if by_rows else 0), columns, strict=True):
            piece.copy_(c[rows] if by_rows else c[rows].mT)
        if total is not None:
            few = part.numpy()
            total += few.T @ few if by_rows else few @ few.T
        elif by_rows:
            gram.addmm_(part.mT, part)
        else:
            gram.addmm_(part, part.mT)
    return gram


def cross_gram(x: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """Inner products of the columns of X, (d, k), with those of T other matrices: (k, R), summed in float64.

    As in :func:`gram_of`, a few rows are converted at a time.
    """
    widths, (d, k) = [c.shape[1] for c in columns], x.shape
    n = sum(widths)
    total = torch.zeros(k, n, dtype=torch.float64, device=x.device)
    if total.numel() == 0:
        return total
    by_rows = columns[0].stride(1) == 1
    step = max(1, _CHUNK // (n + k))
    buffer = total.new_empty(min(step, d) * (n + k))
    for start in range(0, d, step):
        rows = slice(start, min(start + step, d))
        size = rows.stop - start
        parts = torch.split(buffer[: size * (n + k)], [size * k, size * n])
        one, many = (part.view((size, -1) if by_rows else (-1, size)) for part in parts)
        one.copy_(x[rows] if by_rows else x[rows].mT)
        for piece, c in zip(torch.split(many, widths, dim=1 if by_rows else 0), columns, strict=True):
            piece.copy_(c[rows] if by_rows else c[rows].mT)
        total.addmm_(*((one.mT, many) if by_rows else (one, many.mT)))
    return total


def frobenius_norm(x: Update) -> Tensor:
    """Frobenius norm of one update, as a 0-d float64 tensor."""
    return squared_norm(x).sqrt()


def squared_norm(x: Update) -> Tensor:
    """Square of the Frobenius norm of one update, as a 0-d float64 tensor."""
    a, b = narrowed(x)
    return (gram_of([b]) * gram_of([a.mT])).sum().clamp_min(0)


class Overlap(NamedTuple):
    """Inner products of a merged update W' with itself and with the T updates W_i that it was merged from."""

    squared: float  # <W', W'>
    inner: np.ndarray  # (T,), <W', W_i>
    given: np.ndarray  # (T,), <W_i, W_i>

    def scaled(self, factor: float, noise: float = 0.0) -> Overlap:
        """Return what it is once W' is multiplied by a factor, and gets noise of this squared norm."""
        return Overlap(factor**2 * self.squared + noise, factor * self.inner, self.given)


def overlap_of(merged: Update, updates: Sequence[Update]) -> Overlap:
    """Inner products of a merged update with itself and with the updates it was merged from.

    Parameters
    ----------
    merged : (A, B)
        The merged update; of any rank.
    updates : sequence of (A, B)
        T updates of the same module, or of the same coordinates in orthonormal frames.

    Returns
    -------
    Overlap
        From float64 products.
    """
    pair, pairs = narrowed(merged), [narrowed(update) for update in updates]
    if pair[0].shape[1] + pair[1].shape[0] <= _SHORT * sum(len(a) for a, _ in pairs):
        return _overlap_of_short(pair, pairs)
    outputs = cross_gram(pair[1], [b for _, b in pairs])  # (k, R)
    inputs = cross_gram(pair[0].mT, [a.mT for a, _ in pairs])
    inner = summed_by_update((outputs * inputs).sum(dim=0), [len(a) for a, _ in pairs])
    return Overlap(squared_norm(pair).item(), inner, np.array([squared_norm(own).item() for own in pairs]))


def _overlap_of_short(pair: tuple[Tensor, Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> Overlap:
    """As :func:`overlap_of`, from the products of all units: of short units this is the least number of calls."""
    every = [pair, *pairs]
    products = gram_of([b for _, b in every]) * gram_of([a.mT for a, _ in every])
    k, ranks = len(pair[0]), [len(a) for a, _ in pairs]
    inner = summed_by_update(products[:k, k:].sum(dim=0), ranks)
    own = torch.split(torch.arange(k, len(products), device=products.device), ranks)
    sizes = torch.stack([products[:k, :k].sum(), *(products[i][:, i].sum() for i in own)]).clamp_min(0).cpu().numpy()
    return Overlap(float(sizes[0]), inner, sizes[1:])


def summed_by_update(units: Tensor, ranks: Sequence[int]) -> np.ndarray:
    """Sum numbers of the R units of T updates, (R,), update by update: (T,)."""
    sums = torch.stack([part.sum() for part in torch.split(units, list(ranks))])
    found: np.ndarray = sums.cpu().numpy()
    return found


def weighted_concat(updates: Sequence[Update], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors of ``sum_i w_i B_i A_i`` by concatenation: exact; its rank is the sum of the ranks.

    Parameters
    ----------
    updates : sequence of (A, B)
        T updates of one module, of any ranks.
    weights : sequence of T floats
        One weight for each update. Its magnitude is split evenly over A and B, so that the norms of both change alike.
        Its sign goes to B.

    Returns
    -------
    A : Tensor of shape (R, d_in)
    B : Tensor of shape (d_out, R)
    """
    scaled = [
        (a * abs(w) ** 0.5, b * (abs(w) ** 0.5 * (1 if w >= 0 else -1)))
        for (a, b), w in zip(updates, weights, strict=True)
    ]
    return torch.cat([a for a, _ in scaled]), torch.cat([b for _, b in scaled], dim=1)


def residual_norm(x: Update, updates: Sequence[Update], weights: Sequence[float]) -> Tensor:
    """Frobenius norm of ``X - sum_i w_i W_i``, as a 0-d float64 tensor.

    Parameters
    ----------
    x : (A, B)
        The update that approximates the sum.
    updates : sequence of (A, B)
        T updates of the same module.
    weights : sequence of T floats
        Their weights.
    """
    gram = gram_matrix([tuple(x), *updates])
    signed = torch.tensor([1.0, *(-w for w in weights)], dtype=gram.dtype, device=gram.device)
    return (signed @ gram @ signed).clamp_min(0).sqrt()
