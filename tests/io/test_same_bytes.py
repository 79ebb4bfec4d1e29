"""The same inputs and seed give the same files, whatever process, directory, spelling and number of jobs."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit import save_adapter
from lorakit.testing import make_adapters

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
from lorakit import LegoMerger, load_adapters, save_adapter
out, jobs, *paths = sys.argv[1:]
torch.set_num_threads(int(jobs))
merged = LegoMerger(k=6, random_state=3, n_jobs=int(jobs)).fit(load_adapters(paths)).merged_
for layout in ("portable", "compact"):
    save_adapter(merged, f"{out}/{layout}", layout=layout)
"""


def digest(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


@pytest.mark.slow
def test_merges(tmp_path):
    for adapter in make_adapters(3, ranks=(2, 4, 4), random_state=0):
        save_adapter(
            adapter.with_provenance(base_model="org/base", task_type="CAUSAL_LM"), tmp_path / "in" / adapter.name
        )
    names = ("task0", "task1", "task2")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("in")
    weights = "adapter_model.safetensors"
    runs = [  # PYTHONHASHSEED, jobs, working directory, paths
        ("0", 1, tmp_path, [f"in/{name}" for name in names]),
        ("1", 2, tmp_path / "in", [f"./{name}/" for name in names]),
        ("2", 1, tmp_path / "elsewhere", [f"../elsewhere/../in/{name}" for name in names]),
        ("random", 2, tmp_path, [str(tmp_path / "in" / name) for name in names]),
        ("3", 1, tmp_path, [f"link/{name}/{weights}" for name in names]),
    ]
    digests = set()
    for i, (seed, jobs, folder, paths) in enumerate(runs):
        out = tmp_path / f"out{i}" / "merged"
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, str(out), str(jobs), *paths]
        subprocess.run(command, check=True, env=env, cwd=folder)
        digests |= {digest(out / layout) for layout in ("portable", "compact")}
    assert len(digests) == 2  # of two layouts
