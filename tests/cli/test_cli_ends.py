"""How the process of a command ends: at once, with all done that Python does at the end of a process."""

import subprocess
import sys

import pytest

from lorakit import __version__

END = """
import atexit, sys, threading, time

class Kept:
    def __del__(self):
        print("taken apart")

def late():
    time.sleep(0.2)
    print("thread done")

kept = Kept()
atexit.register(print, "called at exit")
from lorakit.cli._process import run
threading.Thread(target=late).start()
sys.argv = ["lorakit", {args}]
{before}
try:
    run()
except SystemExit:
    print("came back")
"""


def test_threads_exit_functions_and_streams_are_waited_for_and_objects_are_not(process):
    done = process(script=END.format(args="'--version'", before=""))
    assert done.stdout == f"lorakit {__version__}\nthread done\ncalled at exit\n"
    assert done.stderr == ""


def test_the_exit_code_stays(process):
    done = process(script=END.format(args="'inspect', 'missing'", before=""), code=2)
    assert done.stdout == "thread done\ncalled at exit\n"
    assert "missing: does not exist" in done.stderr


@pytest.mark.parametrize("before", ["sys.settrace(lambda *_: None)", "sys.setprofile(lambda *_: None)"])
def test_a_debugger_and_a_profiler_get_the_command_back(process, before):
    done = process(script=END.format(args="'--version'", before=before))
    assert done.stdout.startswith(f"lorakit {__version__}\ncame back\n")


def test_a_profile_is_printed():
    command = [sys.executable, "-m", "cProfile", "-m", "lorakit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    assert "function calls" in done.stdout
