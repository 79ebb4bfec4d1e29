"""What ``lorakit methods`` says of a method is what the command line does, and what the documentation says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import lorakit
from lorakit import load_adapters
from lorakit._listing import added_by_command_line, listed
from lorakit.cli._estimators import OWN_OPTIONS
from lorakit.discovery import all_estimators

MERGERS = [info for info in listed("merger") if not info.needs_data]


@pytest.mark.parametrize("info", [*MERGERS, *listed("pruner")], ids=lambda info: f"{info.kind}-{info.method}")
def test_what_the_command_line_sets_of_a_method(lorakit_, lorakit_json, equal_tasks, out, info):
    """What is said to be set is all that is set, and a run with neither gives what Python gives."""
    command = "merge" if info.kind == "merger" else "prune"
    said = added_by_command_line(info)
    shown = " ".join(lorakit_("methods", info.method).stdout.split())
    for option, text in said.items():
        assert f"{option}: {' '.join(text.split())}" in shown
    needs = ("-p", "merger=svd") if "merger" in info.parameters else ()
    given = lorakit_json(command, *equal_tasks, "-o", out, "-m", info.method, *needs)["parameters"]
    of_the_run = {"n_jobs", "device", "verbose", "merger"}
    differs = {name for name, value in info.parameters.items() if given[name] != value} - of_the_run
    options = {option.split()[0] for option in said}
    assert {OWN_OPTIONS[name] for name in differs} == options


@pytest.mark.parametrize("info", [*listed("merger"), *listed("pruner")], ids=lambda info: f"{info.kind}-{info.method}")
def test_the_rank_without_k_is_said(lorakit_, info):
    words = info.default_rank
    assert words.startswith("None")
    assert "without -k: " in " ".join(lorakit_("methods", info.method).stdout.split())


def test_the_ranks_without_k_are_as_said(equal_tasks):
    """Three adapters of rank 4."""
    X = load_adapters(equal_tasks)
    ranks = {"largest rank": 4, "sum of the ranks": 12, "the adapters' rank": 4, "twice the mean": 8, "rank of": 12}
    for info in MERGERS:
        if "merger" not in info.parameters:
            expected = next(rank for words, rank in ranks.items() if words in info.default_rank)
            merged = all_estimators("merger")[info.method]().fit(X).merged_
            assert max(factors.rank for factors in merged.values()) == expected, info.method


def test_the_documentation_says_what_the_command_line_sets():
    """The hook of the pages of the classes, which the documentation is built with."""
    pytest.importorskip("numpydoc")
    spec = importlib.util.spec_from_file_location("docs_conf", Path(__file__).parents[2] / "docs" / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    for kind in ("merger", "pruner"):
        for info in listed(kind):
            lines = []
            conf.say_command_line(None, "class", f"lorakit.{info.name}", getattr(lorakit, info.name), None, lines)
            text = "\n".join(lines)
            assert text.count("On the command line") == 1
            python_only = info.needs_data and info.method != "distill"
            assert ("in Python only" in text) == python_only
            for option, said in added_by_command_line(info).items():
                assert (f"``{option}``" in text and said[1:] in text) != python_only
    lines = []
    conf.say_command_line(None, "class", "lorakit.AdapterSet", lorakit.AdapterSet, None, lines)
    assert lines == []
