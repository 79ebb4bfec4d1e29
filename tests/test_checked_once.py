"""Values are looked at once at each border: when a file is read, adapters in memory are used, a result is there."""

import pytest
import torch

from lorakit import Adapter, LoraFactors, SVDMerger, load_adapters, results_on_disk, save_adapter
from lorakit.io.formats import _modules
from lorakit.linalg import rounding
from lorakit.testing import make_adapters


@pytest.fixture
def looks(monkeypatch):
    """Count the tensors that are looked at, by the part of the package that looks."""
    from lorakit import _execution, factors

    counts = dict.fromkeys(("reading", "computing"), 0)

    def counted(part):
        def look(x):
            counts[part] += 1
            return factors.all_finite(x)

        return look

    def both(update, stored):
        counts["reading"] += 2
        return rounding.surely_sound(update, stored)

    monkeypatch.setattr(_modules, "surely_sound", both)
    monkeypatch.setattr(_modules, "all_finite", counted("reading"))
    monkeypatch.setattr(_execution, "all_finite", counted("computing"))
    return counts


RESULT = 2 * 2  # A and B of two modules


def test_adapters_in_memory(looks):
    SVDMerger(k=4).fit(make_adapters(3, random_state=0))
    assert looks == {"reading": 0, "computing": 3 * 4 + RESULT}


def test_adapters_in_files(looks, tmp_path):
    paths = [save_adapter(adapter, tmp_path / adapter.name) for adapter in make_adapters(3, random_state=0)]
    X = load_adapters(paths)
    for given in (X, [adapter.astype(torch.float64) for adapter in X]):
        looks.update(reading=0, computing=0)
        SVDMerger(k=4).fit(given)
        assert looks == {"reading": 3 * 4, "computing": RESULT}


def test_results_on_disk(looks):
    with results_on_disk():
        first = SVDMerger(k=4).fit(make_adapters(3, random_state=0)).merged_
        looks.update(reading=0, computing=0)
        SVDMerger(k=2).fit([first])
    assert looks == {"reading": 0, "computing": RESULT}


def test_a_cast_to_fewer_bits_is_looked_at_again(tmp_path):
    a = torch.full((1, 3), 1e200, dtype=torch.float64)
    (wide,) = load_adapters([save_adapter(Adapter({"m": LoraFactors(a, a.T)}, name="wide"), tmp_path / "wide")])
    assert (wide.checked, wide.astype(torch.float64).checked, wide.astype(torch.float32).checked) == (True, True, False)
    with pytest.raises(ValueError, match="wide: module 'm' has NaN or infinite values"):
        SVDMerger().fit([wide.astype(torch.float32)])
