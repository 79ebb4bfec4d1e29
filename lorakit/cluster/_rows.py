"""What makes a k-means fit a function of the set of rows: order, duplicates, coordinates, distances, means."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


PREFIX = 16  # columns that nearly always tell rows apart
# Most points whose distances to one another are held, 32 MB, unless the points themselves are nearly as large. A rank
# far above the widths makes many points of few coordinates: n x n numbers are then thousands of times their file.
HELD = 2048


def argsort_rows(rows: NDArray[np.floating]) -> Ints:
    """Stable argsort of finite rows in lexicographic order; -0.0 and 0.0 are equal.

    The order is that of the numbers, not of their bytes in memory: it stays the same when all rows are scaled by one
    positive factor, so a common LoRA scale does not change which rows k-means is seeded with.
    """
    order = _argsort_bytes(rows[:, :PREFIX])
    prefix = rows[order, :PREFIX]
    if rows.shape[1] > PREFIX and (prefix[1:] == prefix[:-1]).all(axis=1).any():
        return _argsort_bytes(rows)
    return order


def _argsort_bytes(rows: NDArray[np.floating]) -> Ints:
    bits = (rows.astype(np.float64) + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    # Big-endian integers whose bytes compare as the floats do: one memcmp a comparison, which mostly ends in the first
    # column, where np.lexsort would sort all of them.
    flips = (bits >> 63) | np.int64(np.iinfo(np.int64).min)
    keys = np.ascontiguousarray((bits ^ flips).astype(">i8"))
    return keys.view(f"V{keys.shape[1] * keys.itemsize}").ravel().argsort(kind="stable")


class Distinct(NamedTuple):
    """The distinct rows of an array, in lexicographic order."""

    chosen: Ints  # (m,), the first row of the array that is equal to each
    totals: Floats  # (m,), summed weights of those that are
    inverse: Ints  # (n,), which distinct row every row of the array is


def distinct_rows(X: NDArray[np.floating], weights: Floats) -> Distinct:
    """Find the distinct rows of an array.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Finite rows.
    weights : ndarray of shape (n,)
        Their weights.
    """
    order = argsort_rows(X)
    prefix = X[order, :PREFIX]
    new = np.ones(len(X), dtype=bool)
    new[1:] = (prefix[1:] != prefix[:-1]).any(axis=1)
    for i in np.flatnonzero(~new):
        new[i] = (X[order[i]] != X[order[i - 1]]).any()
    inverse = np.empty(len(X), dtype=np.intp)
    inverse[order] = np.cumsum(new) - 1
    by_weight = np.lexsort((weights, inverse))  # a sum depends on the order of its terms
    return Distinct(order[new], np.add.reduceat(weights[by_weight], np.flatnonzero(new)), inverse)


def isometric_coordinates(rows: Floats) -> Floats:
    """Coordinates of n rows with the same pairwise distances, in min(n, d) dimensions.

    n points span at most n dimensions. With X^T = Q R, the columns of R are the rows of X in the basis Q.
    """
    centred: Floats = rows - rows.mean(axis=0)  # a common offset would cost digits in every distance
    if len(rows) > rows.shape[1]:
        return centred
    # QR rather than a Gram matrix: squaring would halve the digits of small distances
    return np.ascontiguousarray(np.transpose(np.linalg.qr(centred.T, mode="r")))


def squared_distances(points: Floats) -> Floats:
    """Squared distances between points, (n, d), that lie about the origin: (n, n).

    Symmetric to the last bit, which scikit-learn's are not, and for some hundred points in half their time.
    """
    norms = np.einsum("ij,ij->i", points, points)
    squared: Floats = np.add.outer(norms, norms)
    squared -= 2 * (points @ points.T)  # symmetric: NumPy sees that both are one, and forms a half
    np.maximum(squared, 0, out=squared)
    np.fill_diagonal(squared, 0)
    return squared


def distances_from(points: Floats, norms: Floats, chosen: Ints) -> Floats:
    """Squared distances from chosen points to all points, of shape (*chosen.shape, n).

    Up to round-off those of :func:`squared_distances`. ``norms``, (n,), are squared.
    """
    flat = chosen.ravel()
    squared: Floats = np.add.outer(norms[flat], norms)
    squared -= 2 * (points[flat] @ points.T)
    np.maximum(squared, 0, out=squared)
    squared[np.arange(len(flat)), flat] = 0
    return squared.reshape(*chosen.shape, -1)


def weighted_means(rows: Floats, weights: Floats, labels: Ints) -> Floats:
    """Weighted mean of the rows of every label, of shape (labels.max() + 1, d); NaN where a label has no row."""
    totals = np.bincount(labels, weights)
    # Shares that are divided before the product: a row on its own has share 1 and is its own mean to the last bit
    shares = weights / totals[labels]
    if len(totals) * len(rows) > HELD**2:  # of which all but one in a column would be zero
        means = csr_array((shares, labels, np.arange(len(rows) + 1)), shape=(len(rows), len(totals))).T @ rows
    else:
        dense = np.zeros((len(totals), len(rows)))
        dense[labels, np.arange(len(rows))] = shares
        means = dense @ rows
    means[totals == 0] = np.nan
    return means


def squared_residuals(rows: Floats, weights: Floats, labels: Ints) -> Floats:
    """Weighted squared distance of every row to the mean of its label, of shape (n,); no cancellation."""
    residuals = rows - weighted_means(rows, weights, labels)[labels]
    squared: Floats = np.einsum("ij,ij->i", residuals, residuals)
    return weights * squared
