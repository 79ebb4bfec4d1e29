"""The sentences under both papers' first tables."""

import sys

import lego_table1
import pytest
import svd_table1

from lorakit import AdapterSet
from lorakit.testing import make_adapters


def test_multiplied_against_direct():
    def scores(mm, dm, own, noise, m):
        return {"MM": mm, "DM": dm, "DM, own scale": own, "MM + noise": noise, "MM + thin noise": m, "MM + M": m}

    pair = dict.fromkeys(svd_table1.METHODS, scores(0.8, 0.7, 0.81, 0.79, 0.75))
    everything = dict.fromkeys(svd_table1.METHODS, scores(0.6, 0.3, 0.5, 0.61, 0.65))
    found = [{"a, b": pair, "c, d": pair, "all 4": everything}] * 3
    text = svd_table1.verdict(found)
    assert "MM against DM, pairs: +10.0 points, ahead in 24 of 24 merges. " in text
    assert "MM against DM, own scale, pairs: -1.0 points, ahead in 0 of 24 merges. " in text
    assert "MM against DM, all 4: +30.0 points, ahead in 12 of 12 merges. " in text
    text = svd_table1.noise_verdict(found)
    assert "M on top of MM, pairs: -5.0 points. Noise in the place of M: -1.0 points, and M hurts at least as" in text
    assert "M on top of MM, all 4: +5.0 points. Noise in the place of M: +1.0 points, and M hurts at least as" in text
    assert "at least as much in 24 of 24 merges. Thin noise in the place of M: -5.0 points" in text
    assert "at least as much in 0 of 12 merges. Thin noise in the place of M: +5.0 points" in text
    for say in (svd_table1.verdict, svd_table1.noise_verdict):
        assert "pairs" not in say([{"all 2": everything}]).split("(The paper")[0]


def test_permuted_copies():
    original = {"a": 0.8, "b": 0.6}
    one = {"original": original} | dict.fromkeys(lego_table1.METHODS, original)
    other = one | {"weight average": {"a": 0.6, "b": 0.59}, "LEGO": {"a": 0.795, "b": 0.6}}
    text = lego_table1.verdict([one, other], ["a", "b"])
    assert "weight average loses on 1 of 2 tasks, at most 10.0 points (a)." in text
    assert "LEGO loses on 0 of 2 tasks." in text


@pytest.mark.parametrize("options", [[], ["--all-only", "--noise-only", "--draws", "2"]])
def test_the_script_runs_from_its_command_line(options, monkeypatch, capsys):
    """With small adapters, and accuracies that are made up: groups, draws and tables are the script's own."""
    tasks = ["a", "b", "c", "d"]
    made = {task: adapter.renamed(task) for task, adapter in zip(tasks, make_adapters(4, ranks=2), strict=True)}
    monkeypatch.setattr(svd_table1, "load_tasks", lambda names, seed: AdapterSet(made[name] for name in names))
    monkeypatch.setattr(svd_table1, "parse", lambda command: _parsed(command, tasks))
    monkeypatch.setattr(svd_table1, "Evaluator", _MadeUp)
    monkeypatch.setattr(svd_table1, "best_scale", lambda *args: 1.0)
    monkeypatch.setattr(svd_table1, "MULTIPLIED", dict.fromkeys(svd_table1.METHODS, svd_table1.ConcatMerger()))
    monkeypatch.setattr(sys, "argv", ["svd_table1.py", "--seeds", "0", *options])
    svd_table1.main()
    shown = capsys.readouterr().out
    assert ("a, b" in shown) == (not options)
    assert "all 4" in shown
    assert ("svd-table-1-scales" in shown) == (not options)
    assert ("over 2 draws of the noise" in shown) == bool(options)
    assert "M on top of MM, all 4" in shown


class _MadeUp:
    def __init__(self, split, n):
        pass

    def mean(self, adapter, names):
        return svd_table1.norm(adapter) % 1


def _parsed(command, tasks):
    options = command.parse_args()
    options.tasks = tasks
    return options
