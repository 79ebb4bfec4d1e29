"""Every engine of joblib gives the bits that a plain loop gives, says where an error was, and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from on_engine import BROKEN

SCRIPT = Path(__file__).with_name("on_engine.py")
NEEDS = {"threading": None, "loky": None, "dask": "distributed", "ray": "ray"}
STREAMING = {"threading", "loky", "dask"}
MARK = "LORAKIT_ENGINE_RUN"
OF_ENGINES = {"dask-scratch-space", "ray"}  # folders that these make for themselves


def engine(name):
    missing = NEEDS[name] is not None and find_spec(NEEDS[name]) is None
    skip = pytest.mark.skipif(missing, reason=f"needs {NEEDS[name]}: pip install 'lorakit[{name}]'")
    return pytest.param(name, marks=[skip, pytest.mark.slow])


@pytest.mark.parametrize("name", [engine(name) for name in NEEDS])
def test_engine(name):
    folder = Path(tempfile.mkdtemp(prefix="lorakit-"))  # not pytest's: Ray's sockets need a short path
    saw = seen_by_a_process(name, folder)
    assert name in saw["engine"].lower()
    assert saw["streams"] == (name in STREAMING)
    assert len(saw["compared"]) >= 3
    assert saw["differences"] == []

    message, note = saw["failure"]["told"]
    assert BROKEN in message
    assert "NaN" in message
    assert BROKEN in note
    assert "'langid', 'wn_pos'" in note
    assert saw["differences afterwards"] == []

    deadline = time.monotonic() + 300
    while (left := running(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert {path.name for path in folder.iterdir()} <= OF_ENGINES
    shutil.rmtree(folder)


def seen_by_a_process(name, folder):
    """What a process saw on an engine, when it has ended."""
    env = {**os.environ, "TMPDIR": str(folder), "RAY_TMPDIR": str(folder), MARK: str(folder)}
    command = [sys.executable, str(SCRIPT), name, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "tasks have been successfully executed" not in done.stderr  # joblib's advice to those who stop early
    return json.loads(done.stdout.splitlines()[-1])


def running(folder):
    """Command lines of the processes that were started for ``folder``."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is somebody else's
            continue
    return found
