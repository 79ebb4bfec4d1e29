"""What only a process of its own shows: signals, pipes, terminals, the same bytes twice."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")

START = """
from lorakit.cli import main
main(sys.argv[1:], prog_name="lorakit")
"""
STALL = f"""
import sys, time
import lorakit.merging.lego
def stall(*args, **kwargs):
    print("ready", flush=True)
    time.sleep(1000)
lorakit.merging.lego.reassemble = stall
{START}"""
INTERRUPT_WRITING = f"""
import os, signal, sys
import lorakit.files.atomic
def interrupt(file):
    assert (file.parent / "adapter_model.safetensors").exists()
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
lorakit.files.atomic._settle = interrupt
{START}"""
KILLED_WRITING = f"""
import os, signal, sys
parent, true = os.getpid(), os.pwrite
def killed(file, part, start):
    if os.getpid() != parent:
        true(file, part[: part.nbytes // 2], start)
        os.kill(os.getpid(), signal.SIGKILL)
    return true(file, part, start)
os.pwrite = killed
{START}"""


def heed_sigint():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore it


def read_all(terminal):
    seen = b""
    with suppress(OSError):  # Linux says so when the other end is closed
        while block := os.read(terminal, 4096):
            seen += block
    os.close(terminal)
    return seen


def test_same_seed_same_bytes_and_progress_on_a_terminal(start, contents, tasks, tmp_path):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    ours, theirs = os.openpty()
    with (
        start("merge", *tasks, "-o", plain, "-k", 6) as one,
        start("merge", *tasks, "-o", watched, "-k", 6, "--jobs", 2, "--json", stderr=theirs) as other,
    ):
        os.close(theirs)
        seen = read_all(ours)
        report = json.loads(other.communicate(timeout=900)[0])
        stdout, stderr = one.communicate(timeout=900)
    assert f"wrote {plain}" in stdout
    assert stderr == ""  # no progress where nobody watches
    assert report["output"] == str(watched)
    assert b"tsv: modules" in seen
    assert b"2/2" in seen
    assert contents(plain) == contents(watched)


def test_error(process, tasks, out):
    done = process("merge", *tasks, "-o", out, "-k", 99, "--json", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("lorakit: error: -k 99 is above 20")
    assert "Traceback" not in done.stderr


def test_interrupted_while_merging(start, tasks, out):
    with start("merge", *tasks, "-o", out, "-m", "lego", script=STALL, preexec_fn=heed_sigint) as started:
        assert started.stdout.readline() == "ready\n"
        started.send_signal(signal.SIGINT)
        stdout, stderr = started.communicate(timeout=900)
    assert started.returncode == 130
    assert stdout == ""
    assert stderr.strip() == "lorakit: interrupted"
    assert not out.exists()


def test_interrupted_while_writing(process, contents, tasks, tmp_path):
    before = contents(tmp_path)
    args = ("merge", *tasks, "-o", tasks[0], "-k", 6, "--overwrite")
    done = process(*args, code=130, script=INTERRUPT_WRITING, preexec_fn=heed_sigint)
    assert done.stderr.strip() == "lorakit: interrupted"
    assert contents(tmp_path) == before  # no temporary is left


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_worker_killed_while_it_writes_leaves_nothing(process, contents, tasks, tmp_path, replaced):
    before = contents(tmp_path)
    args = ("-o", tasks[0], "--overwrite") if replaced else ("-o", tmp_path / "out")
    done = process("merge", *tasks, *args, "--jobs", 2, code=2, script=KILLED_WRITING)
    assert "a process that worked on some of the modules was ended by the signal SIGKILL" in done.stderr
    assert "pass --jobs 1" in done.stderr
    assert contents(tmp_path) == before


def test_reader_that_goes_away(process):
    read, write = os.pipe()
    os.close(read)
    try:
        assert process("merge", "--help", stdout=write, code=141).stderr == ""
    finally:
        os.close(write)


def test_a_deleted_current_folder(tmp_path):
    """It ended in a fatal error of MKL."""
    gone = tmp_path / "gone"
    gone.mkdir()
    program = "import os, sys; os.rmdir(os.getcwd()); from lorakit.cli import main; main(['inspect', 'x'])"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=gone, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "lorakit: error: the current folder was deleted; change to one that exists (cd)\n"


EACH_IN_A_CHILD = """
import json, os, sys
import sklearn, torch  # once for all commands
from lorakit.cli import main
codes = []
for args in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        main(args, prog_name="lorakit")  # ends in SystemExit, and the child as Python ends
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with open(sys.argv[2], "w") as file:
    json.dump(codes, file)
"""


def run_with(shell, *args):
    """Run the command line under a shell that redirects its streams; return the exit code."""
    command = f"{sys.executable} -m lorakit {' '.join(map(str, args))} {shell}"
    return subprocess.run(["bash", "-c", command], check=False, capture_output=True, timeout=120).returncode


@pytest.mark.parametrize("streams", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_or_full_streams_do_not_change_the_answer(lorakit_, tasks, out, streams, tmp_path):
    merge = ["merge", *tasks, "-o", str(out), "-m", "svd", "-k", "4"]
    lorakit_(*merge)
    commands = {
        ("verify", str(out), "--sources", *tasks): 0,
        ("diff", tasks[0], tasks[1]): 1,
        ("diff", tasks[0], "missing"): 2,
        (*merge, "--overwrite"): 0,
    }
    codes = tmp_path / "codes.json"
    words = [sys.executable, "-c", EACH_IN_A_CHILD, json.dumps(list(commands)), str(codes)]
    subprocess.run(["bash", "-c", f"{shlex.join(words)} {streams}"], check=False, capture_output=True, timeout=900)
    assert json.loads(codes.read_text()) == list(commands.values())
    assert run_with(streams, "diff", tasks[0], "missing") == 2  # where Python itself starts with them


def test_what_cannot_be_printed_is_an_error(tasks):
    assert run_with(">/dev/full", "diff", tasks[0], tasks[0]) == 2
    assert run_with("--all | true; exit ${PIPESTATUS[0]}", "diff", tasks[0], tasks[0]) == 141


def test_any_number_of_jobs_gives_the_same_bytes_as_the_default(lorakit_, tmp_path, contents, monkeypatch):
    """The default takes the cores that there are, and hashes the inputs beside."""
    from lorakit import save_adapter
    from lorakit.testing import make_adapters

    folder = tmp_path / "large"
    made = make_adapters(2, ranks=16, n_modules=3, d_in=1024, d_out=2048, random_state=0)
    paths = [save_adapter(adapter, folder / adapter.name) for adapter in made]
    monkeypatch.setattr("lorakit._cores._SMALL", 2**10)
    monkeypatch.setattr("lorakit._cores.usable_cores", lambda: 3)
    for name, options in {"one": ["-j", "1"], "two": ["-j", "2"], "default": []}.items():
        lorakit_("merge", *paths, "-o", tmp_path / name, *options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "default")
