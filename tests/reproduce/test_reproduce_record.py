"""What trained merges get right, kept in the repository: what is read is what was written, and nothing is computed."""

import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import bench
import distill
import numpy as np
import pytest
from bench import Bench, Judged, averaged, mean_and_error
from multi_head import Merge

from lorakit.testing import make_adapters

TASKS = ["a", "b"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "distill.rst"


def options(**changed):
    usual = {"tasks": TASKS, "n_test": 37, "n_validation": 11, "keep": False, "measured": False}
    return Namespace(**usual | changed)


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """Answers drawn at random take the place of a model's; they depend on the merge and the split."""
    made = make_adapters(2, ranks=2, n_modules=1, random_state=0)
    monkeypatch.setattr(bench, "RECORD", tmp_path / "measured" / "distill.json")

    def right_of(adapter, tasks, evaluator, first=0):
        rng = np.random.RandomState(adapter + len(evaluator.split))
        return {task: rng.rand(evaluator.n - first) < 0.7 for task in tasks}

    monkeypatch.setattr(bench, "right_of", right_of)
    monkeypatch.setattr(
        bench, "right_of_own", lambda adapters, evaluator, first=0: right_of(9, TASKS, evaluator, first)
    )
    monkeypatch.setattr(bench, "adapters_of", lambda tasks, ranks, *, alike: made)
    return lambda number: lambda: Merge(number, {"seconds": 12.34})


def test_the_record_gives_the_same_answers(judged):
    measured = Bench(options(keep=True))
    first, second = (measured.judged({"k": i}, judged(i)) for i in range(2))
    read = Bench(options(measured=True))
    again = [read.judged({"k": i}, None) for i in range(2)]
    for one, other in zip((first, second, measured.own), (*again, read.own), strict=True):
        for split, n in (("test", 37), ("validation", 11)):
            assert {task: len(found) for task, found in getattr(other, split).items()} == dict.fromkeys(TASKS, n)
            assert all(np.array_equal(getattr(one, split)[task], getattr(other, split)[task]) for task in TASKS)
    assert again[0].seconds == 12.3
    assert again[0].machine == first.machine != ""
    assert read.machine == measured.machine
    assert read.kept(again[0]) == measured.kept(first)
    assert read.difference(*again, "validation") == measured.difference(first, second, "validation")
    assert not np.array_equal(again[0].test["a"], again[1].test["a"])


def test_fewer_texts_are_the_first_and_more_are_refused(judged):
    found = Bench(options(keep=True)).judged("x", judged(3))
    fewer = Bench(options(measured=True, n_test=20)).judged("x", None)
    assert np.array_equal(fewer.test["b"], found.test["b"][:20])
    with pytest.raises(SystemExit, match="has 37 texts a task, and 38 are asked for"):
        Bench(options(measured=True, n_test=38)).judged("x", None)


@pytest.mark.parametrize("changed", [{"tasks": ["a"]}, {"ranks": {"a": 4}}, {"first": 0}, {"alike": True}])
def test_what_was_not_measured_is_refused(judged, changed):
    Bench(options(keep=True)).judged("x", judged(3))
    with pytest.raises(SystemExit, match="run without --measured, with --keep to add it"):
        Bench(options(measured=True), **changed).judged("x", None)
    with pytest.raises(SystemExit, match="'what': 'y'"):
        Bench(options(measured=True)).judged("y", None)


def test_fewer_texts_do_not_replace_more(judged):
    Bench(options(keep=True)).judged("x", judged(3))
    before = bench.RECORD.read_bytes()
    Bench(options(keep=True, n_validation=5)).judged("x", judged(3))
    assert bench.RECORD.read_bytes() == before
    Bench(options(keep=True, n_validation=50)).judged("x", judged(3))
    assert len(Bench(options(measured=True, n_validation=50)).judged("x", None).validation["a"]) == 50


def test_what_is_kept_is_not_made_again(judged):
    first = Bench(options(keep=True)).judged("x", judged(3))
    again = Bench(options(n_test=30)).judged("x", None)
    assert all(np.array_equal(again.test[task], first.test[task][:30]) for task in TASKS)
    with pytest.raises(TypeError):  # more texts are judged anew
        Bench(options(n_test=50)).judged("x", None)


def test_adapters_that_were_trained_elsewhere_are_not_mixed(judged, monkeypatch):
    Bench(options(keep=True)).judged("x", judged(3))
    others = make_adapters(2, ranks=2, n_modules=1, random_state=1)
    monkeypatch.setattr(bench, "adapters_of", lambda tasks, ranks, *, alike: others)
    assert not np.array_equal(
        Bench(options()).judged("x", judged(5)).test["a"], Bench(options(measured=True)).judged("x", None).test["a"]
    )
    with pytest.raises(SystemExit, match=r"of adapters that were trained elsewhere.*remove it"):
        Bench(options(keep=True)).judged("y", judged(4))
    Bench(options(keep=True), tasks=["a"]).judged("y", judged(4))  # of others there is nothing to mix with


def test_nothing_is_recorded_unless_asked_for(judged):
    Bench(options()).judged("x", judged(3))
    assert not bench.RECORD.exists()


def test_seeds_are_averaged_text_by_text():
    rng = np.random.RandomState(0)
    made = [Judged({"a": rng.rand(50) < 0.5}, {"a": rng.rand(9) < 0.5}, seconds, "here") for seconds in (1.0, 2.0)]
    mean = averaged(made)
    assert mean.seconds == 1.5
    assert mean.test["a"].tolist() == [
        (int(one) + int(other)) / 2 for one, other in zip(*(m.test["a"] for m in made), strict=True)
    ]
    assert set(mean.validation["a"]) <= {0, 0.5, 1}
    assert mean_and_error([mean.test["a"]])[0] == pytest.approx(np.mean([m.test["a"].mean() for m in made]))


@pytest.mark.parametrize("table", ["methods", "without", "with", "fresh", "seeds", "limits"])
def test_the_page_has_what_is_recorded(table, monkeypatch, tmp_path):
    """The command below each table, on the record alone, writes the same table."""
    text = PAGE.read_text(encoding="utf-8")
    part = re.search(rf"\.\. begin distill-{table}\n(.*?)\.\. end distill-{table}\n", text, re.S)[1]
    command = re.search(r"    python examples/reproduce/distill\.py (.*)\n", part)[1]
    page = tmp_path / "distill.rst"
    page.write_text(text.replace(part, "\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["distill.py", *shlex.split(command), "--measured", "--page", str(page)])
    distill.main()
    assert page.read_text(encoding="utf-8") == text
