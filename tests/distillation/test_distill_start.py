"""The start of a distilled merge where none is given: TSV, as long as it comes, up to 1.4 times the adapters' norm."""

import numpy as np
import pytest
import torch

from lorakit import Adapter, AdapterSet, TSVMerger
from lorakit.merging._start import LONGEST, usual_start
from lorakit.testing import make_adapters


def norms(adapter):
    return np.array([float(torch.linalg.norm(adapter[module].delta())) for module in sorted(adapter)])


def error(adapter, expected):
    """The relative error of a module, the largest, computed densely: thin factors see half of the digits."""
    deltas = {module: factors.delta() for module, factors in expected.items()}
    off = [torch.linalg.norm(adapter[m].delta() - delta) / torch.linalg.norm(delta) for m, delta in deltas.items()]
    return float(max(off))


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(3, 5, 4, 4), n_modules=2, dtype=torch.float64, random_state=0))


def test_several_adapters_that_differ_start_at_the_longest(X):
    start = usual_start().fit(X).merged_
    np.testing.assert_allclose(norms(start), LONGEST * np.mean([norms(adapter) for adapter in X], axis=0))
    direction = TSVMerger(scale="match", scale_target=LONGEST).fit(X).merged_
    assert error(start, direction) < 1e-12


def test_one_adapter_starts_as_it_is(X):
    assert error(usual_start().fit(X[:1]).merged_, X[0]) < 1e-12


def test_copies_start_as_long_as_each(X):
    copies = AdapterSet(Adapter(dict(X[0].items()), name=name) for name in "abc")
    start = usual_start().fit(copies).merged_
    np.testing.assert_allclose(norms(start), norms(X[0]))
    assert error(start, X[0]) < 1e-9


def test_a_merge_that_comes_out_shorter_is_not_made_longer():
    """Two adapters of which one is nearly the other's copy: their merge is longer than each, by less than 1.4."""
    first, other = make_adapters(2, ranks=4, n_modules=1, dtype=torch.float64, random_state=1)
    (module,) = first
    near = first[module].delta() + 0.3 * other[module].delta()
    left, values, right = torch.linalg.svd(near, full_matrices=False)
    second = Adapter({module: type(first[module])(right[:8], left[:, :8] * values[:8])}, name="near")
    X = AdapterSet([first, second])
    own = TSVMerger().fit(X).merged_
    assert norms(own)[0] < LONGEST * np.mean([norms(adapter)[0] for adapter in X])
    assert error(usual_start().fit(X).merged_, own) < 1e-12
