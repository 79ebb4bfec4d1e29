"""Many units of few coordinates, as a rank far above a module's widths makes: the same clusters, in little memory."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit import Adapter, LegoMerger, LoraFactors, MSUKMeans, save_adapter
from lorakit.cluster import _coordinates, _lloyd_blocks, _lloyd_torch, _partition, _rows
from lorakit.cluster._coordinates import aligned_signs, coordinates
from lorakit.cluster._rows import weighted_means


@pytest.fixture
def nothing_held(monkeypatch):
    """Take the way of many points whatever their number."""

    def change():
        for module in (_rows, _partition, _coordinates):
            monkeypatch.setattr(module, "HELD", 0)
        monkeypatch.setattr(_lloyd_blocks, "_BLOCK", 40)

    return change


def narrow(rank, seed, d_in=2, d_out=1):
    g = torch.Generator().manual_seed(seed)
    factors = LoraFactors(
        torch.randn(rank, d_in, generator=g, dtype=torch.float64),
        torch.randn(d_out, rank, generator=g, dtype=torch.float64),
    )
    return Adapter({"m": factors}, name=f"a{seed}")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["noise", "lattice"]),
    n=st.integers(8, 90),
    d=st.integers(1, 4),
    k=st.integers(1, 8),
    max_iter=st.sampled_from([1, 2, 300]),
    tol=st.sampled_from([1e-9, 0.3]),  # at 0 the last bits of the shift would count
    block=st.sampled_from([1, 50, 2**18]),
)
def test_blocks_as_with_all_points_at_once(seed, kind, n, d, k, max_iter, tol, block):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, d)) if kind == "noise" else rng.integers(-2, 3, (n, d)).astype(float)
    points -= points.mean(axis=0)
    weights, centers = rng.uniform(0.1, 3, n), points[rng.choice(n, k, replace=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lloyd_blocks, "_BLOCK", block)
        ours = _lloyd_blocks.lloyd(points, weights, centers, max_iter=max_iter, tol=tol)
    batch = (torch.from_numpy(x)[None] for x in (points, weights, centers))
    theirs = _lloyd_torch.lloyd(*batch, max_iter=max_iter, tol=torch.tensor([tol], dtype=torch.float64))
    np.testing.assert_array_equal(ours.labels, theirs.labels[0].numpy())
    assert ours.inertia == pytest.approx(theirs.inertia.item(), rel=1e-10, abs=1e-12)
    assert ours.n_iter == theirs.n_iter.item()


@pytest.mark.parametrize("k", [1, 5, 60])
def test_k_means_is_the_same(nothing_held, k):
    X = np.random.default_rng(k).standard_normal((200, 3))
    before = MSUKMeans(k, random_state=0).fit(X, sample_weight=np.arange(1, 201))
    nothing_held()
    after = MSUKMeans(k, random_state=0).fit(X, sample_weight=np.arange(1, 201))
    np.testing.assert_array_equal(after.labels_, before.labels_)
    np.testing.assert_allclose(after.cluster_centers_, before.cluster_centers_, rtol=1e-12)
    assert after.inertia_ == pytest.approx(before.inertia_, rel=1e-12)
    assert after.n_iter_ == before.n_iter_


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "sign_invariant"])
@pytest.mark.parametrize("k", [None, 1, 7])
def test_merges_are_the_same(nothing_held, metric, k):
    X = [narrow(60, 0), narrow(40, 1)]
    before = LegoMerger(k, metric=metric, random_state=0).fit(X)
    nothing_held()
    after = LegoMerger(k, metric=metric, random_state=0).fit(X)
    np.testing.assert_array_equal(after.labels_["m"], before.labels_["m"])
    torch.testing.assert_close(after.merged_["m"].A, before.merged_["m"].A)
    torch.testing.assert_close(after.merged_["m"].B, before.merged_["m"].B)
    assert after.inertia_["m"] == pytest.approx(before.inertia_["m"], rel=1e-9)


def test_outer_products_have_the_distances_of_the_gram_matrix(nothing_held):
    rows = np.random.default_rng(0).standard_normal((30, 3))
    rows[4] = 0
    gram = coordinates(rows, "sign_invariant")
    nothing_held()
    entries = coordinates(rows, "sign_invariant")
    assert entries.shape == (30, 6)
    np.testing.assert_allclose(entries @ entries.T, gram @ gram.T, atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1))
def test_signs_shorten_no_mean(seed):
    """Turning any one row of a cluster does not lengthen the sum of the cluster's rows."""
    rng = np.random.default_rng(seed)
    rows, weights, labels = rng.standard_normal((30, 3)), rng.uniform(0.1, 3, 30), rng.integers(0, 3, 30)
    signs = aligned_signs(rows, weights, labels)
    for cluster in range(3):
        mine = labels == cluster
        turned = rows[mine] * (weights * signs)[mine, None]
        total = turned.sum(axis=0)
        assert all(np.linalg.norm(total - 2 * row) <= np.linalg.norm(total) + 1e-6 for row in turned)


def test_means_without_a_full_matrix_of_shares(nothing_held):
    rng = np.random.default_rng(0)
    rows, weights, labels = rng.standard_normal((40, 3)), rng.uniform(0.1, 3, 40), rng.integers(0, 6, 40)
    labels[labels == 3] = 2
    labels[7] = 6
    before = weighted_means(rows, weights, labels)
    nothing_held()
    after = weighted_means(rows, weights, labels)
    assert np.isnan(before[3]).all()
    np.testing.assert_allclose(after, before, rtol=1e-12)
    np.testing.assert_array_equal(after[6], rows[7])


@pytest.mark.parametrize("options", [{}, {"k": 16}, {"k": 16, "metric": "sign_invariant"}])
def test_no_array_of_all_pairs(options):
    """3,000 units of two numbers: 48 kB, where one array of all pairs would take 72 MB."""
    X = [narrow(1500, 0, d_in=1), narrow(1500, 1, d_in=1)]
    LegoMerger(n_init=2, random_state=0, **options).fit([narrow(40, 0), narrow(40, 1)])  # what is imported is
    tracemalloc.start()  # NumPy's arrays are counted
    try:
        LegoMerger(n_init=2, random_state=0, **options).fit(X)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


MERGE = """
import re, sys
from pathlib import Path
from lorakit.cli import main
try:
    main()
except SystemExit as error:
    assert not error.code
print("peak", re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process's memory from Linux")
@pytest.mark.parametrize("more", [[], ["-k", "16"]])
def test_memory_of_a_merge_on_the_command_line(tmp_path, more):
    """Two files of 40 kB whose 10,000 units have two numbers each; the peak holds the interpreter and torch."""
    for seed in range(2):
        save_adapter(narrow(5000, seed, d_in=1), tmp_path / f"a{seed}", dtype=torch.float32)
    out = str(tmp_path / "out")
    command = ["merge", str(tmp_path / "a0"), str(tmp_path / "a1"), "-o", out, "--method", "lego", *more]
    run = subprocess.run([sys.executable, "-c", MERGE, *command], capture_output=True, text=True, check=True)
    assert int(re.search(r"peak (\d+)", run.stdout)[1]) < 500_000
