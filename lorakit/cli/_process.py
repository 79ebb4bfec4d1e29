"""The process of a command: how it starts and ends where it is nobody else's."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from typing import NoReturn

from . import main

_NO_FULL = 10_000  # collections of the middle generation before one of all objects


def run() -> NoReturn:
    """Run the command line in a process of its own.

    Importing torch makes half a million objects, none of them garbage. Python's collector would look through all of
    them several times while they are made, and once more to take them apart at the end: a third of what a short
    command takes. Here it looks at the young ones alone, and the process ends when all that was asked for is done.
    """
    gc.set_threshold(*gc.get_threshold()[:2], _NO_FULL)
    try:
        main(prog_name="lorakit")
    except SystemExit as ended:
        if not isinstance(ended.code, int) or _watched():
            raise
        code = ended.code
    _end(code)


def _end(code: int) -> NoReturn:
    """End as Python does, in its order: threads, what is to be called at exit, streams; but leave objects alone."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()  # of this module, there is no other way to have them called
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _watched() -> bool:
    """Whether somebody, such as a profiler or a debugger, waits for the command to come back."""
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    watches = monitoring is not None and any(map(monitoring.get_tool, range(6)))
    return watches or bool(sys.flags.inspect or sys.getprofile() or sys.gettrace())
