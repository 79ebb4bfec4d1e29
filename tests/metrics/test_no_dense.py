"""No metric forms a (d_out, d_in) matrix: not as a tensor, nor as an array."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorakit import AdapterSet, LegoMerger, SVDMerger, rank_path
from lorakit import metrics as m
from lorakit.testing import make_adapters

WIDTH = 2000  # of which a square has 32 MB in float64


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor made inside the block holds."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return made


def wide(dtype):
    return AdapterSet(make_adapters(2, ranks=3, d_in=WIDTH, d_out=WIDTH, n_modules=1, dtype=dtype, random_state=0))


METRICS = {
    "compare_to_each": lambda X: m.compare_to_each(X[0], X),
    "cosine_matrix": m.cosine_matrix,
    "cross_terms": lambda X: (m.cross_terms(X), m.cross_term_moments(X)),
    "cross_term_noise": lambda X: m.cross_term_noise(X, rank=6, random_state=0)["layer.0"],
    "interference": m.interference,
    "interpolate": lambda X: (m.interpolate(*X, 0.5), m.interpolate(*X, 0.5, space="factors")),
    "msu_distances": lambda X: (m.msu_distances(X), m.msu_distances(X, metric="cosine")),
    "norm_decay": lambda X: m.norm_decay(LegoMerger(k=2, align="svd", random_state=0).fit(X), X),
    "output_variance": lambda X: m.output_variance_path(rank_path(SVDMerger(), X, [2, 3]), X),
    "principal_angles": lambda X: m.principal_angles(*X),
    "subspace_overlap": lambda X: (m.subspace_overlap(X), m.subspace_overlap(X, side="in")),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thin(metric, dtype):
    X = wide(dtype)
    with Largest():  # what is imported or kept on the first call is not counted
        METRICS[metric](X)
    tracemalloc.start()
    with Largest() as largest:
        METRICS[metric](X)
    _, arrays = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < largest.numbers <= 8 * WIDTH * 6  # all units of both adapters, a few times
    assert arrays < WIDTH**2  # bytes; a dense array has eight times that


def test_the_watch_sees_dense_matrices():
    with Largest() as largest:
        wide(torch.float32)[0]["layer.0"].delta()
    assert largest.numbers == WIDTH**2
    tracemalloc.start()
    np.ones((WIDTH, WIDTH))
    assert tracemalloc.get_traced_memory()[1] >= 8 * WIDTH**2
    tracemalloc.stop()
