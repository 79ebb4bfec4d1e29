"""Several processes write different adapters to one path, over and over, while this one reads it.

Run as a script: ``python tests/io/compete.py FOLDER exchange|two ROUNDS``. Prints how many reads were whole, how many
were told that the file had changed, and how many adapters were seen.
"""

import os
import sys
import traceback
from pathlib import Path

import torch

from lorakit import load_adapter, save_adapter
from lorakit.exceptions import CorruptFileError
from lorakit.files import _rename
from lorakit.testing import make_adapters

# Two of one rank, whose files differ in nothing but their numbers, and one of another.
KNOWN = [*make_adapters(2, ranks=(3, 3), random_state=0), *make_adapters(1, ranks=(5,), random_state=1)]


def writer(adapter, path, rounds):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(rounds):
                save_adapter(adapter, path, overwrite=True)
            code = 0
        except BaseException:
            traceback.print_exc()  # the parent only sees the code
        finally:
            os._exit(code)
    return pid


def read(path):
    """Return which adapter is there; it has to be all of one."""
    adapter = load_adapter(path)
    factors = {module: adapter[module].delta() for module in adapter}
    (whole,) = (i for i, known in enumerate(KNOWN) if all(torch.equal(known[m].delta(), factors[m]) for m in known))
    return whole


def main(folder, renames, rounds):
    if renames == "two":
        _rename._system_call = lambda: None
    path = folder / "out"
    save_adapter(KNOWN[0], path)
    writers = {writer(adapter, path, rounds) for adapter in KNOWN}
    seen, changed = [], 0
    while writers:
        try:
            seen.append(read(path))
        except CorruptFileError as error:
            assert "has changed since" in str(error) or "again and again" in str(error), error  # noqa: PT017
            changed += 1
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0, "a writer failed"
            writers.remove(pid)
    read(path)
    assert os.listdir(folder) == ["out"], os.listdir(folder)  # noqa: PTH208
    print(len(seen), changed, len(set(seen)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
