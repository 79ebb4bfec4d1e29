"""Spectra against dense SVDs."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from lorakit import Adapter, AdapterSet, LegoMerger, LoraFactors, SVDMerger, SVDPruner
from lorakit.metrics import compare_adapters
from lorakit.plotting import SingularValuesDisplay
from lorakit.testing import make_adapters


def test_against_dense(adapters, drawn):
    display = drawn(SingularValuesDisplay.from_adapters(adapters, mean=True))
    assert list(display.singular_values) == [*adapters.names, "mean of all"]
    for adapter in adapters:
        spectra = [torch.linalg.svdvals(f.delta())[: f.rank].numpy() for f in adapter.values()]
        expected = np.sqrt(np.square(spectra).mean(axis=0))
        assert display.singular_values[adapter.name] == pytest.approx(expected, rel=1e-5)
    means = [sum(a[m].delta() for a in adapters) / 3 for m in adapters.module_names]
    spectra = [torch.linalg.svdvals(mean).numpy() for mean in means]
    expected = np.sqrt(np.square(spectra).mean(axis=0))
    assert display.singular_values["mean of all"] == pytest.approx(expected, rel=1e-4)
    line = display.lines_[1]
    assert line.get_xdata().tolist() == list(range(1, 9))
    assert np.array_equal(line.get_ydata(), display.singular_values["task1"])


def test_energy_is_what_pruning_keeps(adapters, drawn):
    display = drawn(SingularValuesDisplay.from_adapters(adapters, kind="energy"))
    for k in (1, 3):
        pruned = SVDPruner(k=k).fit_transform(adapters)["task0"]
        left = compare_adapters(pruned, adapters["task0"]).norm_ratio ** 2
        assert display.energy["task0"][k] == pytest.approx(left, rel=1e-5)
    assert display.energy["task0"][0] == 0
    assert display.energy["task0"][-1] == pytest.approx(1)


def test_one_module_and_missing_ones(adapters, drawn):
    lacking = AdapterSet([adapters[0].select(["layer.0"]), adapters[1]])
    one = drawn(SingularValuesDisplay.from_adapters(adapters, modules=["layer.1"]))
    expected = torch.linalg.svdvals(adapters[0]["layer.1"].delta())[:4].numpy()
    assert one.singular_values["task0"] == pytest.approx(expected, rel=1e-5)
    both = drawn(SingularValuesDisplay.from_adapters(lacking))
    only = torch.linalg.svdvals(adapters[0]["layer.0"].delta())[:4].numpy()
    assert both.singular_values["task0"] == pytest.approx(only / 2**0.5, rel=1e-5)  # the other has zeros


def test_from_estimator(adapters, drawn):
    merger = SVDMerger(k=2).fit(adapters)
    display = drawn(SingularValuesDisplay.from_estimator(merger))
    whole = SingularValuesDisplay.from_adapters(adapters, mean=True).singular_values["mean of all"]
    assert display.singular_values["svd"] == pytest.approx(whole, rel=1e-5)


def test_many_values_are_drawn_on_a_logarithmic_axis(drawn):
    (wide,) = make_adapters(1, ranks=40, d_in=64, d_out=64, random_state=0)
    display = drawn(SingularValuesDisplay.from_adapters([wide], kind="energy"))
    assert display.ax_.get_xscale() == "log"
    assert display.lines_[0].get_xdata()[0] == 1


def test_a_zero_update(drawn):
    zero = Adapter({"m": LoraFactors(torch.zeros(2, 3), torch.zeros(4, 2))})
    for kind in ("values", "energy"):
        display = drawn(SingularValuesDisplay({"zero": [0.0, 0.0], "other": [1.0, 0.5]}).plot(kind=kind))
    assert SingularValuesDisplay.from_adapters([zero], kind="energy").energy["adapter"].tolist() == [1, 1, 1]
    assert display.energy["zero"].tolist() == [1, 1, 1]


def test_what_is_refused(adapters):
    with pytest.raises(ValueError, match="'power'"):
        SingularValuesDisplay({"a": [1]}).plot(kind="power")
    with pytest.raises(ValueError, match=r"no adapter has the module 'layer\.7'"):
        SingularValuesDisplay.from_adapters(adapters, modules=["layer.7"])
    with pytest.raises(TypeError, match="LegoMerger learned no singular values"):
        SingularValuesDisplay.from_estimator(LegoMerger(k=2).fit(adapters))
    with pytest.raises(NotFittedError):
        SingularValuesDisplay.from_estimator(SVDMerger())
