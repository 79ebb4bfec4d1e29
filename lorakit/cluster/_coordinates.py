"""What distance between units means: coordinates whose Euclidean distances are the metric's, and signs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ._rows import HELD, Floats, Ints

Metric = Literal["euclidean", "cosine", "sign_invariant"]

_ROUNDS = 20  # most rounds of sign alignment; two or three are usual
_RIGHT_ANGLE = 1e-8  # cosine below which two units are at right angles but for round-off
_TRACE = 1e-6  # far above round-off, far below what distances between units mean


def coordinates(rows: Floats, metric: Metric) -> Floats:
    r"""Return points whose Euclidean distances are those that ``metric`` gives the rows.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Units.
    metric : {'euclidean', 'cosine', 'sign_invariant'}
        'euclidean': the rows as they are. 'cosine': the rows divided by their norms; one that is zero beside the
        others, up to round-off, becomes zero. 'sign_invariant': points whose inner products, but for a common offset,
        are :math:`(s \cdot s')^2 / (\|s\| \|s'\|)`, those of the outer products :math:`s s^T / \|s\|`. A unit and its
        negative are one point; on a line through the origin, and between units at right angles, distances are the
        Euclidean ones. They come from one Gram matrix, in fewer than n dimensions; where n is large and d small, they
        are the entries of the outer products.

    Returns
    -------
    ndarray of shape (n, p)
        One point a row.
    """
    if metric == "euclidean":
        return rows
    if metric == "cosine":
        return rows * cosine_scales(rows)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    width = rows.shape[1]
    if len(rows) > max(HELD, width * (width + 1) // 2):
        i, j = np.triu_indices(width)
        entries: Floats = unit[:, i] * unit[:, j] * np.where(i == j, 1, np.sqrt(2)) * norms
        return entries - entries.mean(axis=0)
    products = (unit @ unit.T) ** 2 * (norms @ norms.T)
    products -= products.mean(axis=0)
    products -= products.mean(axis=1, keepdims=True)  # of the points about their mean
    eigenvalues, vectors = np.linalg.eigh(products)
    real = eigenvalues > len(rows) * np.finfo(np.float64).eps * eigenvalues[-1]
    points: Floats = vectors[:, real] * np.sqrt(eigenvalues[real])
    return points


def cosine_scales(rows: Floats) -> Floats:
    """Factors, (n, 1), on rows that leave the metric 'cosine' their directions."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # What a rank-deficient update leaves in its last units is round-off, which has no direction
    alive = norms**2 > len(rows) * np.finfo(np.float32).eps * norms.max() ** 2
    # An update's own singular units are all at right angles, equally far from one another: round-off would place
    # them. A trace of their lengths does instead.
    lengths = 1 + _TRACE * norms / max(norms.max(), np.finfo(np.float64).tiny)
    scales: Floats = np.where(alive, lengths / np.where(alive, norms, 1), 0)
    return scales


def canonical_signs(rows: Floats) -> Floats:
    """Sign (+1 or -1) per row that makes its entry of largest magnitude positive: negated rows become equal bits."""
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    return np.where(largest[:, 0] < 0, -1.0, 1.0)


def aligned_signs(rows: Floats, weights: Floats, labels: Ints) -> Floats:
    """Sign (+1 or -1) per row with which the rows of each cluster point the same way.

    At first along the leading direction of the cluster, the top eigenvector of its ``sum(w s s^T)``; then one row after
    another is turned while that lengthens the cluster's mean, which is what lowers the squared distances to it. Rows
    that are at right angles to all others of their cluster keep the sign that they have.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Units, in signs of their own that do not depend on how they were given.
    weights : ndarray of shape (n,)
        Positive weights.
    labels : ndarray of shape (n,)
        Clusters, from 0.

    Returns
    -------
    ndarray of shape (n,)
    """
    signs = np.ones(len(rows))
    root = np.sqrt(weights)
    scaled = root[:, None] * rows
    for cluster in range(labels.max() + 1):
        members = np.flatnonzero(labels == cluster)
        signs[members] = _align(scaled[members], root[members])
    return signs


def _align(scaled: Floats, root: Floats) -> Floats:
    """Signs of the rows of one cluster, (m, d), each times the root of its weight."""
    leading = _leading(scaled)
    clear = np.abs(leading) > _RIGHT_ANGLE
    signs = np.where(clear & (leading * leading[clear.argmax()] < 0), -1.0, 1.0)
    squared = np.einsum("ij,ij->i", scaled, scaled)
    least = _RIGHT_ANGLE * np.sqrt(squared * squared.max()) * root.max()
    total = scaled.T @ (root * signs)  # (d,)
    for _ in range(_ROUNDS):
        turned = False
        for i in range(len(signs)):
            # Without its own part, which is as large whatever its sign
            if signs[i] * (scaled[i] @ total) - squared[i] * root[i] < -least[i]:
                signs[i] *= -1
                total += 2 * signs[i] * root[i] * scaled[i]
                turned = True
        if not turned:
            break
    return signs


def _leading(scaled: Floats) -> Floats:
    """Top eigenvector of the Gram matrix of rows, (m, d): (m,)."""
    if len(scaled) <= max(HELD, scaled.shape[1]):
        vector: Floats = np.linalg.eigh(scaled @ scaled.T)[1][:, -1]
        return vector
    vector = scaled @ np.linalg.eigh(scaled.T @ scaled)[1][:, -1]
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector
