"""WUDI against its formula, written with dense matrices, and what its ridge is measured by."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit import AdapterSet, WUDIMerger, load_adapters
from lorakit.testing import adapter_sets, make_adapters

SHIPPED = Path(__file__).parents[2] / "examples" / "adapters"


def dense_wudi(updates, weights, ridge):
    """(sum_i c_i W_i W_i^T W_i) (H + rho I)^-1 with H = sum_i c_i W_i^T W_i, c_i = w_i / |W_i|^2.

    rho is ridge times the mean of the eigenvalues of H that are not zero.
    """
    shares = [w / np.linalg.norm(update) ** 2 for w, update in zip(weights, updates, strict=True)]
    h = sum(c * update.T @ update for c, update in zip(shares, updates, strict=True))
    right = sum(c * update @ update.T @ update for c, update in zip(shares, updates, strict=True))
    values = np.linalg.eigvalsh(h)
    rho = ridge * values[values > 1e-12 * values.max()].mean()
    return right @ np.linalg.inv(h + rho * np.eye(len(h)))


def agree(X, weights, ridge, tolerance):
    merged = WUDIMerger(ridge=ridge, weights=weights).fit(X).merged_
    for module, factors in merged.items():
        updates = [(f.B.double() @ f.A.double()).numpy() for f in X.factors(module)]
        expected = dense_wudi(updates, weights, ridge)
        error = np.linalg.norm(factors.delta().double().numpy() - expected) / np.linalg.norm(expected)
        assert error < tolerance, (module, error)


@given(
    X=adapter_sets(min_adapters=1, missing_modules=False, content=("random", "identical_adapters")),
    ridge=st.sampled_from([0.01, 0.1, 1.0]),
    data=st.data(),
)
def test_formula(X, ridge, data):
    weights = [data.draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in X]
    agree(X, weights, ridge, 1e-6)


def test_formula_on_real_adapters():
    X = load_adapters([SHIPPED / name for name in ("wn_noun", "langid", "wn_noun_r4")])
    agree(AdapterSet(a.select(X.module_names[:3]).astype(torch.float64) for a in X), [1, 2, 1], 0.01, 1e-8)


@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_redundant_directions_do_not_move_the_ridge(ridge):
    """Listing an adapter again adds ranks that depend on the others; it is a weight of two, at every rank and ridge."""
    X = AdapterSet(make_adapters(ranks=(3, 5), d_in=9, dtype=torch.float64, random_state=0))
    listed = WUDIMerger(ridge=ridge).fit(X[[0, 0, 1]]).merged_
    weighted = WUDIMerger(ridge=ridge, weights=[2, 1]).fit(X).merged_
    for module, factors in listed.items():
        torch.testing.assert_close(factors.delta(), weighted[module].delta(), rtol=1e-9, atol=1e-9)
