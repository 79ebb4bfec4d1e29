"""Every merger on a GPU gives what it gives on the CPU, in a sane amount of its memory.

pytest tests/gpu -m gpu -n0
"""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from lorakit import ConcatMerger, LegoMerger, LegoPruner, SVDMerger, SVDPruner, load_adapters
from lorakit.discovery import all_estimators
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
# Listing the units in another order, on the CPU, moves these merges by up to 2e-5 in float32: round-off alone.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
NO_DATA = {name: cls for name, cls in all_estimators("merger").items() if not cls.needs_data}


def seeded(estimator):
    return estimator.set_params(random_state=0) if "random_state" in estimator.get_params() else estimator


def on_both(estimator, X):
    return [clone(estimator).set_params(device=device).fit_transform(X) for device in ("cuda", "cpu")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NO_DATA)
def test_mergers_agree(name, dtype):
    merger = seeded(NO_DATA[name]()).set_params(k=6)
    X = make_adapters(ranks=(6, 6, 6), d_in=64, d_out=48, dtype=dtype, random_state=0)
    (ours,), (theirs,) = on_both(merger, X)
    assert all(x.device.type == "cpu" for factors in ours.values() for x in factors)
    assert relative_error(ours, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("merger", [SVDMerger(k=16), LegoMerger(k=16, random_state=0), ConcatMerger()], ids=str)
def test_mergers_agree_on_real_adapters(merger, real_adapter_paths):
    (ours,), (theirs,) = on_both(merger, load_adapters(list(real_adapter_paths.values())))
    assert relative_error(ours, theirs) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("pruner", [SVDPruner(k=4), LegoPruner(k=4, random_state=0)], ids=str)
def test_pruners_agree(pruner, real_adapter_paths):
    X = load_adapters(list(real_adapter_paths.values()))[:3]
    for ours, theirs in zip(*on_both(pruner, X), strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", ["torch", "sklearn"])
def test_peak_memory_is_that_of_one_module_and_one_batch(backend):
    X = make_adapters(8, ranks=16, d_in=4096, d_out=4096, n_modules=6, random_state=0)
    LegoMerger(k=32, backend=backend, device="cuda", random_state=0).fit(X[:1])  # what libraries allocate for good
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    LegoMerger(k=32, backend=backend, device="cuda", random_state=0).fit(X)
    module = 8 * 16 * (4096 + 4096) * 8  # the units of one module, in float64
    assert torch.cuda.max_memory_allocated() - before < 8 * module + 2**28
    assert torch.cuda.memory_allocated() - before < module  # nothing stays


def test_k_means_on_the_host_beside_a_gpu():
    X = make_adapters(ranks=(6, 8), random_state=0)
    ours = LegoMerger(k=5, backend="sklearn", device="cuda", random_state=0).fit(X)
    theirs = LegoMerger(k=5, random_state=0).fit(X)
    assert ours.backend_ == "sklearn"
    for module, labels in theirs.labels_.items():
        np.testing.assert_array_equal(ours.labels_[module], labels)
