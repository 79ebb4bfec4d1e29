"""The notebook of the documentation shows what running it shows."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[1] / "docs" / "user_guide"


@pytest.fixture(scope="module")
def script():
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    return runpy.run_path(str(FOLDER / "notebook_run.py")), nbformat.read(FOLDER / "notebook.ipynb", as_version=4)


def outlines(notebook):
    """Of every output its kind, and its text without digits, which a processor or a version may make otherwise."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            table = re.findall(r"<(?:caption|th|iframe|progress)\b[^>]*?>([^<]*)", data.get("text/html", ""))
            found.append((output.output_type, sorted(data), [re.sub(r"[\d.,−-]+", "0", text) for text in table]))
    return found


def test_running_it_again_shows_the_same(script):
    functions, kept = script
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own parts
        again = functions["run"]()
    assert [cell.source for cell in again.cells] == [cell.source for cell in kept.cells]
    assert len(outlines(kept)) == 6  # a set, an adapter, a bar, an estimator, a comparison, a report
    assert outlines(again) == outlines(kept)


def test_the_page_has_the_cells_of_the_notebook(script):
    functions, kept = script
    assert functions["page_of"](kept) == (FOLDER / "notebook_cells.inc").read_text(encoding="utf-8")
