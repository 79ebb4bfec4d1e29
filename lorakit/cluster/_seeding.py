"""Greedy k-means++ on a matrix of squared distances, insensitive to round-off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ._rows import Floats, Ints

# Candidates whose potentials differ by less are tied. Exact ties are common: when two points are left to each other,
# taking either as a centre leaves the same potential. Without a tolerance round-off would choose between them, and
# adapters that differ only in how their updates are factored could be merged into different adapters.
_TIE = 1e-6


def plusplus(
    squared: Floats, weights: Floats, ks: Sequence[int], n_init: int, rng: np.random.RandomState
) -> list[Ints]:
    """Choose starting centres by greedy k-means++ (Arthur and Vassilvitskii, 2007; several candidates a step).

    As :func:`sklearn.cluster.kmeans_plusplus`, but from distances that are computed once, for all starts of all numbers
    of centres side by side, and with ties between candidates going to the one that was drawn first.

    Parameters
    ----------
    squared : ndarray of shape (n, n)
        Squared distances of the points.
    weights : ndarray of shape (n,)
        Positive weights.
    ks : sequence of int
        Numbers of centres, each below n. What is chosen for one does not depend on the others.
    n_init : int
        Number of starts.
    rng : RandomState
        Source of the draws, for each number from the state that it is in. A start draws the same numbers however many
        follow it.

    Returns
    -------
    list of ndarray of shape (n_init, k)
        For each of ``ks``, indices of the points to start from.
    """
    # Largest first: the starts that go on are then the first ones
    places = np.argsort(np.argsort(np.negative(ks), kind="stable"))
    sizes = np.repeat(np.sort(ks)[::-1], n_init)
    most = int(sizes[0])
    first, shares = np.empty(len(sizes)), np.empty((most - 1, len(sizes), _n_candidates(most)))
    stream = rng.random_sample(n_init * (1 + shares.shape[0] * shares.shape[2]))
    for place, k in zip(places, ks, strict=True):
        own, m = slice(place * n_init, (place + 1) * n_init), _n_candidates(k)
        drawn = stream[: n_init * (1 + (k - 1) * m)].reshape(n_init, -1)
        first[own] = drawn[:, 0]
        steps = drawn[:, 1:].reshape(n_init, k - 1, m).swapaxes(0, 1)
        shares[: k - 1, own, :m], shares[: k - 1, own, m:] = steps, steps[:, :, :1]  # drawn again, one never wins
    chosen = np.empty((len(sizes), most), dtype=np.intp)
    chosen[:, 0] = _at_shares(weights.cumsum()[None], first[None])[0]
    closest = squared[chosen[:, 0]]  # (s, n)
    for step in range(1, most):
        starts = np.arange(np.count_nonzero(sizes > step))
        closest = closest[: len(starts)]
        candidates = _at_shares(_cumulative(weights * closest), shares[step - 1, : len(starts)])
        after = squared.take(candidates, axis=0)  # (s, n_candidates, n)
        np.minimum(closest[:, None], after, out=after)
        potentials = (after.reshape(-1, len(weights)) @ weights).reshape(candidates.shape)  # one product for all
        best = np.argmax(potentials <= potentials.min(axis=1, keepdims=True) * (1 + _TIE), axis=1)
        chosen[starts, step] = candidates[starts, best]
        closest = after[starts, best]
    return [chosen[place * n_init : (place + 1) * n_init, :k] for place, k in zip(places, ks, strict=True)]


def _n_candidates(k: int) -> int:
    return 2 + int(np.log(k))  # scikit-learn's number


def _cumulative(rows: Floats) -> Floats:
    """Cumulative sums of each row, in the order of its numbers; by torch, which takes a quarter of NumPy's time."""
    sums: Floats = torch.from_numpy(rows).cumsum(1).numpy()
    return sums


def _at_shares(cumulative: Floats, shares: Floats) -> Ints:
    """Positions where cumulative sums, (s, n), reach shares below 1 of their totals, (s, m): (s, m)."""
    targets = shares * cumulative[:, -1:]
    reached: Ints = (cumulative[:, None] >= targets[:, :, None]).argmax(axis=2)
    return reached
