"""Files of pictures, the look they share, and matplotlib's absence."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lorakit.exceptions import OutputError
from lorakit.metrics import mode_connectivity
from lorakit.plotting import AdapterSimilarityDisplay, ModeConnectivityDisplay, SingularValuesDisplay
from lorakit.plotting._saving import save_picture
from lorakit.plotting._style import look
from lorakit.testing import make_adapters

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def figure_of(adapters):
    figure = Figure(layout="constrained")
    AdapterSimilarityDisplay.from_adapters(adapters, ax=figure.subplots())
    return figure


@pytest.mark.parametrize("kind", STARTS)
def test_the_same_picture_the_same_bytes(adapters, tmp_path, kind):
    files = [tmp_path / f"{i}.{kind}" for i in range(2)]
    for file in files:
        save_picture(figure_of(adapters), file, overwrite=False)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(STARTS[kind])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0.{kind}", f"1.{kind}"]


def test_what_is_there_stays(tmp_path):
    file = tmp_path / "a.png"
    file.write_text("mine")
    with pytest.raises(OutputError, match=r"a\.png: exists; pass overwrite=True"):
        save_picture(Figure(), file, overwrite=False)
    assert file.read_text() == "mine"
    save_picture(Figure(), file, overwrite=True)
    assert file.read_bytes().startswith(STARTS["png"])


@pytest.mark.parametrize(
    ("name", "why"),
    [("a.jpg", "ends in '.jpg'"), ("a", "ends in 'nothing'"), ("no/a.png", "no folder"), ("d.png", "is a directory")],
)
def test_what_is_refused(tmp_path, name, why):
    (tmp_path / "d.png").mkdir()
    with pytest.raises(OutputError, match=why):
        save_picture(Figure(), tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(figure, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OutputError, match="No space left"):
        save_picture(Figure(), tmp_path / "a.png", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_looks_differ_without_colour():
    looks = [look(i) for i in range(70)]
    assert len({(one.colour, one.marker) for one in looks}) == 70
    for field in ("colour", "marker", "dashes", "hatch"):
        assert all(getattr(a, field) != getattr(b, field) for a, b in pairwise(looks))
    assert all(np.dot(to_rgb(one.colour), (0.299, 0.587, 0.114)) < 0.75 for one in looks)  # seen on white


def test_names_that_matplotlib_would_read(tmp_path):
    names = ["_mine", "$x", "a_b^c$", "long/" * 12]
    adapters = [a.renamed(name) for a, name in zip(make_adapters(4, ranks=2, random_state=0), names, strict=True)]
    spectra = SingularValuesDisplay.from_adapters(adapters)
    shown = [text.get_text().strip().replace("\\", "") for text in spectra.ax_.get_legend().get_texts()]
    assert shown == names
    line = mode_connectivity(adapters[1], adapters[0], lambda adapter: 0.0, alphas=2)
    for display in (
        spectra,
        AdapterSimilarityDisplay.from_adapters(adapters),
        ModeConnectivityDisplay.from_curves(line),
    ):
        save_picture(display.figure_, tmp_path / "a.png", overwrite=True)


def test_importing_does_not_import_matplotlib():
    code = "import lorakit.plotting, sys; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_its_absence_is_told(adapters, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lorakit\[plot\]'"):
        AdapterSimilarityDisplay.from_adapters(adapters)
