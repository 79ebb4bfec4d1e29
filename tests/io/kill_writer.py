"""Stop a writer at every point where it may change a file; look at what is there, then write again.

Run as a script, in a process of its own, because it forks: one import of torch serves all of the writers.

    python tests/io/kill_writer.py FOLDER SIGNAL CASE...

with cases such as directory-old-exchange: what is written, whether one is there already, and what the system can do.
Prints for each how many points there are, and at how many something was left beside the output until the next run.
"""

import itertools
import os
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch

from lorakit import load_adapter, save_adapter
from lorakit.files import _rename
from lorakit.files import atomic as _atomic
from lorakit.testing import make_adapters

OLD, NEW, NEXT = make_adapters(3, ranks=(2, 3, 4), random_state=0)
SYSTEM = {"posix", "fcntl", "io", "_io"}
# These change nothing, so that the call before them is as good a point.
EXCHANGE = _rename._system_call
HARMLESS = {"stat", "lstat", "fstat", "listdir", "scandir", "fspath", "fsencode", "readlink", "getcwd", "isatty"}
HARMLESS |= {"read", "readinto", "tell", "seek", "seekable", "fileno", "getpid", "urandom", "text_encoding", "access"}


def write(adapter, path, kind):
    if kind == "directory":
        save_adapter(adapter, path, overwrite=True)
    else:  # the way of a format of one file, whatever it is
        with _atomic.replaced_file(path, overwrite=True) as new:
            new.write_text(f"{adapter.name}\n" * 10_000)


def found(path, kind):
    """Return the name of the adapter that is there whole, None for none."""
    if kind == "file":
        names = set(path.read_text().splitlines()) if path.exists() else {None}
        assert len(names) == 1, f"several adapters in one file: {names}"
        return names.pop()
    try:
        adapter = load_adapter(path)
    except FileNotFoundError as error:
        remedy = re.search(r"is half replaced: .* rename (\S+) to (\S+)$", str(error))
        if remedy is None:
            return None
        Path(remedy[1]).rename(remedy[2])
        adapter = load_adapter(path)
    (whole,) = (known for known in (OLD, NEW, NEXT) if known.ranks == adapter.ranks)
    assert all(torch.equal(whole[module].delta(), adapter[module].delta()) for module in whole)
    assert {entry.name for entry in path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    return whole.name


def stopped_at(point, number):
    """Have the process receive a signal right before its n-th call that may change a file."""
    calls = itertools.count(1)

    def note(frame, event, function):
        if event != "c_call":
            return
        owner = getattr(function, "__self__", None)
        module = getattr(function, "__module__", None) or type(owner).__module__
        if module in SYSTEM and function.__name__ not in HARMLESS and next(calls) == point:
            sys.setprofile(None)
            os.kill(os.getpid(), number)

    sys.setprofile(note)


def child(path, kind, point, number):
    """Write in a process that is stopped at a point; return whether it was."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            stopped_at(point, number)
            write(NEW, path, kind)
            sys.setprofile(None)
        except KeyboardInterrupt:
            code = 3
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 4
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 3), "the writer failed by itself"
    return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 3


def run(folder, number, kind, output, renames):
    _rename._system_call = EXCHANGE if renames == "exchange" else lambda: None
    left = 0
    for point in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / ("out" if kind == "directory" else "out.safetensors")
        before = None
        if output == "old":
            write(OLD, path, kind)
            before = OLD.name
        stopped = child(path, kind, point, number)
        left += len(set(folder.iterdir()) - {path}) > 0
        name = found(path, kind)
        assert name in ((before, NEW.name) if stopped else (NEW.name,)), f"point {point}: {name} is there"
        write(NEXT, path, kind)
        assert found(path, kind) == NEXT.name
        assert list(folder.iterdir()) == [path], f"point {point}: {sorted(folder.iterdir())} are left"
        if not stopped:
            return point - 1, left


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore it
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ResourceWarning)  # of files that an interrupt leaves open
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # nothing cuts the power here, and a call of a Python function is no point
    folder, number, *cases = sys.argv[1:]
    for case in cases:
        print(case, *run(Path(folder), getattr(signal, number), *case.split("-")))
