"""Messages and exit codes, whatever goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import lorakit.merging.lego
from lorakit import save_adapter
from lorakit.cli import main
from lorakit.testing import make_adapters


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_missing_input(lorakit_, tasks, out):
    result = lorakit_("merge", tasks[0], tasks[1] + "x", "-o", out, code=2)
    assert result.stderr.count("\n") == 1
    assert "does not exist; " in result.stderr
    assert "'task1'" in result.stderr


def test_library_arguments_are_named_as_options(lorakit_, tasks, out):
    config = Path(tasks[0]) / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"modules_to_save": ["classifier"]}))
    result = lorakit_("merge", *tasks, "-o", out, code=2)
    assert "pass --modules-to-save drop to leave them out" in result.stderr
    result = lorakit_("merge", *tasks, "-o", out, "-m", "svd", "--modules-to-save", "drop")
    assert result.stderr.startswith("lorakit: warning: ")


def test_assume_alpha(lorakit_, lorakit_json, tasks, out):
    (Path(tasks[0]) / "adapter_config.json").unlink()
    assert "pass --assume-alpha if you know" in lorakit_("merge", *tasks, "-o", out, code=2).stderr
    lorakit_("merge", *tasks, "-o", out, "-m", "svd", "--assume-alpha", 4)
    assert lorakit_json("inspect", tasks[0], "--assume-alpha", 4)["adapters"][0]["scaling"] == [1.0]


def test_overflow_names_the_option(lorakit_, tmp_path, out):
    (huge,) = make_adapters(1, random_state=0)
    huge = type(huge)({module: factors.scaled(1e12) for module, factors in huge.items()})
    path = save_adapter(huge, tmp_path / "huge")
    result = lorakit_("merge", path, "-o", out, "-m", "svd", "--dtype", "float16", code=2)
    assert "--dtype bfloat16 or float32" in result.stderr
    assert not out.exists()


def test_warnings_are_one_line_each(lorakit_, tmp_path, out):
    paths = [
        save_adapter(adapter.with_provenance(base_model=f"org/{adapter.name}"), tmp_path / adapter.name)
        for adapter in make_adapters(random_state=0)
    ]
    for extra in ([], ["--json"], ["--dry-run", "--overwrite"]):
        result = lorakit_("merge", *paths, "-o", out, "-m", "svd", "--overwrite", *extra)
        assert result.stderr.startswith("lorakit: warning: the adapters name different base models: ")
        assert result.stderr.count("\n") == 1
        assert "base models" not in result.stdout


def test_an_error_in_a_module_names_it(lorakit_, tasks, out, monkeypatch):
    monkeypatch.setattr(lorakit.merging.lego, "reassemble", failing(ValueError("no such rank")))
    result = lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=2)
    assert result.stderr == (
        "lorakit: error: no such rank (in module 'layer.0' of the adapters ['task0', 'task1', 'task2'])\n"
    )


@pytest.mark.parametrize("error", [RuntimeError("a\nbug"), TypeError("a bug"), KeyError("a bug")])
def test_a_bug_asks_for_a_report(lorakit_, tasks, out, monkeypatch, error):
    monkeypatch.setattr(lorakit.merging.lego, "reassemble", failing(error))
    result = lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=70)
    assert result.stderr.startswith(f"lorakit: error: {type(error).__name__}: ")
    assert "in module 'layer.0'" in result.stderr
    assert "Please report it" in result.stderr
    assert result.stdout == ""


def test_a_type_error_before_the_first_module_is_about_a_parameter(lorakit_, tasks, out, monkeypatch):
    monkeypatch.setattr(lorakit.LegoMerger, "_validate_params", failing(TypeError("must be a number")))
    assert "must be a number" in lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=2).stderr


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("tried to allocate 3 GiB")])
def test_out_of_memory(lorakit_, tasks, out, monkeypatch, error):
    monkeypatch.setattr(lorakit.merging.lego, "reassemble", failing(error))
    assert "out of memory" in lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=2).stderr


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_debug_shows_the_traceback(lorakit_, tasks, out, monkeypatch, where):
    args = ["merge", *tasks, "-o", out, "-k", 99]
    args = ["--debug", *args] if where == "before" else [*args, "--debug"] if where == "after" else args
    if where == "environment":
        monkeypatch.setenv("LORAKIT_DEBUG", "1")
        result = CliRunner().invoke(main, [str(arg) for arg in args])
    else:
        result = lorakit_(*args, code=2)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "lorakit: error: -k 99 is above 20" in result.stderr


def test_interrupted(lorakit_, tasks, out, monkeypatch):
    monkeypatch.setattr(lorakit.merging.lego, "reassemble", failing(KeyboardInterrupt()))
    result = lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=130)
    assert result.stderr.endswith("lorakit: interrupted\n")
    assert not out.exists()


def test_interrupted_where_that_becomes_another_error(lorakit_, tasks, out, monkeypatch):
    def swallow(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("an import failed") from None

    monkeypatch.setattr(lorakit.merging.lego, "reassemble", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=130).stderr.endswith("lorakit: interrupted\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_name_that_the_terminal_cannot_show(tasks):
    result = CliRunner(charset="ascii").invoke(main, ["inspect", tasks[0], "--name", "médecine"])
    assert result.exit_code == 0
    assert "m\\xe9decine" in result.stdout


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("alloc_cpu.cpp:127: DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads can be started"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(lorakit_, tasks, out, monkeypatch, error, said):
    monkeypatch.setattr(lorakit.merging.lego, "reassemble", failing(error))
    assert said in lorakit_("merge", *tasks, "-o", out, "-m", "lego", code=2).stderr


@pytest.mark.parametrize(
    "args",
    [
        *(["--pad-to", rank] for rank in ("1e9", "1e30", "[8]", "0", "1000000000", "nan")),
        ["-k", "mean:1e308"],
        ["-k", "mean:inf"],
        ["--tolerance", "inf"],
        ["--tolerance", "nan"],
        ["--assume-alpha", "nan"],
        ["--assume-alpha", "inf"],
    ],
    ids=" ".join,
)
def test_numbers_that_are_none(lorakit_, tasks, out, args):
    command = ["diff", *tasks[:2]] if args[0] == "--tolerance" else ["merge", *tasks, "-o", out, "-m", "svd"]
    assert "lorakit: error: " in lorakit_(*command, *args, code=2).stderr
    assert not out.exists()


def test_a_folder_that_is_very_deep(lorakit_, tasks, tmp_path):
    deep = "/".join([str(tmp_path), *["d"] * 1900])
    result = lorakit_("merge", *tasks, "-o", deep, "-m", "svd", code=None)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest cannot
    assert result.exit_code in (0, 2)  # as far as the system allows
    assert "bug in lorakit" not in result.output


def test_json_has_no_numbers_that_json_lacks(lorakit_, tmp_path):
    def strict(text):
        raise AssertionError(text)

    huge = make_adapters(1, dtype=torch.float64, random_state=0)[0]
    huge = type(huge)({module: factors.scaled(1e300) for module, factors in huge.items()})
    path = save_adapter(huge, tmp_path / "huge", dtype=torch.float64)
    json.loads(lorakit_("diff", path, path, "--json").stdout, parse_constant=strict)
    report = json.loads(lorakit_("inspect", path, "--json").stdout, parse_constant=strict)
    assert report["adapters"][0]["dtype"] == "float64"


def test_float64_factors_near_the_limit(lorakit_json, tmp_path):
    """Their product is above any float64, so that norms of updates overflow."""
    (huge,) = make_adapters(1, dtype=torch.float64, random_state=0)
    huge = type(huge)({module: type(f)(f.A * 1e200, f.B * 1e200) for module, f in huge.items()})
    path = save_adapter(huge, tmp_path / "huge", dtype=torch.float64)
    assert lorakit_json("convert", path, "-o", tmp_path / "again")["identical"] is True
