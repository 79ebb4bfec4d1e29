"""Count the files of lorakit that one weight enters on its way: open, read, fit, save.

    python tests/benchmarks/walk.py

Only functions that run count, not what is run once when a module is imported.
"""

import sys
import tempfile
import threading
from pathlib import Path

import lorakit
from lorakit import LegoMerger, SVDMerger, load_adapters, save_adapter
from lorakit.testing import make_adapters

PACKAGE = Path(lorakit.__file__).parent


def walk(merger, paths, out):
    """Open, read, fit and save; return the files entered and the number of calls."""
    files, calls = set(), 0

    def enter(frame, event, _):
        nonlocal calls
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and frame.f_code.co_name != "<module>":
            files.add(path.relative_to(PACKAGE).as_posix())
            calls += 1

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        adapters = load_adapters(paths)
        adapters[0]["layer.0"]
        save_adapter(merger.fit(adapters).merged_, out)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return files, calls


def main():
    with tempfile.TemporaryDirectory() as folder:
        made = make_adapters(2, ranks=(2, 4), random_state=0)
        paths = [save_adapter(adapter, Path(folder) / adapter.name) for adapter in made]
        for name, merger in (("svd", SVDMerger(k=3)), ("lego", LegoMerger(k=3, random_state=0))):
            walk(merger, paths, Path(folder) / f"warm-{name}")  # imports what is imported late
            files, calls = walk(merger, paths, Path(folder) / name)
            print(f"{name}: {len(files)} files, {calls} calls")
            print(*(f"  {file}" for file in sorted(files)), sep="\n")


if __name__ == "__main__":
    main()
