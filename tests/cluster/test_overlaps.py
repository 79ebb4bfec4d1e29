"""What the comparison of a LEGO merge takes from its clustering equals what the factors give."""

import pytest
import torch

from lorakit import Adapter, AdapterSet, LegoMerger, LoraFactors
from lorakit.base import _results
from lorakit.metrics import compare_to_each
from lorakit.testing import make_adapters


@pytest.fixture
def adapters():
    """Adapters of different ranks, some of whose units are equal, or each other's negatives."""
    made = list(make_adapters(3, ranks=(4, 8, 6), d_in=60, d_out=50, random_state=1))
    first = {}
    for module, factors in made[0].items():
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
        first[module] = LoraFactors(factors.A * signs[:, None], factors.B * signs)
    return AdapterSet([*made, Adapter(first, name="twin")])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": None},
        {"norm": "l2", "output_scale": None},
        {"output_scale": 2.0},
        {"align": "svd"},
        {"align": "balance"},
        {"metric": "sign_invariant"},
        {"metric": "cosine"},
        {"init": "ward"},
        {"scale": "match"},
        {"k": 20},
    ],
    ids=str,
)
def test_products_are_those_of_the_factors(adapters, options, monkeypatch):
    def made_anew(*_):
        raise AssertionError("the products are made again from the factors")

    monkeypatch.setattr(_results, "overlap_of", made_anew)
    merger = LegoMerger(**{"k": 6, "random_state": 0, **options})
    found = merger.fit_compare(adapters)
    for one, other in zip(found, compare_to_each(merger.merged_, adapters), strict=True):
        size = (other.squared_x * other.squared_y) ** 0.5
        assert one.inner == pytest.approx(other.inner, abs=1e-6 * size)
        assert one.squared_x == pytest.approx(other.squared_x, rel=1e-6)
        assert one.squared_y == pytest.approx(other.squared_y, rel=1e-6)


@pytest.mark.parametrize("options", [{"output_scale": -2.0}, {"weights": [1, 0, 2, 1]}], ids=str)
def test_where_the_units_do_not_say_it_the_factors_do(adapters, options):
    merger = LegoMerger(k=6, random_state=0, **options)
    found = merger.fit_compare(adapters)
    for one, other in zip(found, compare_to_each(merger.merged_, adapters), strict=True):
        assert one.inner == pytest.approx(other.inner, rel=1e-9)


def test_equal_adapters_have_no_error():
    (one,) = make_adapters(1, ranks=(4,), d_in=60, d_out=50, random_state=1)
    twins = AdapterSet([one, one.renamed("twin")])
    for comparison in LegoMerger(k=4, random_state=0, output_scale=None).fit_compare(twins):
        assert comparison.relative_error < 1e-6
