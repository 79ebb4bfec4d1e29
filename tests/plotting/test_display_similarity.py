"""The heat map shows the numbers of the metrics."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from lorakit.metrics import cosine_matrix, subspace_overlap
from lorakit.plotting import AdapterSimilarityDisplay
from lorakit.testing import make_adapters


def test_it_shows_the_metric(adapters, drawn):
    display = drawn(AdapterSimilarityDisplay.from_adapters(adapters))
    assert np.array_equal(display.matrix, cosine_matrix(adapters))
    shown = display.image_.get_array()
    assert shown.mask.tolist() == np.eye(3, dtype=bool).tolist()  # each adapter is like itself
    assert np.array_equal(shown.data[~shown.mask], display.matrix[~np.eye(3, dtype=bool)])
    assert display.image_.get_clim() == (-1, 1)  # a small cosine is pale, whatever else occurs
    assert drawn(AdapterSimilarityDisplay.from_adapters(adapters, vmin=-0.2, vmax=0.2)).image_.get_clim() == (-0.2, 0.2)
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == list(adapters.names)
    written = {tuple(reversed(t.get_position())): float(t.get_text()) for t in display.text_}
    assert written[0, 1] == pytest.approx(display.matrix[0, 1], abs=0.005)
    assert len(written) == 6


def test_overlap(adapters, drawn):
    display = drawn(AdapterSimilarityDisplay.from_adapters(adapters, measure="overlap", side="in", values_format=".1f"))
    assert np.array_equal(display.matrix, subspace_overlap(adapters, side="in"))
    assert display.image_.get_clim() == (0, 1)
    assert "inputs" in display.label
    assert len(display.text_[0].get_text()) == 3


def test_numbers_on_dark_cells_are_white():
    display = AdapterSimilarityDisplay([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], ["a", "b", "c"]).plot()
    colours = {t.get_text(): t.get_color() for t in display.text_}
    assert colours == {"0.90": "white", "0.00": "black"}


def test_no_minus_zero():
    display = AdapterSimilarityDisplay([[1, -1e-9], [-1e-9, 1]], ["a", "b"], signed=True).plot()
    assert {t.get_text() for t in display.text_} == {"0.00"}


def test_many_adapters_get_no_numbers(drawn):
    display = drawn(AdapterSimilarityDisplay.from_adapters(make_adapters(20, ranks=1, random_state=0)))
    assert display.text_ == []


def test_what_is_not_known_is_left_blank(drawn):
    display = drawn(AdapterSimilarityDisplay([[1, np.nan], [np.nan, 1]], ["a", "b"]).plot())
    assert display.text_ == []


def test_axes_of_ones_own_and_options(adapters):
    figure, axes = plt.subplots(1, 2)
    display = AdapterSimilarityDisplay.from_adapters(adapters, ax=axes[1], cmap="Greys", vmax=1)
    assert (display.ax_, display.figure_) == (axes[1], figure)
    assert display.image_.get_cmap().name == "Greys"
    assert display.image_.get_clim()[1] == 1
    assert not axes[0].images


def test_what_is_refused(adapters):
    with pytest.raises(ValueError, match="'angle'"):
        AdapterSimilarityDisplay.from_adapters(adapters, measure="angle")
    with pytest.raises(ValueError, match="'left'"):
        AdapterSimilarityDisplay.from_adapters(adapters, measure="overlap", side="left")
    with pytest.raises(ValueError, match=r"each of 2 names; got \(3, 3\)"):
        AdapterSimilarityDisplay(np.eye(3), ["a", "b"])


def test_one_adapter_says_that_there_is_nothing_to_compare(adapters, drawn):
    display = drawn(AdapterSimilarityDisplay.from_adapters(adapters[:1]))
    assert [text.get_text() for text in display.text_] == ["one adapter:\nnothing to\ncompare it with"]
