"""Measurements kept with the scripts: what is used again, what is not mixed, what is reported without a model."""

import json
import re
import sys
from pathlib import Path

import language_model
import language_papers
import language_runs
import measured
import numpy as np
import pytest
from language_runs import options_of, parsed, run
from measured import Measured, marks, right_in
from report import machine
from tiny_bench import adapter, tiny_bench

from lorakit import AdapterSet

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ABOUT = {"adapters": {"a": {"update": "1"}}, "texts": {"test": 40, "validation": 16}, "machine": "one"}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Benches of the tiny language model by seed, and a folder for what is kept."""
    benches = {seed: tiny_bench(monkeypatch, seed=seed) for seed in (0, 1)}
    monkeypatch.setattr(language_runs, "bench_of", lambda tasks, seed, *sizes: benches[seed])
    monkeypatch.setattr(language_runs, "load_task", lambda name: type("Task", (), {"key": name}))
    monkeypatch.setattr(language_runs, "metrics_of", lambda *given: {"labels": 3, "seconds": 1.0})
    monkeypatch.setattr(language_runs, "training", lambda *given: None)
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    return benches


def options(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["language_model.py", "--n-test", "12", "--n-validation", "8", *words])
    monkeypatch.setattr(language_runs, "parse", lambda command, *given, **more: command.parse_args())
    return parsed(options_of("Test."))


def test_a_file_is_read_as_it_was_written(tmp_path):
    first = Measured("x", 0, tmp_path)
    first.keep("tsv, 16", "key", {"matched": {"a": "01"}}, ABOUT)
    first.keep("svd, 16", "other", {"matched": {"a": "11"}}, ABOUT)
    again = Measured("x", 0, tmp_path)
    assert (again.about, again.entries) == (first.about, first.entries)
    assert again.get("tsv, 16", "key") == {"matched": {"a": "01"}}
    assert again.get("tsv, 16", "other") is None
    assert again.get("lego, 16", "key") is None
    lines = (tmp_path / "x-seed0.json").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(('"tsv', '"svd')) for line in lines) == 2


def test_marks_are_read_as_they_were_written():
    right = {"a": np.array([True, False]), "b": np.array([False])}
    assert marks(right) == {"a": "10", "b": "0"}
    again = right_in(marks(right), ["a", "b"])
    assert {task: found.tolist() for task, found in again.items()} == {"a": [True, False], "b": [False]}


def test_measurements_of_other_adapters_are_replaced(tmp_path):
    file = Measured("x", 0, tmp_path)
    file.keep("tsv, 16", "key", {}, ABOUT)
    assert file.same(ABOUT | {"machine": "another"})
    other = ABOUT | {"adapters": {"a": {"update": "2"}}}
    assert not file.same(other)
    file.keep("svd, 16", "new", {}, other)
    assert list(Measured("x", 0, tmp_path).entries) == ["svd, 16"]


def test_seeds_are_measured_in_turn_and_kept(tiny, monkeypatch):
    made = []

    def units(bench):
        for name in ("references", "other"):
            yield name, lambda name=name: made.append((bench.seed, name)) or bench.references(), (name,)

    kept = run("x", options(monkeypatch, "--keep"), units)
    assert made == [(0, "references"), (1, "references"), (0, "other"), (1, "other")]
    assert kept.by_seed[1]["references"]["own"].keys() == {"colour", "opposite"}
    found = run("x", options(monkeypatch, "--measured"), units)
    assert json.dumps(found.by_seed) == json.dumps(kept.by_seed)
    assert found.adapters[0]["colour"]["labels"] == 3
    assert found.machine == machine()
    run("x", options(monkeypatch), units)
    assert len(made) == 4


def test_what_is_kept_is_not_measured_again_without_a_cache(tiny, monkeypatch, tmp_path):
    made = []

    def units(bench):
        yield "references", lambda: made.append(1) or bench.references(), ()

    run("x", options(monkeypatch, "--keep", "--seeds", "0"), units)
    monkeypatch.setenv("LORAKIT_REPRODUCE", str(tmp_path / "another"))
    run("x", options(monkeypatch, "--seeds", "0"), units)
    assert len(made) == 1
    tiny[0].adapters = AdapterSet([adapter("colour", 2, ("mlp.up_proj",), 5)])  # as trained elsewhere
    run("x", options(monkeypatch, "--seeds", "0"), units)
    assert len(made) == 2


def test_reporting_needs_a_file_of_the_texts_that_are_asked_for(tiny, monkeypatch):
    with pytest.raises(SystemExit, match=r"there is none of x-seed0.json, x-seed1.json"):
        run("x", options(monkeypatch, "--measured"), lambda bench: iter(()))
    run("x", options(monkeypatch, "--keep"), lambda bench: iter([("references", bench.references, ())]))
    with pytest.raises(SystemExit, match="is of 12 test and 8 validation texts a task, not of 13 and 8"):
        run("x", options(monkeypatch, "--measured", "--n-test", "13"), lambda bench: iter(()))
    with pytest.raises(SystemExit):
        options(monkeypatch, "--measured", "--keep")


@pytest.mark.parametrize("experiment", [language_model, language_papers], ids=lambda module: module.__name__)
def test_the_pages_have_what_is_kept(experiment, monkeypatch, tmp_path):
    """The command below the tables, on what is kept alone, writes the same tables."""
    name = experiment.__name__
    text = (Path(__file__).resolve().parents[2] / "docs" / "results" / f"{name}.rst").read_text(encoding="utf-8")
    page = tmp_path / f"{name}.rst"
    page.write_text(re.sub(r"(\.\. begin (\S+)\n).*?(\.\. end \2\n)", r"\1\n\3", text, flags=re.S), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--measured", "--page", str(page)])
    experiment.main()
    assert page.read_text(encoding="utf-8") == text
