"""One limit of k for both pruners, the largest rank, also where a module is narrower than its update's rank."""

import pytest
import torch

from lorakit import LegoPruner, SVDPruner
from lorakit.testing import make_adapters

WIDE = {"ranks": 30, "d_in": 12, "d_out": 10, "n_modules": 1, "dtype": torch.float64, "random_state": 0}


@pytest.mark.parametrize("pruner", [SVDPruner, LegoPruner])
def test_k_goes_up_to_the_rank_and_not_to_the_width(pruner):
    (adapter,) = make_adapters(1, **WIDE)
    for k in (None, 5, 15, 29, 30):
        (pruned,) = pruner(k).fit_transform([adapter])
        assert pruned["layer.0"].rank <= (k or 15)
    with pytest.raises(ValueError, match="k=31 is above 30"):
        pruner(k=31).fit([adapter])


@pytest.mark.parametrize("k", [10, 15])
def test_an_update_has_no_more_singular_values_than_its_width(k):
    (adapter,) = make_adapters(1, **WIDE)
    (pruned,) = SVDPruner(k).fit_transform([adapter])
    assert pruned["layer.0"].rank == 10
    torch.testing.assert_close(pruned["layer.0"].delta(), adapter["layer.0"].delta(), rtol=1e-12, atol=1e-12)


def test_lego_leaves_as_many_units_as_asked():
    (adapter,) = make_adapters(1, **WIDE)
    assert [LegoPruner(k).fit_transform([adapter])[0].ranks for k in (None, 15, 29)] == [(15,), (15,), (29,)]
