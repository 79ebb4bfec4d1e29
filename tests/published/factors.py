"""Rules on the factors and rules with data, in NumPy: averages, LEGO after its clustering, RegMean, Fisher."""

from __future__ import annotations

import numpy as np


def average(pairs, weights):
    """The direct merge: mean B times mean A."""
    a, b = (sum(w * pair[i] for w, pair in zip(weights, pairs, strict=True)) for i in (0, 1))
    return b @ a


def fisher(pairs, moments, weights):
    """Averages of A and of B, each entry weighted by its moment; moments are pairs of arrays."""
    parts = []
    for i in (0, 1):
        shares = [w * moment[i] for w, moment in zip(weights, moments, strict=True)]
        parts.append(sum(s * pair[i] for s, pair in zip(shares, pairs, strict=True)) / sum(shares))
    return parts[1] @ parts[0]


def lego(pairs, labels, k, norm="inf", output_scale="sqrt"):
    """LoRA-LEGO once its units are clustered: centroids, parameter reweighting, output reweighting.

    ``labels`` are of the units in the order of the adapters.
    """
    d_in = pairs[0][0].shape[1]
    units = np.vstack([np.hstack([a, b.T]) for a, b in pairs])
    order = np.inf if norm == "inf" else 2
    merged = np.zeros((pairs[0][1].shape[0], d_in))
    for cluster in range(k):
        own = units[labels == cluster]
        centroid = own.mean(axis=0)
        if norm is not None:
            centroid *= np.linalg.norm(own, order, axis=1).mean() / np.linalg.norm(centroid, order)
        merged += np.outer(centroid[d_in:], centroid[:d_in])
    if output_scale == "sqrt":
        merged *= np.sqrt(np.mean([len(a) for a, _ in pairs]) / k)
    return merged


def regmean(updates, inputs, weights, offdiagonal):
    """RegMean: least squares on the inputs of each task, (n, d_in), whose covariances are shrunk off the diagonal."""
    total, moments = 0, 0
    for update, x, w in zip(updates, inputs, weights, strict=True):
        gram = x.T @ x / len(x)
        gram = offdiagonal * gram + (1 - offdiagonal) * np.diag(np.diag(gram))
        total, moments = total + w * update @ gram, moments + w * gram
    return np.linalg.solve(moments, total.T).T
