"""Ratios of times, against those that were stored: ``pytest tests/benchmarks -m benchmark -s -n0``.

The times are of the CPU, but for the one ratio that says how much a second core helps.

Ratios carry over from machine to machine where times do not, but not exactly: a test fails at twice what is stored,
and at a quarter more where whole commands are compared: these take seconds, and their ratios are steadier.
After a change that was meant, store anew: ``python tests/benchmarks/test_regression.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from job import EXAMPLES, Process, merge_command, run
from measuring import interleaved, made_adapters, single_thread
from speed import read_with_lorakit, read_with_safetensors

from lorakit import LegoMerger, SVDMerger, TiesMerger, TSVMerger, load_adapters, save_adapter
from lorakit.linalg import frame_of, svd_of_sum

STORED = Path(__file__).with_name("regression_ratios.json")
FACTOR, FACTOR_OF_PROCESSES = 2.0, 1.25
READS = 8  # one alone takes too few milliseconds to be measured
BLOCKS = 12  # of the whole job, so that its start is not most of it
SHAPES = {"q_proj": (2048, 2048), "up_proj": (5504, 2048), "down_proj": (2048, 5504)}
RATIOS = {  # what is watched: one job over another
    "read, lorakit / safetensors": ("read with lorakit", "read with safetensors"),
    "fit SVD / 8 reads": ("svd", "read with lorakit"),
    "fit LEGO n_init=10 / fit SVD": ("lego", "svd"),
    "fit TIES core / fit SVD": ("ties, core", "svd"),
    "frames by Gram / by QR": ("gram", "qr"),
    "algebra of SVD / fit SVD": ("svd_of_sum", "svd"),
}
OF_PROCESSES = (  # of whole commands, from start to exit
    "lorakit inspect A B / import torch",
    "lorakit merge A B / import torch",
    "lorakit merge above its start / fit TSV",
    "lorakit merge, 2 cores / 1, by the clock",
)
RUNS = 3


def measured(folder: Path) -> dict[str, float]:
    X = made_adapters(8, {f"{name}.{i}": shape for i in range(2) for name, shape in SHAPES.items()})
    paths = [save_adapter(adapter, folder / adapter.name) for adapter in X]
    updates = {module: [u.to(torch.float32) for u in X.factors(module)] for module in X.module_names}
    sides = [side for found in updates.values() for side in ([u.B for u in found], [u.A.mT for u in found])]
    jobs: dict[str, Callable[[], object]] = {
        "read with safetensors": lambda: [read_with_safetensors(paths) for _ in range(READS)],
        "read with lorakit": lambda: [read_with_lorakit(paths) for _ in range(READS)],
        "svd": partial(SVDMerger(k=32).fit, X),
        "lego": partial(LegoMerger(k=32, random_state=0).fit, X),
        "ties, core": partial(TiesMerger(k=32, space="core").fit, X),
        "svd_of_sum": lambda: [svd_of_sum(found, [1 / 8] * 8, 32) for found in updates.values()],
        "gram": lambda: [frame_of(side) for side in sides],
        "qr": lambda: [frame_of(side, gram=False) for side in sides],
    }
    with single_thread():
        costs = interleaved(jobs, repeat=3)
    ratios = {name: costs[over].cpu / costs[under].cpu for name, (over, under) in RATIOS.items()}
    return ratios | of_processes(folder)


def of_processes(folder: Path) -> dict[str, float]:
    """Ratios of whole commands, and of the default command to the fit of its method alone."""
    X = made_adapters(8, {f"{name}.{i}": shape for i in range(BLOCKS) for name, shape in SHAPES.items()})
    paths = [save_adapter(adapter, folder / f"large-{adapter.name}") for adapter in X]
    X, out = load_adapters(paths), folder / "merged"
    with single_thread():
        fit = interleaved({"tsv": partial(TSVMerger(scale="match").fit, X)}, repeat=RUNS)["tsv"].cpu
    two = [EXAMPLES / name for name in ("langid", "icd10")]
    small = merge_command("tsv", two, out.with_name("small"), 1)
    commands = {
        "torch": [sys.executable, "-c", "import torch"],
        "inspect": [sys.executable, "-m", "lorakit", "inspect", *map(str, two)],
        "small": small,
        "one": merge_command("tsv", paths, out, 1),
        "two": merge_command("tsv", paths, out, 2),
    }
    found: dict[str, list[Process]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            found[name].append(run(command, 1))
    cpu = {name: min(process.cpu for process in own) for name, own in found.items()}
    wall = {name: min(process.wall for process in own) for name, own in found.items()}
    values = (
        cpu["inspect"] / cpu["torch"],
        cpu["small"] / cpu["torch"],
        (cpu["one"] - cpu["small"]) / fit,
        (wall["two"] - wall["small"]) / (wall["one"] - wall["small"]),
    )
    return dict(zip(OF_PROCESSES, values, strict=True))


@pytest.fixture(scope="module")
def ratios(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("ratios"))


@pytest.mark.benchmark
@pytest.mark.parametrize("name", [*RATIOS, *OF_PROCESSES])
def test_ratio_has_not_grown(ratios, name):
    stored = json.loads(STORED.read_text())[name]
    print(f"{name}: {ratios[name]:.2f}, stored {stored:.2f}")
    most = (FACTOR_OF_PROCESSES if name in OF_PROCESSES else FACTOR) * stored
    assert ratios[name] < most, f"{name}: {ratios[name]:.2f}, stored {stored:.2f}"


@pytest.mark.benchmark
def test_what_is_stored_is_what_is_measured():
    assert json.loads(STORED.read_text()).keys() == {*RATIOS, *OF_PROCESSES}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder))
    STORED.write_text(json.dumps({name: round(ratio, 3) for name, ratio in found.items()}, indent=2) + "\n")
    sys.stdout.write(STORED.read_text())


if __name__ == "__main__":
    main()
