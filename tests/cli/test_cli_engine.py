"""``--engine`` and ``--address``: the same bytes from other processes and from clusters that the test starts."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from lorakit.cli import _engine

NEEDS_DASK = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs lorakit[dask]")
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs lorakit[ray]")
LORAKIT_IS_LOADED = """
import json, sys
from distributed import Client
with Client(sys.argv[1]) as client:
    print(json.dumps(sorted(client.run(lambda: "lorakit" in __import__("sys").modules).values())))
"""


@pytest.fixture
def short_folder():
    """A folder with a short path, which Ray's sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def dask_cluster(short_folder):
    """A Dask scheduler and two workers of one thread, each a process of its own; yield the scheduler's address."""
    file = short_folder / "scheduler.json"
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["dask_worker", "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(short_folder)]
    with ExitStack() as stack:
        for command in (scheduler, worker, worker):
            stack.enter_context(stopped_at_the_end([*command, "--scheduler-file", str(file)]))
        deadline = time.monotonic() + 300
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        while len(loaded(address)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield address


@pytest.fixture
def ray_cluster(short_folder, monkeypatch):
    """A Ray cluster of one node and two cores, which asks for no token: its address, and the folder of its logs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # of the cluster and of those that join it
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"port": port, "num-cpus": 2, "node-ip-address": "127.0.0.1", "temp-dir": short_folder}
    words = [f"--{name}={value}" for name, value in options.items()]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--head", "--include-dashboard=false", "--disable-usage-stats", *words]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield f"127.0.0.1:{port}", short_folder / "session_latest" / "logs"
    for process in psutil.process_iter(["cmdline"]):  # of this cluster: `ray stop` would end those of other tests too
        if any(str(short_folder) in word for word in process.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                process.kill()


class stopped_at_the_end:  # used as a function
    def __init__(self, command):
        module, *options = command
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-m", f"distributed.cli.{module}", *options], **streams)

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def loaded(address):
    """Whether each worker of a cluster has imported lorakit."""
    command = [sys.executable, "-c", LORAKIT_IS_LOADED, address]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def same(lorakit_, process, tasks, tmp_path, contents):
    """Run a command here on threads and, in a process of its own, on an engine: every file must be the same."""

    def run(*command, engine):
        one, two = tmp_path / "threads", tmp_path / "engine"
        lorakit_(*command, "-o", one)
        process(*command, "-o", two, *engine)
        assert contents(one) == contents(two) != {}
        shutil.rmtree(one)
        shutil.rmtree(two)

    return run


@pytest.mark.slow
@NEEDS_DASK
def test_a_running_dask_cluster(same, tasks, dask_cluster, process, tmp_path):
    engine = ["--engine", "dask", "--address", dask_cluster]
    assert loaded(dask_cluster) == [False, False]
    same("merge", *tasks, "-k", "6", "-m", "lego", engine=engine)
    assert loaded(dask_cluster) == [True, True]  # the modules were worked on there, by both
    same("prune", *tasks, "-k", "2", "-m", "lego", engine=[*engine, "--jobs", "1"])
    recipe = tmp_path / "r.yaml"
    recipe.write_text("sources: [in/task0, in/task1]\nsteps: [balance, merge: {method: ties, k: 4, space: delta}]")
    same("merge", "--recipe", recipe, engine=engine)
    (tmp_path / "in" / "task0").rename(tmp_path / "in" / "old")
    assert "is not there" in process("merge", "--recipe", recipe, "-o", tmp_path / "o", *engine, code=2).stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loky", pytest.param("dask", marks=NEEDS_DASK)])
def test_processes_of_this_machine(same, tasks, engine):
    same("merge", *tasks, "-k", "6", "-m", "lego", engine=["--engine", engine, "--jobs", "2"])


@pytest.mark.slow
@NEEDS_RAY
def test_ray_here(same, tasks, short_folder, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    same("merge", *tasks, "-k", "6", "-m", "lego", engine=["--engine", "ray", "--jobs", "2"])


@pytest.mark.slow
@NEEDS_RAY
def test_a_running_ray_cluster(same, tasks, ray_cluster):
    address, logs = ray_cluster

    def of_the_first_job():  # what workers of the cluster did for the first command that joined it
        done = re.compile("Actor creation task finished.* actor_id: [0-9a-f]+01000000,")
        lines = [line for log in logs.glob("python-core-worker-*.log") for line in log.read_text().splitlines()]
        return list(filter(done.search, lines))

    assert not of_the_first_job()
    same("merge", *tasks, "-k", "6", "-m", "lego", engine=["--engine", "ray", "--address", address])
    assert len(of_the_first_job()) == 2  # one worker for each core


def test_what_does_not_go_together(lorakit_, tasks, out, monkeypatch):
    error = lorakit_("merge", *tasks, "-o", out, "--address", "tcp://127.0.0.1:1", code=2).stderr
    assert "--address is for --engine dask or --engine ray" in error
    error = lorakit_("prune", *tasks, "-o", out, "--engine", "loky", "--address", "a", code=2).stderr
    assert "--address is for --engine dask" in error
    monkeypatch.setattr(_engine, "find_spec", lambda name: None)
    error = lorakit_("merge", *tasks, "-o", out, "--engine", "dask", code=2).stderr
    assert "--engine dask needs a package: pip install 'lorakit[dask]'" in error
    assert not out.exists()


@NEEDS_DASK
def test_no_cluster_answers(lorakit_, tasks, out, monkeypatch):
    monkeypatch.setattr(_engine, "_WAIT", "1s")
    error = lorakit_("merge", *tasks, "-o", out, "--engine", "dask", "--address", "tcp://127.0.0.1:9", code=2).stderr
    assert "--address tcp://127.0.0.1:9: there is no Dask scheduler that answers" in error
    assert not out.exists()
