"""The spaces in which element-wise rules act, in NumPy, and a rule applied in one of them."""

from __future__ import annotations

import numpy as np


def as_pairs(factors):
    return [(f.A.double().numpy(), f.B.double().numpy()) for f in factors]


def balanced(a, b):
    """The factors of ``b @ a`` that its SVD gives, singular values split evenly."""
    u, s, vt = np.linalg.svd(b @ a)
    r = len(a)
    return s[:r, None] ** 0.5 * vt[:r], u[:, :r] * s[:r] ** 0.5


def spanned(u, s):
    """The singular vectors of values that are not round-off, with lorakit's signs, on which undecided votes depend."""
    u = u[:, s > 1e-6 * s[0]]
    return u * np.where(np.random.RandomState(0).standard_normal(len(u)) @ u < 0, -1, 1)


def space_of(space, pairs, weights=None):
    """Tensors of T updates, given as pairs of A and B, in a space; and the way back to a dense update."""
    updates = [b @ a for a, b in pairs]
    roots = np.ones(len(pairs)) if weights is None else np.sqrt(weights)
    if space == "delta":
        return updates, lambda merged: merged
    if space == "knots":
        u, s, _ = np.linalg.svd(
            np.hstack([root * w for root, w in zip(roots, updates, strict=True)]), full_matrices=False
        )
        u = spanned(u, s)
        return [u.T @ w for w in updates], lambda merged: u @ merged
    # Core Space as its authors have it takes the factors as they are
    own = pairs if space == "core_factors" else [balanced(a, b) for a, b in pairs]
    u, s, _ = np.linalg.svd(np.hstack([root * b for root, (_, b) in zip(roots, own, strict=True)]), full_matrices=False)
    v, t, _ = np.linalg.svd(
        np.hstack([root * a.T for root, (a, _) in zip(roots, own, strict=True)]), full_matrices=False
    )
    u, v = spanned(u, s), spanned(v, t)
    return [u.T @ w @ v for w in updates], lambda merged: u @ merged @ v.T


def merged_in(space, rule, factors, weights, uniforms=None, **options):
    """The dense merged update: ``rule`` in ``space``. ``uniforms`` are the draws, in the order of the tensors."""
    pairs = as_pairs(factors)
    weights = np.asarray(weights, dtype=float) / np.sum(weights)
    t = len(pairs)
    draws = uniforms or [None] * (2 * t)
    if space == "factors":
        a = rule([a for a, _ in pairs], weights, draws[:t], **options)
        return rule([b for _, b in pairs], weights, draws[t : 2 * t], **options) @ a
    tensors, back = space_of(space, pairs, weights)
    return back(rule(tensors, weights, draws[:t], **options))


def streams_of(merger, X, module, weights=None):
    """The random stream that each adapter gets at a module; no formula, so lorakit is asked."""
    from lorakit._execution import module_rng
    from lorakit.merging._draws import streams

    factors = X.factors(module)
    weights = np.full(len(factors), 1 / len(factors)) if weights is None else np.asarray(weights) / np.sum(weights)
    return streams(factors, weights, module_rng(merger._seed(), module))


def draws_of(merger, X, module, space, weights=None):
    """The uniform numbers that a merger with an integer seed draws at a module, for each tensor that it sees."""
    pairs, own = as_pairs(X.factors(module)), streams_of(merger, X, module, weights)
    if space == "factors":
        shapes = [a.shape for a, _ in pairs], [b.shape for _, b in pairs]
    else:
        weights = np.full(len(pairs), 1.0) if weights is None else weights
        shapes = ([x.shape for x in space_of(space, pairs, weights)[0]],)
    return [rng.random_sample(shape) for group in shapes for rng, shape in zip(own, group, strict=True)]
