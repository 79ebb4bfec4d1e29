"""Element-wise rules a few rows at a time, a module or a whole model: what they find is of all, in little memory."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from elementwise import EVERY_RULE, SPACES, adapters, dense, distance
from published import entrywise
from published.spaces import as_pairs, merged_in, space_of

from lorakit import Adapter, AdapterSet, LoraFactors, TiesMerger
from lorakit.merging import _tiles
from lorakit.merging._tiles import Products
from lorakit.testing import make_adapters

pytestmark = pytest.mark.usefixtures("one_blas_thread")


def with_cancelling(X):
    """One update is there with both signs, so that votes of exactly zero occur, and minus is the majority."""
    negative = LoraFactors(X[0]["layer.0"].A.abs(), -X[0]["layer.0"].B.abs())
    plus = LoraFactors(X[1]["layer.0"].A, X[1]["layer.0"].B)
    both = [negative, plus, LoraFactors(plus.A, -plus.B)]
    return AdapterSet(Adapter({"layer.0": f}, name=str(i)) for i, f in enumerate(both))


@EVERY_RULE
@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_tiles_do_not_show(merger, cancelling, kept, monkeypatch):
    X = adapters()
    if cancelling:
        X = with_cancelling(X)
        # only the last rows have votes other than zero; the rest take their sign from them
        first = X[0]["layer.0"]
        first = LoraFactors(first.A, torch.cat([0 * first.B[:12], first.B[12:]]))
        X = AdapterSet([Adapter({"layer.0": first}, name="0"), X[1], X[2]])
    whole = dense(merger, X)
    assert len(Products(X.factors("layer.0")).tiles) == 1
    if not kept:
        monkeypatch.setattr(_tiles, "_KEPT", 0)
    for tile in (1, 3 * 21 * 5):  # rows of one adapter at a time: one, five
        monkeypatch.setattr(_tiles, "TILE", tile)
        assert len(Products(X.factors("layer.0")).tiles) == {1: 17, 315: 4}[tile]
        tiled = dense(merger, X)
        torch.testing.assert_close(tiled["layer.0"], whole["layer.0"], rtol=0, atol=1e-10)
        for a, b in zip(tiled.values(), dense(merger, X, n_jobs=2).values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
def test_the_majority_is_that_of_the_whole_module():
    """What the test above would not see if cancelling votes were rare: here they decide."""
    X = with_cancelling(adapters())
    official, exact = (dense(TiesMerger(density=1.0, convention=c), X)["layer.0"] for c in ("official", "exact"))
    factors = X.factors("layer.0")
    for mine, is_official in ((official, True), (exact, False)):
        options = {"density": 1.0, "official": is_official}
        expected = merged_in("delta", entrywise.ties, factors, np.ones(3), **options)
        torch.testing.assert_close(mine, torch.from_numpy(expected), rtol=0, atol=1e-10)
    cancelled = AdapterSet([Adapter({"layer.0": X[0]["layer.0"].scaled(0)}, name="0"), X[1], X[2]])
    assert dense(TiesMerger(density=1.0), cancelled)["layer.0"].norm() > 1  # a zero vote elects plus
    assert dense(TiesMerger(density=1.0, convention="official"), cancelled)["layer.0"].norm() < 1e-12  # no majority


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convention", ["exact", "official"])
@pytest.mark.parametrize("space", SPACES)
def test_trimming_over_the_whole_model(space, convention, dtype, monkeypatch):
    """Against a dense concatenation of all that each adapter has; a module that it lacks takes no share."""
    monkeypatch.setattr(_tiles, "TILE", 200)
    X = adapters(space, n_modules=3, dtype=dtype)
    size = {"layer.0": 1.0, "layer.1": 3.0, "layer.2": 0.2}  # so that the scope matters
    X = AdapterSet(
        [
            *(
                Adapter({m: f.scaled(size[m] * (i + 1)) for m, f in a.items() if (i, m) != (1, "layer.1")}, name=a.name)
                for i, a in enumerate(X)
            ),
            make_adapters(1, ranks=4, d_in=21, d_out=17, n_modules=3, dtype=dtype, random_state=9)[0],
        ]
    )
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    official = convention == "official"
    density = 0.23
    options = {"space": space, "convention": convention, "density": density, "weights": weights}
    result = dense(TiesMerger(trim_scope="model", **options), X)
    expected = expected_model(X, space, density, official)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    assert distance(result, expected) < tolerance
    by_module = dense(TiesMerger(**options), X)
    assert distance(by_module, expected) > 0.05


def expected_model(X, space, density, official):
    weights = np.array([1.0, 2.0, 3.0]) / 6
    parts = {}  # by module and half: a tensor of each adapter
    back = {}
    for module in X.module_names:
        pairs = as_pairs(X[:3].factors(module))
        if space == "factors":
            width = max(len(a) for a, _ in pairs)
            full = [(a, b) if len(a) else (np.zeros((width, 21)), np.zeros((17, width))) for a, b in pairs]
            parts[module, "A"], parts[module, "B"] = ([pair[i] for pair in full] for i in (0, 1))
        else:
            parts[module, "W"], back[module] = space_of(space, pairs, weights)
    for i, adapter in enumerate(X[:3]):
        own = [key for key in parts if key[0] in adapter]
        flat = entrywise.trimmed(np.concatenate([parts[key][i].ravel() for key in own]), density, int(official))
        for key, piece in zip(own, np.split(flat, np.cumsum([parts[key][i].size for key in own])[:-1]), strict=True):
            parts[key][i] = piece.reshape(parts[key][i].shape)
    undecided = 1
    if official:  # the majority is that of all entries of the model
        undecided = np.sign(sum(entrywise.votes_of(stack, weights).sum() for stack in parts.values()))
    merged = {key: entrywise.elected(stack, weights, undecided=undecided) for key, stack in parts.items()}
    if space == "factors":
        out = {m: merged[m, "B"] @ merged[m, "A"] for m in X.module_names}
    else:
        out = {m: back[m](merged[m, "W"]) for m in X.module_names}
    return {m: torch.from_numpy(w) for m, w in out.items()}


def test_the_threshold_of_a_model_is_exact_beyond_all_bits(monkeypatch):
    """Magnitudes that share their leading bits, ties, zeros and subnormal numbers."""
    from lorakit.merging._global_trim import model_thresholds

    for dtype, near in ((torch.float32, 1e-7), (torch.float64, 1e-16)):
        rng = np.random.RandomState(0)
        close = 1 + near * rng.randint(0, 400, 300)
        values = np.concatenate([close, [0.0] * 50, [1e-40] * 50, rng.standard_normal(100)])
        rng.shuffle(values)
        row = torch.from_numpy(values).to(dtype)[None]
        adapter = Adapter({"m": LoraFactors(row, torch.ones(1, 1, dtype=dtype))})
        falling = row.abs().flatten().sort(descending=True).values
        for density in (0.001, 0.3, 0.5, 0.77, 0.95, 1.0):
            for extra in (0, 1):
                X = AdapterSet([adapter])
                blocks = partial(TiesMerger()._entries, weights=np.ones(1))
                (found,) = model_thresholds(X, blocks, density, extra=extra, n_jobs=None, device=None)
                keep = min(int(density * 500) + extra, 500)
                assert found == falling[max(keep, 1) - 1].item()


PEAK = """
import ctypes
import re
from pathlib import Path
import torch
torch.set_num_threads(1)
from lorakit import DareMerger, TiesMerger
from lorakit.testing import make_adapters

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

mergers = [
    TiesMerger(k=8),
    TiesMerger(k=8, trim_scope="model", convention="official"),
    DareMerger(k=8, random_state=0),
]
options = dict(ranks=8, n_modules=1, random_state=0)
small, large = (make_adapters(12, d_in=d, d_out=d, **options) for d in (256, 2048))
for merger in mergers:
    merger.fit(small)  # libraries load, buffers are made
libc = ctypes.CDLL(None)
if hasattr(libc, "malloc_trim"):
    libc.malloc_trim(0)  # what the small ones freed would serve the large ones, and not be counted
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
before = peak()
for merger in mergers:
    merger.fit(large)
    print((peak() - before) / (4 * 2048**2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of a process's memory from Linux")
def test_memory_is_that_of_two_updates_whatever_their_number():
    """The peak of merging 12 updates of 16 MiB, in updates: at most two, and tiles of 4 MiB and their like."""
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    peaks = [float(line) for line in out.stdout.split()]
    assert len(peaks) == 3
    assert all(0.5 < peak < 4.5 for peak in peaks)
