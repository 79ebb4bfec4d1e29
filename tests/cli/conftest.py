"""Small adapters on disk, and two ways to run the command line: in this process, and in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorakit import save_adapter
from lorakit.cli import main
from lorakit.testing import make_adapters


@pytest.fixture
def tasks(tmp_path):
    """Three adapters of ranks 4, 8 and 8, as the paths of their folders."""
    folder = tmp_path / "in"
    return [str(save_adapter(adapter, folder / adapter.name)) for adapter in make_adapters(random_state=0)]


@pytest.fixture
def equal_tasks(tmp_path):
    """Three adapters of rank 4."""
    folder = tmp_path / "equal"
    return [str(save_adapter(adapter, folder / adapter.name)) for adapter in make_adapters(3, ranks=4, random_state=1)]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def lorakit_(monkeypatch):
    """Run the command line in this process."""
    monkeypatch.delenv("LORAKIT_DEBUG", raising=False)

    def run(*args, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="lorakit")
        assert code is None or result.exit_code == code, result.output
        if code and "--debug" not in args:
            assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def lorakit_json(lorakit_):
    """Run the command line with --json and read what it prints."""

    def run(*args, code=0):
        return json.loads(lorakit_(*args, "--json", code=code).stdout)

    return run


@pytest.fixture
def start():
    """Return a function that starts the command line, or a script that ends in it, in a process of its own."""

    def popen(*args, script=None, **streams):
        before = ["-m", "lorakit"] if script is None else ["-c", script]
        return subprocess.Popen(
            [sys.executable, *before, *map(str, args)],
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "random", "TERM": "xterm"},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
        )

    return popen


@pytest.fixture
def process(start):
    """Run the command line in a process of its own, to the end."""

    def run(*args, code=0, **how):
        with start(*args, **how) as started:
            stdout, stderr = started.communicate(timeout=900)
        assert started.returncode == code, stderr
        return subprocess.CompletedProcess(args, code, stdout, stderr)

    return run


@pytest.fixture
def contents():
    """Return a function from a folder to every file below it, hidden ones too, by path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }

    return read
