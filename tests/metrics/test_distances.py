"""Distances of units against SciPy's on the raw units."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from lorakit import Adapter, AdapterSet, LoraFactors
from lorakit.metrics import msu_distances
from lorakit.testing import adapter_sets, make_adapters


def raw_units(adapter, module):
    a, b = adapter[module].to(torch.float64)
    return torch.cat([a, b.T], dim=1).numpy()


@given(
    adapter_sets(content=("random", "duplicate_msus", "identical_adapters", "huge", "tiny")),
    st.sampled_from(["euclidean", "cosine"]),
)
def test_against_scipy(X, metric):
    found = msu_distances(X, metric=metric)
    assert found.between.shape == (len(X.module_names), len(X), len(X))
    for m, module in enumerate(X.module_names):
        for i, x in enumerate(X):
            for j, y in enumerate(X):
                value = found.between[m, i, j]
                if module not in x or module not in y or (i == j and x[module].rank < 2):
                    assert np.isnan(value)
                    continue
                pairs = cdist(raw_units(x, module), raw_units(y, module), metric)
                if i == j:
                    pairs = pairs[~np.eye(len(pairs), dtype=bool)]
                size = np.abs(raw_units(x, module)).max() if metric == "euclidean" else 1
                assert value == pytest.approx(pairs.mean(), rel=1e-9, abs=1e-12 * size)
    assert np.array_equal(found.within, np.array([np.diag(d) for d in found.between]), equal_nan=True)


def test_small_distances_keep_their_digits():
    rng = np.random.RandomState(0)
    unit, step = rng.standard_normal(40), rng.standard_normal(40)
    units = torch.from_numpy(np.stack([unit, unit + 1e-6 * step])).float()
    adapter = Adapter({"m": LoraFactors(units[:, :24], units[:, 24:].T)})
    exact = (units[0].double() - units[1].double()).norm().item()  # of the float32 numbers
    assert msu_distances([adapter]).within[0, 0] == pytest.approx(exact, rel=1e-6)


def test_zero_units_have_no_direction():
    adapter = Adapter({"m": LoraFactors(torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[1.0, 0], [0, 0]]))})
    assert msu_distances([adapter], metric="cosine").within.tolist() == [[1.0]]


def test_real_adapters_of_one_task_are_no_nearer_than_others(real_adapter_paths):
    """Two runs on one task share no units: nothing aligns them."""
    from lorakit import load_adapters

    X = load_adapters([real_adapter_paths[name] for name in ("langid", "langid_r16", "icd10")])
    between = np.nanmean(msu_distances(X, metric="cosine").between, axis=0)
    assert between[0, 1] == pytest.approx(1, abs=0.1)
    assert between[0, 2] == pytest.approx(1, abs=0.1)


def test_unknown_metric():
    with pytest.raises(ValueError, match="'manhattan'"):
        msu_distances(AdapterSet(make_adapters(2)), metric="manhattan")
