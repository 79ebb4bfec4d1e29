"""Rules entry by entry, in NumPy: TIES, magnitude, Breadcrumbs, DARE, DELLA, SCE, task arithmetic.

Each takes T arrays of one shape, T weights and, for the rules that draw, T arrays of uniform numbers in [0, 1).
"""

from __future__ import annotations

import numpy as np


def kept_count(n, density, extra=0):
    return min(max(int(density * n) + extra, 1), n)


def trimmed(x, density, extra=0):
    """The entries of largest magnitude; zero elsewhere."""
    order = np.argsort(-np.abs(x), axis=None, kind="stable")
    out = np.zeros(x.size)
    kept = order[: kept_count(x.size, density, extra)]
    out[kept] = x.reshape(-1)[kept]
    return out.reshape(x.shape)


def rescaled(before, after, norm):
    """``after`` with the norm of ``before``."""
    order = {"l1": 1, "l2": 2, "linf": np.inf}
    if norm is None or not after.any():
        return after
    return after * (np.linalg.norm(before.ravel(), order[norm]) / np.linalg.norm(after.ravel(), order[norm]))


def votes_of(stack, weights, vote="total"):
    """Sign that each entry elects, 0 where it elects none."""
    if vote == "total":
        return np.sign(sum(w * x for w, x in zip(weights, stack, strict=True)))
    plus, minus = (sum(w * (s * x > 0) for w, x in zip(weights, stack, strict=True)) for s in (1, -1))
    return np.where(np.isclose(plus, minus, rtol=1e-9, atol=0), 0, np.sign(plus - minus))


def elected(stack, weights, majority=False, vote="total", disjoint="mean", undecided=None):
    """Sign election, and what follows it for the entries that agree."""
    votes = votes_of(stack, weights, vote)
    if undecided is None:
        undecided = np.sign(votes.sum()) if majority else 1
    votes[votes == 0] = undecided
    agreeing = [x * (x * votes > 0) for x in stack]
    if disjoint == "max":
        return votes * np.max(np.abs(agreeing), axis=0)
    total = mean(agreeing, weights)
    if disjoint == "sum":
        return total * len(weights) / sum(weights)
    count = mean([x != 0 for x in agreeing], weights)
    return np.divide(total, count, out=np.zeros(total.shape), where=count > 0)


def mean(stack, weights):
    return sum(w * x for w, x in zip(weights, stack, strict=True))


def merged_as(sign_election, stack, weights):
    """The mean of all, or of the entries that have the elected sign."""
    if sign_election is False:
        return mean(stack, weights)
    return elected(stack, weights, vote="frequency" if sign_election == "frequency" else "total")


def ties(stack, weights, uniforms, density=0.2, official=False, rescale=None, **options):
    sparse = [rescaled(x, trimmed(x, density, int(official)), rescale) for x in stack]
    return elected(sparse, weights, official, **options)


def magnitude(stack, weights, uniforms, density=0.5, rescale=None):
    return mean([rescaled(x, trimmed(x, density), rescale) for x in stack], weights)


def crumbs(x, density, gamma):
    """What is left without the largest entries and without the smallest."""
    rising = np.argsort(np.abs(x), axis=None, kind="stable")
    top = x.size - int(gamma * x.size)
    kept = rising[top - min(kept_count(x.size, density), top) : top]
    out = np.zeros(x.size)
    out[kept] = x.reshape(-1)[kept]
    return out.reshape(x.shape)


def breadcrumbs(stack, weights, uniforms, density=0.15, gamma=0.006, by_row=False, sign_election=False, rescale=None):
    def sparse(x):
        if by_row:  # the authors' code
            return np.stack([crumbs(row, density, gamma) for row in x])
        return crumbs(x, density, gamma)  # mergekit

    return merged_as(sign_election, [rescaled(x, sparse(x), rescale) for x in stack], weights)


def dropped(stack, uniforms, keep, rescale):
    """Entries whose draw is below their probability; divided by that, or given back a norm."""
    out = []
    for x, u in zip(stack, uniforms, strict=True):
        pi = keep(x)
        masked = np.where(u < pi, x, 0)
        out.append(masked / pi if rescale == "expectation" else rescaled(x, masked, rescale))
    return out


def dare(stack, weights, uniforms, density=0.5, sign_election=False, rescale="expectation"):
    sparse = dropped(stack, uniforms, lambda x: np.full(x.shape, density), rescale)
    return merged_as(sign_election, sparse, weights)


def keep_probabilities(x, density, epsilon):
    """DELLA's probabilities, which rise with the rank of the magnitude within the row."""
    out = np.empty(x.shape)
    for row, probabilities in zip(x, out, strict=True):
        for rho, place in enumerate(sorted(range(len(row)), key=lambda i, row=row: abs(row[i])), start=1):
            probabilities[place] = (density - epsilon) + 2 * epsilon * (rho - 1) / (len(row) - 1)
    return out


def della(stack, weights, uniforms, density=0.7, epsilon=0.07, sign_election=True, rescale="expectation"):
    sparse = dropped(stack, uniforms, lambda x: keep_probabilities(x, density, epsilon), rescale)
    return merged_as(sign_election, sparse, weights)


def sce(stack, weights, uniforms, density=0.1, official=False):
    """Select by variance, weigh by the squares of what is selected, erase minority signs."""
    share = np.asarray(weights) / np.sum(weights)
    centre = sum(w * x for w, x in zip(share, stack, strict=True))
    variance = sum(w * (x - centre) ** 2 for w, x in zip(share, stack, strict=True))
    selected = np.ones(variance.shape, dtype=bool)
    if density < 1 and variance.any():
        falling = np.argsort(-variance, axis=None, kind="stable")[: kept_count(np.count_nonzero(variance), density)]
        selected = np.isin(np.arange(variance.size), falling).reshape(variance.shape)
    counted = [w * np.sum((x * selected) ** 2) for w, x in zip(weights, stack, strict=True)]
    merged_from = stack if official else [x * selected for x in stack]
    votes = votes_of(merged_from, weights)
    votes[votes == 0] = 1
    total = sum(c * x * (np.sign(x) == votes) for c, x in zip(counted, merged_from, strict=True))
    agreeing = sum(c * (np.sign(x) == votes) for c, x in zip(counted, merged_from, strict=True))
    return np.divide(total, agreeing, out=np.zeros(total.shape), where=agreeing > 0)


def task_arithmetic(stack, weights, uniforms, coefficient=0.4):
    return coefficient * len(stack) * mean(stack, weights)
