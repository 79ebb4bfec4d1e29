"""Figures without a screen, closed after each test."""

import matplotlib as mpl
import pytest

mpl.use("Agg")

from matplotlib import pyplot as plt

from lorakit import AdapterSet, LegoMerger
from lorakit.testing import make_adapters


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def adapters():
    return AdapterSet(make_adapters(ranks=(4, 8, 6), random_state=0))


@pytest.fixture
def merger(adapters):
    return LegoMerger(k=6, random_state=0).fit(adapters)


@pytest.fixture
def drawn():
    """Draw a display's figure for good, so that what is wrong with its text or layout raises."""

    def draw(display):
        assert display.figure_ is display.ax_.figure
        display.figure_.canvas.draw()
        assert display.ax_.get_xlabel() or not display.ax_.axison or display.ax_.images
        return display

    return draw
