"""Lloyd's algorithm for many small problems at once, in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Relative difference below which two distances differ by round-off only. Batched products round differently in batches
# of other sizes: without a tolerance, points that are equally far from two centres would go by what else is there.
TIE = 1e-12


class Solved(NamedTuple):
    """What :func:`lloyd` gives for M problems, on the device that the points are on."""

    labels: Tensor  # (M, n), index of the nearest centre
    inertia: Tensor  # (M,), weighted sum of the squared distances to the centres
    n_iter: Tensor  # (M,)


def lloyd(points: Tensor, weights: Tensor, centers: Tensor, *, max_iter: int, tol: Tensor) -> Solved:
    """Run Lloyd's algorithm on M problems of one shape, each until its own end.

    As :class:`sklearn.cluster.KMeans` with ``algorithm="lloyd"``: a problem ends when its labels stay, or when its
    centres move by no more than ``tol``; in the second case its points get the labels of the last centres. From then on
    it takes no part, so that its result does not depend on what else is in the batch. A point that is equally far from
    several centres goes to the first. A centre that loses all its points stays where it is, which scikit-learn moves:
    give each empty cluster a point afterwards.

    Parameters
    ----------
    points : Tensor of shape (M, n, d)
        Points, in float64.
    weights : Tensor of shape (M, n)
        Their weights.
    centers : Tensor of shape (M, k, d)
        Centres to start from.
    max_iter : int
        Most iterations.
    tol : Tensor of shape (M,)
        Squared shift of all centres of a problem at which it ends.

    Returns
    -------
    Solved
    """
    origin = points.mean(dim=1, keepdim=True)  # products of points with a common offset would lose digits
    x, c, w = points - origin, centers - origin, weights
    labels = torch.zeros(weights.shape, dtype=torch.long, device=points.device)
    last = c.clone()
    n_iter = torch.zeros(len(points), dtype=torch.long, device=points.device)
    at_rest = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    running = torch.arange(len(points), device=points.device)
    whole, before = x, torch.full_like(labels, -1)
    for iteration in range(1, max_iter + 1):
        now = _nearest(x, c)
        moved = _means(x, w, now, c)
        same = (now == before).all(dim=1)
        ended = same | ((moved - c).square().sum(dim=(1, 2)) <= tol)
        c, before = moved, now
        if iteration == max_iter:
            ended = torch.ones_like(ended)
        if ended.any():
            out = running[ended]
            labels[out], last[out], at_rest[out], n_iter[out] = now[ended], c[ended], same[ended], iteration
            on = ~ended
            running = running[on]
            if not len(running):
                break
            x, w, c, before, tol = x[on], w[on], c[on], before[on], tol[on]
    loose = ~at_rest
    if loose.any():
        labels[loose] = _nearest(whole[loose], last[loose])
    to_center = whole - last.gather(1, labels[:, :, None].expand_as(whole))
    return Solved(labels, (weights * to_center.square().sum(dim=2)).sum(dim=1), n_iter)


def _nearest(x: Tensor, c: Tensor) -> Tensor:
    """Index of each point's nearest centre, the first of those that are equally near: (M, n)."""
    norms = x.square().sum(dim=2, keepdim=True)
    squared = torch.baddbmm(norms + c.square().sum(dim=2)[:, None, :], x, c.mT, alpha=-2)  # (M, n, k)
    nearest = squared.amin(dim=2, keepdim=True).clamp(min=0)
    return (squared <= nearest + TIE * (nearest + norms)).to(torch.uint8).argmax(dim=2)


def _means(x: Tensor, w: Tensor, labels: Tensor, c: Tensor) -> Tensor:
    """Weighted mean of the points of every label, or the centre c where a label has none: (M, k, d)."""
    # A product with the matrix of memberships and not a scatter, which on GPUs adds in an order that varies
    member = torch.zeros(len(x), c.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
    member.scatter_(1, labels[:, None, :], w[:, None, :])
    totals = member.sum(dim=2, keepdim=True)
    return torch.where(totals > 0, (member @ x) / torch.where(totals > 0, totals, 1), c)
