"""A file of ten megabytes gets its answer, an adapter or an error, in ten seconds and 500 MB.

Processor time is measured, in a process of its own, and a machine may be six times slower than the one on which each
case took less than five seconds. Memory is a hard limit of that process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_files import CASES

HERE = Path(__file__).parent
REFUSED = {
    "many_expressions": "UnsupportedAdapterError",
    "short_expressions": "UnsupportedAdapterError",
    "dotted_keys": "UnsupportedAdapterError",
    "objects_in_header": "CorruptFileError",
    "lists_in_header": "CorruptFileError",
    "too_many_experts": "CorruptFileError",
    "locon": "UnsupportedAdapterError",
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of a process as Linux gives it")
@pytest.mark.parametrize("case", CASES)
def test_small_files_are_answered(tmp_path, case):
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, HERE / "small_files.py", case, tmp_path], capture_output=True, text=True, env=env, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    seconds, _, megabytes, _, _, _, said = run.stdout.split(maxsplit=6)
    assert said.startswith(REFUSED.get(case, "")), said
    assert (case in REFUSED) or said.split()[1] == "modules", said
    assert float(seconds) < 60
    assert int(megabytes) < 500
