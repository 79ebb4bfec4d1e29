"""LegoPruner prunes alike on every backend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering

from lorakit import LegoPruner, load_adapters
from lorakit.testing import adapter_sets, make_adapters


def same_adapters(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        for module in y:
            for a, b in zip(x[module], y[module], strict=True):
                assert torch.equal(a, b), (x.name, module)


def all_alike(pruner, X):
    expected = clone(pruner).set_params(backend="sklearn").fit_transform(X)
    for backend in ("numpy", "torch"):
        same_adapters(clone(pruner).set_params(backend=backend).fit_transform(X), expected)


@pytest.mark.parametrize("options", [{}, {"k": 5, "align": "svd"}, {"k": 3, "metric": "sign_invariant"}], ids=str)
def test_real_adapters(real_adapter_paths, options):
    X = load_adapters(list(real_adapter_paths.values()))[:4]
    assert {i.rank for adapter in X for i in adapter.infos.values()} == {8, 16}
    all_alike(LegoPruner(**{"n_init": 3, "random_state": 0, **options}), X)


@given(X=adapter_sets(max_rank=8), k=st.integers(1, 4))
def test_random_adapters(X, k):
    k = min(k, max(i.rank for m in X.module_names for i in X.infos(m) if i))
    all_alike(LegoPruner(k, n_init=2, random_state=0), X)


def test_backend_is_told_and_checked():
    X = make_adapters(ranks=(6, 8), random_state=0)
    assert LegoPruner(k=3).fit(X).backend_ == "numpy"
    assert LegoPruner(k=3, backend="sklearn").fit(X).backend_ == "sklearn"
    assert LegoPruner(k=3, backend="torch").fit(X).backend_ == "torch"
    assert LegoPruner(k=3, backend="cuml", clusterer=AgglomerativeClustering()).fit(X).backend_ is None
    for refuse in (LegoPruner(k=3, backend="cuml").fit, LegoPruner(k=3, backend="cuml").transform):
        with pytest.raises(ValueError, match="NVIDIA GPUs"):
            refuse(X)
    for refuse in (LegoPruner(k=3, backend="jax").fit, LegoPruner(k=3, backend="jax").transform):
        with pytest.raises(ValueError, match="'backend' parameter"):
            refuse(X)


def test_transform_leaves_nothing_behind():
    X = make_adapters(ranks=(6, 8), random_state=0)
    pruner = LegoPruner(k=3, backend="torch", random_state=0)
    pruner.transform(X)
    assert "_chosen" not in vars(pruner)
