"""Dense float64 matrices to compare metrics with: everything here is formed, d x d, as its definition says."""

import torch


def dense(adapter, module, like):
    """``B @ A`` of one module in float64; zeros where the adapter lacks it."""
    if module in adapter:
        a, b = adapter[module].to(torch.float64)
        return b @ a
    infos = [info for info in like.infos(module) if info is not None]
    return torch.zeros(infos[0].d_out, infos[0].d_in, dtype=torch.float64)


def dense_vectors(X):
    """One row an adapter: all modules' updates as one vector."""
    return torch.stack([torch.cat([dense(a, m, X).flatten() for m in X.module_names]) for a in X])
