"""What runs before any command does."""

from __future__ import annotations

import pytest

from lorakit import __version__
from lorakit.discovery import all_estimators

HELP = """
import sys
from lorakit.cli import main
try:
    main([{args}], prog_name="lorakit")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "sklearn", "rich", "numpy", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("args", ["'--help'", "'--version'", "'merge', '--help'", "'prune', '-h'", "'inspect', '-h'"])
def test_help_imports_nothing_heavy(process, args):
    assert "orakit" in process(script=HELP.format(args=args)).stdout


QUIET = """
import sys
import sysconfig
from lorakit.cli import main
try:
    main({args}, prog_name="lorakit")
except SystemExit as end:
    assert end.code in {codes}, end.code
loaded = {{name for name in {names} if name in sys.modules}}
# scikit-learn's base class imports the last two, which make way for the modules themselves when they are used
loaded -= {{name for name in loaded if type(sys.modules[name]).__name__ == "_Late"}}
assert not loaded, loaded
"""
SKLEARN = {"sklearn", "scipy"}


@pytest.mark.parametrize(
    ("command", "absent"),
    [
        (["methods"], {"torch", "numpy", *SKLEARN}),
        (["methods", "--json"], {"torch", "numpy", *SKLEARN}),
        (["inspect", "A"], {"joblib", *SKLEARN}),
        (["inspect", "A", "B"], SKLEARN),
        (["diff", "A", "B"], SKLEARN),
        (["convert", "A", "-o", "OUT"], SKLEARN),
        (["merge", "A", "B", "-o", "OUT"], {"scipy.stats", "sklearn.metrics", "sklearn.cluster", "numpy.f2py"}),
        (["merge", "A", "B", "-o", "OUT", "-m", "lego"], {"scipy.stats", "sklearn.metrics", "sklearn.cluster"}),
        (["prune", "A", "-o", "OUT"], {"scipy.stats", "sklearn.metrics", "sklearn.cluster", "numpy.f2py"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_no_more_than_it_uses(process, tasks, tmp_path, command, absent):
    given = {"A": str(tasks[0]), "B": str(tasks[1]), "OUT": str(tmp_path / "out")}
    args = [given.get(word, word) for word in command]
    process(script=QUIET.format(args=args, codes=(None, 0, 1), names=sorted(absent)))


LATE = """
import importlib, inspect, sys
import numpy
from lorakit.cli._late import load_late
load_late()
import sklearn.base
waiting = sys.modules["scipy.stats"]
assert "scipy.stats._stats_py" not in sys.modules
inspect.getmodule(lambda: None)  # looks at every module
assert "scipy.stats._stats_py" not in sys.modules
from scipy.stats import norm
assert norm.cdf(0) == 0.5
assert sys.modules["scipy.stats"] is not waiting
import scipy.stats
assert scipy.stats.norm is norm is waiting.norm
from numpy.f2py import crackfortran
assert numpy.f2py.crackfortran is crackfortran
import scipy.stats.qmc
assert scipy.stats.qmc.Sobol(1).d == 1
import sklearn.metrics
"""


def test_what_waits_is_loaded_when_it_is_used(process):
    process(script=LATE)


def test_version(process):
    assert process("--version").stdout == f"lorakit {__version__}\n"


def test_alone_it_shows_its_help(lorakit_):
    result = lorakit_(code=2)
    assert "Commands:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--bogus"], "No such option"),
        (["merge"], "Missing argument"),
        (["merge", "a"], "Missing option '-o'"),
        (["mrge", "a"], "No such command 'mrge'"),
        (["merge", "a", "-o", "b", "--layout", "x"], "'portable', 'compact'"),
    ],
)
def test_wrong_usage(lorakit_, args, message):
    result = lorakit_(*args, code=2)
    assert result.stderr.startswith("lorakit: error: ")
    assert message in result.stderr
    assert "--help'." in result.stderr
    assert result.stdout == ""


def test_methods_lists_every_estimator(lorakit_, lorakit_json):
    text, found = lorakit_("methods").stdout, lorakit_json("methods")
    for kind in ("merger", "pruner"):
        estimators = all_estimators(kind)
        assert [entry["method"] for entry in found[f"{kind}s"]] == list(estimators)
        for entry in found[f"{kind}s"]:
            cls = estimators[entry["method"]]
            assert entry["class"] == cls.__name__
            assert entry["class"] in text
            assert entry["parameters"] == cls().get_params()
            assert entry["summary"] in text
            assert not set("`*[") & set(entry["summary"])
    equal = {entry["method"] for entry in found["mergers"] if entry["needs_equal_ranks"]}
    assert "average" in equal
    assert "lego" not in equal


OWN_OPTIONS = {"k", "weights", "strengths", "scale", "random_state", "n_jobs", "device", "verbose"}


@pytest.mark.parametrize("method", sorted(all_estimators("merger")))
def test_methods_says_all_of_one(method, lorakit_, lorakit_json):
    shown = lorakit_("methods", method).stdout
    entry = lorakit_json("methods", method)["mergers"][0]
    assert entry["class"] in shown
    assert entry["summary"].split()[0] in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert (entry["paper"] or "") in shown
    for name in set(entry["parameters"]) - OWN_OPTIONS:
        assert f"    {name}=" in shown


def test_methods_refuses_names_of_none(lorakit_):
    assert "no method 'tis'; did you mean 'ties'?" in lorakit_("methods", "tis", code=2).stderr


@pytest.mark.parametrize("typed", ["--density", "--denstiy"])
def test_a_parameter_that_is_given_as_an_option(typed, lorakit_):
    said = lorakit_("merge", "a", "b", "-o", "c", typed, "0.3", code=2).stderr
    assert f"No such option '{typed}'" in said
    assert "--param density=VALUE" in said
    assert "--param" not in lorakit_("merge", "a", "b", "-o", "c", "--overwite", code=2).stderr


def offered(args, monkeypatch, capsys):
    """What the Tab key offers after these words: kind and word of each."""
    from click.shell_completion import BashComplete

    from lorakit.cli import main

    monkeypatch.setenv("COMP_WORDS", f"lorakit {args}")
    monkeypatch.setenv("COMP_CWORD", str(len(args.split(" "))))
    shown = BashComplete(main, {}, "lorakit", "_LORAKIT_COMPLETE").complete()
    return [tuple(line.split(",", 1)) for line in shown.splitlines()]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("merge --method t", ["task_arithmetic", "ties", "tsv"]),
        ("prune -m s", ["svd"]),
        ("convert a --to ko", ["kohya"]),
        ("inspect --format p", ["peft"]),
        ("merge --device cu", ["cuda"]),
        ("insp", ["inspect"]),
        ("methods leg", ["lego"]),
    ],
)
def test_tab_offers_words(args, words, monkeypatch, capsys):
    assert offered(args, monkeypatch, capsys) == [("plain", word) for word in words]


@pytest.mark.parametrize(
    "args", ["merge a", "prune a", "inspect a", "convert a", "diff a", "diff x a", "verify a", "verify m --sources a",
             "bake a", "bake base a", "extract a", "extract tuned a", "fit a", "fit base a", "merge x -o a",
             "plot similarity a"],
)  # fmt: skip
def test_tab_offers_paths(args, monkeypatch, capsys):
    assert offered(args, monkeypatch, capsys) == [("file", "a")]


def test_tab_offers_all_methods():
    from lorakit.cli._completion import method_names

    for kind in ("merger", "pruner"):
        assert method_names(kind) == sorted(all_estimators(kind))


def test_env_names_versions_and_no_paths(lorakit_, lorakit_json):
    found = lorakit_json("env")
    assert found["system"]["lorakit"] == __version__
    assert found["packages"]["torch"].startswith("2.")
    text = lorakit_("env").stdout
    assert "/" not in text.replace("plot/", "")
    assert all(name in text for name in found["packages"])
