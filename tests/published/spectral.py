"""Rules on singular values and vectors, on dense updates in torch: TSV, Iso, SVC, CtM, WUDI, and the truncated mean.

Each takes T dense updates, their ranks and their weights of mean 1, and returns the dense update before any cut.
"""

from __future__ import annotations

import numpy as np
import torch

from . import entrywise


def polar(x):
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-9] @ vh[s > 1e-9]


def svd(x, rank):
    u, s, vh = torch.linalg.svd(x)
    return u[:, :rank], s[:rank], vh[:rank].T


def tsv(w, ranks, c):
    u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*map(svd, scaled(w, c), ranks), strict=True))
    return polar(u) @ torch.diag(s) @ polar(v).T


def iso(w, ranks, c):
    u, s, v = svd(sum(scaled(w, c)), min(sum(ranks), *w[0].shape))
    return s.mean() * u @ v.T


def iso_cts(w, ranks, c, share):
    n = min(sum(ranks), *w[0].shape)
    per_task = round((n - int(n * share)) / len(w))
    leading = svd(sum(scaled(w, c)), n - per_task * len(w))
    away = torch.eye(len(leading[0]), dtype=w[0].dtype) - leading[0] @ leading[0].T
    parts = [leading, *(svd(away @ x, per_task) for x in scaled(w, c))]
    u, s, v = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    return s.mean() * polar(u) @ polar(v).T


def svc(w, ranks, c, alpha):
    total = sum(scaled(w, c))
    out = torch.zeros_like(total)
    u, s, v = svd(total, min(sum(ranks), *total.shape))
    for u_r, s_r, v_r in zip(u.T, s, v.T, strict=True):
        counts = [(u_r @ total) @ (u_r @ x) / ((u_r @ x) @ (u_r @ x)) for x in w]
        share = sum(c_i * max(alpha, float(count)) for c_i, count in zip(c, counts, strict=True)) / len(w)
        out += torch.outer(u_r, v_r) * s_r / share
    return out


def scaled(w, c):
    return [c_i * x for c_i, x in zip(c, w, strict=True)]


def tucker(w, c, k, rounds):
    """HOOI on the dense updates, by eigenvectors."""

    def leading(gram):
        return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :k]

    v = leading(sum(c_i * x.T @ x for c_i, x in zip(c, w, strict=True)))
    for _ in range(rounds):
        u = leading(sum(c_i * x @ v @ v.T @ x.T for c_i, x in zip(c, w, strict=True)))
        v = leading(sum(c_i * x.T @ u @ u.T @ x for c_i, x in zip(c, w, strict=True)))
    return u, v


def rescaled(w, c, beta):
    """The updates on which CtM learns its bases: norms between their own (1) and the mean norm (0)."""
    norms = [x.norm() for x in w]
    mean = sum(c_i * n for c_i, n in zip(c, norms, strict=True)) / sum(c)
    return [x / n * (beta * n + (1 - beta) * mean) for x, n in zip(w, norms, strict=True)]


def ctm(w, ranks, c, k, rounds, rule, beta=0.0, density=0.2, official=False, dare_density=0.7, uniforms=None):
    u, v = tucker(rescaled(w, c, beta), c, k, rounds)
    cores = [u.T @ x @ v for x in w]
    if rule == "mean":
        core = sum(scaled(cores, c)) / len(w)
    elif rule == "iso":
        core = iso(cores, [k], c)
    else:
        sparse = [x.numpy() for x in cores]
        if rule == "dare_ties":
            keep = np.full((k, k), dare_density)
            sparse = entrywise.dropped(sparse, uniforms, lambda x: keep, "expectation")
        core = torch.from_numpy(entrywise.ties(sparse, c, None, density=density, official=official))
    return u @ core @ v.T


def wudi(w, ranks, c, ridge):
    h = sum(c_i * x.T @ x / x.norm() ** 2 for c_i, x in zip(c, w, strict=True))
    r = sum(c_i * x @ x.T @ x / x.norm() ** 2 for c_i, x in zip(c, w, strict=True))
    if not ridge:
        return r @ torch.linalg.pinv(h, rtol=1e-10, hermitian=True)
    rho = ridge * torch.trace(h) / min(sum(ranks), len(h))
    return torch.linalg.solve(h + rho * torch.eye(len(h), dtype=h.dtype), r.T).T


def calibrated(merged, w, shares, alpha):
    """SVC on any merge: each singular value over the tasks' responses, of which none counts less than alpha."""
    u, s, v = svd(merged, int(torch.linalg.matrix_rank(merged, rtol=1e-9)))
    out = torch.zeros_like(merged)
    for u_r, s_r, v_r in zip(u.T, s, v.T, strict=True):
        counts = [float((u_r @ merged) @ (u_r @ x) / ((u_r @ x) @ (u_r @ x))) for x in w]
        counted = sum(share * max(alpha, count) for share, count in zip(shares, counts, strict=True))
        out += torch.outer(u_r, v_r) * s_r / counted
    return out


def isotropic(merged, n):
    """Iso on any merge: the mean over n directions for every singular value."""
    u, s, v = svd(merged, int(torch.linalg.matrix_rank(merged, rtol=1e-9)))
    return s.sum() / n * u @ v.T


def mean(w, ranks, c):
    """The weighted mean, of which an SVD keeps k triples."""
    return sum(scaled(w, c)) / len(w)


def truncated(x, k):
    """The best approximation of rank k."""
    u, s, v = svd(x, k)
    return u @ torch.diag(s) @ v.T
