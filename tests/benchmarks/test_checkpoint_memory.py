"""Memory of baking and extracting: that of a tensor, however large the model is."""

import sys

import pytest
from checkpoints import bake_command, extract_command, largest, make_base, own_peaks
from memory import peak_of
from model_scale import make

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(
    "layers",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=[pytest.mark.slow, pytest.mark.benchmark])],
)
def test_peaks_stay_below_four_times_the_largest_tensor(layers, tmp_path):
    base = make_base(tmp_path, layers, vocabulary=16_000 if layers == 1 else 32_000, shard=300_000_000)
    adapters = make(tmp_path, adapters=2, layers=layers)
    own_bake, own_extract = own_peaks(tmp_path)
    baked = peak_of(bake_command(base, adapters, tmp_path / "out")).anonymous - own_bake.anonymous
    assert baked < largest(base)  # a few rows at a time, and the factors
    extracted = peak_of(extract_command(tmp_path / "out", base, tmp_path / "extracted", k=4)).anonymous
    assert extracted - own_extract.anonymous < min(600, 4 * largest(base))
