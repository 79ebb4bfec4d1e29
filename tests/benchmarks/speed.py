#!/usr/bin/env python
"""Time every merge method on adapters of a 7B model, beside the cost of reading and writing the files.

    python tests/benchmarks/speed.py FOLDER --memory
    python tests/benchmarks/speed.py FOLDER --layers 4      # a minute

FOLDER takes the adapters (611 MB for 32 layers; what lies there is used again) and the results. All on one thread, the
files in the system's cache, the least of interleaved repeats. The floor is what any merge must do: read and convert
the inputs, write a result of rank 32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import Cost, Table, interleaved, publish, single_thread
from memory import peak_of
from model_scale import LAYERS, SHAPES, make
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from svd_steps import Files, steps_of_svd

from lorakit import Adapter, LoraFactors, load_adapters, rank_path, results_on_disk, save_adapter
from lorakit.discovery import all_estimators, all_methods
from lorakit.files import digests

K = 32
KS = (4, 8, 12, 16, 24, 32, 48, 64)
WEIGHTS = "adapter_model.safetensors"
DELTA_MODULES = ["model.layers.0.self_attn.q_proj"]  # the methods that form whole updates take seconds on one
SWEPT = ("svd", "tsv", "lego")
LEGO = {f"lego, n_init={n}": n for n in (1, 10)}


def mergers() -> tuple[dict[str, Any], dict[str, Any]]:
    """Every method that needs no data: those that run on the whole load, and those that form whole updates."""
    whole, delta = {}, {}
    for info in all_methods("merger"):
        if info.needs_data:
            continue
        make_one = partial(all_estimators("merger")[info.method], k=None if info.needs_equal_ranks else K)
        if "random_state" in info.parameters:
            make_one = partial(make_one, random_state=0)
        if info.spaces:
            delta[f"{info.method}, delta"] = make_one(space="delta")
            whole[f"{info.method}, core"] = make_one(space="core")
            if info.method == "ties":
                whole[f"{info.method}, knots"] = make_one(space="knots")
        elif info.method == "lego":
            whole |= {name: make_one(n_init=n) for name, n in LEGO.items()}
        else:
            whole[info.method] = make_one()
    first = ["svd", *LEGO, "ties, core", "ties, knots"]
    return {name: whole[name] for name in [*first, *(n for n in whole if n not in first)]}, delta


def merge(merger: Any, paths: Sequence[Path], out: Path) -> None:
    """Merge from files to a file, results on disk in between."""
    digests.digest.cache_clear()  # a process hashes an input once, and this one merges them many times
    merger = clone(merger)
    with results_on_disk(out.parent):
        merger.fit(load_adapters(paths))
    save_adapter(merger.merged_, out, overwrite=True)


def read_with_safetensors(paths: Sequence[Path]) -> None:
    """Read and convert all tensors, each file opened once."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path / WEIGHTS, "pt")) for path in paths]
        for key in files[0].keys():  # noqa: SIM118 (it is no mapping)
            for file in files:
                file.get_tensor(key).float()


def write_with_safetensors(tensors: dict[str, torch.Tensor], out: Path) -> None:
    """Write one file, and wait until it is on the disk."""
    save_file(tensors, out)
    with out.open("rb") as file:
        os.fsync(file.fileno())


def read_with_lorakit(paths: Sequence[Path]) -> None:
    """Read, convert and scale all modules of all adapters, as a merger does."""
    X = load_adapters(paths)
    for module in X.module_names:
        X.factors(module)


def hash_files(paths: Sequence[Path]) -> None:
    """Hash the inputs, as save_adapter does for the model card."""
    for path in paths:
        with (path / WEIGHTS).open("rb") as file:
            hashlib.file_digest(file, "sha256")


def floor_jobs(paths: Sequence[Path], out: Path) -> dict[str, Callable[[], object]]:
    """What any merge does, in two ways."""
    infos = load_adapters(paths[:1])[0].infos
    generator = torch.Generator().manual_seed(0)
    new = {}
    for module, info in infos.items():
        a, b = (torch.randn(*s, generator=generator).bfloat16() for s in ((K, info.d_in), (info.d_out, K)))
        new[module] = LoraFactors(a, b)
    factors = {f"{m}.{name}": half for m, f in new.items() for name, half in zip("AB", f, strict=True)}
    return {
        "read, cast: safetensors": partial(read_with_safetensors, paths),
        "write rank 32: safetensors": partial(write_with_safetensors, factors, out.parent / "floor.safetensors"),
        "read, cast: lorakit": partial(read_with_lorakit, paths),
        "write rank 32: lorakit": partial(save_adapter, Adapter(new, name="new"), out, overwrite=True),
        "hash of the inputs": partial(hash_files, paths),
    }


class Load:
    """Adapters in files, and what was measured on them."""

    def __init__(self, title: str, paths: Sequence[Path], methods: dict[str, Any], out: Path, repeat: int) -> None:
        self.title = title
        self.n_modules = len(load_adapters(paths[:1]).module_names)
        floors = floor_jobs(paths, out)
        print(f"{title}: {self.n_modules} modules", file=sys.stderr)
        merges = {name: partial(merge, merger, paths, out) for name, merger in methods.items()}
        self.costs = interleaved(floors | merges, repeat=repeat)
        self.floors = {
            way: self.costs[f"read, cast: {way}"] + self.costs[f"write rank 32: {way}"]
            for way in ("safetensors", "lorakit")
        }
        self.parts = {name: self.costs[name] for name in floors}
        self.merges = {name: self.costs[name] for name in methods}

    def of_svd(self) -> Files:
        """What the merge by SVD takes, and its files."""
        jobs = ("read, cast: lorakit", "write rank 32: lorakit", "hash of the inputs")
        return Files(*(self.parts[name].cpu for name in jobs), self.merges["svd"].cpu, self.n_modules)

    def rows(self, peaks: dict[str, float]) -> list[list[str]]:
        """Rows of the table."""
        named = {
            **{name: self.parts[name] for name in self.parts},
            **{f"floor: {way}": found for way, found in self.floors.items()},
            **self.merges,
        }
        return [
            [name, str(self.n_modules), f"{c.cpu:.2f}", f"{c.wall:.2f}", *self.ratios(c), str(c.runs)]
            + ([f"{peaks[name]:.0f}" if name in peaks else ""] if peaks else [])
            for name, c in named.items()
        ]

    def short_rows(self, peaks: dict[str, float]) -> list[list[str]]:
        """Rows of the table without the floor, beside which these take too long."""
        return [
            [name, f"{c.cpu:.2f}", f"{c.wall:.2f}", self.ratios(c)[2], str(c.runs)]
            + ([f"{peaks[name]:.0f}" if name in peaks else ""] if peaks else [])
            for name, c in self.merges.items()
        ]

    def ratios(self, c: Cost) -> list[str]:
        """CPU time over the floors' and over SVD's."""
        bases = [self.floors["safetensors"], self.floors["lorakit"], self.merges["svd"]]
        return [f"{c.cpu / base.cpu:.2f}" for base in bases]


def targets(whole: Load) -> Table:
    """What was aimed at, and what came of it."""
    aims = [(method, way, 3) for way in ("safetensors", "lorakit") for method in ("svd", *LEGO)]
    aims += [(f"ties, {space}", "svd", 2) for space in ("core", "knots")]
    rows = []
    for method, what, limit in aims:
        base = whole.merges["svd"] if what == "svd" else whole.floors[what]
        ratio = whole.merges[method].cpu / base.cpu
        aim = f"{limit} x {what}" if what == "svd" else f"{limit} x floor ({what})"
        rows.append([method, aim, f"{ratio:.2f}", "met" if ratio <= limit else "missed"])
    return Table("targets", ("method", "target", "measured", "verdict"), rows)


def sweep(paths: Sequence[Path], repeat: int) -> Table:
    """Eight values of k: one path, and eight fits, against one fit."""
    X = load_adapters(paths)
    rows = []
    for method in SWEPT:
        merger = all_estimators("merger")[method](k=K, **({"random_state": 0} if method == "lego" else {}))
        found = interleaved(
            {
                "one fit": lambda m=merger: clone(m).fit(X),
                "path": lambda m=merger: rank_path(m, X, KS),
                "fits": lambda m=merger: [clone(m).set_params(k=k).fit(X) for k in KS],
            },
            repeat=repeat,
        )
        one, path, fits = (found[name].cpu for name in ("one fit", "path", "fits"))
        cells = [f"{one:.2f}", f"{path:.2f}", f"{path / one:.2f}", f"{fits:.2f}", f"{fits / one:.2f}"]
        rows.append([method, str(len(X.module_names)), *cells])
    titles = ("method", "modules", "one fit, CPU s", "path of 8, CPU s", "path / fit", "8 fits, CPU s", "8 fits / fit")
    return Table("sweep", titles, rows)


def peaks_of(loads: Sequence[tuple[Sequence[Path], dict[str, Any]]]) -> dict[str, float]:
    """Peak of anonymous memory of each merge in a fresh process, MB above that of two adapters of one layer."""
    tiny = make(loads[0][0][0].parents[1], adapters=2, layers=1)
    run = [sys.executable, __file__, "--one"]
    own = peak_of([*run, "svd", *map(str, tiny)]).anonymous
    return {
        name: peak_of([*run, name, *map(str, paths)]).anonymous - own for paths, methods in loads for name in methods
    }


def delta_load(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Adapters of one module, for what is too slow for all."""
    out = [folder / f"{paths[0].parent.name}-delta" / path.name for path in paths]
    for adapter, path in zip(load_adapters(paths), out, strict=True):
        if not path.exists():
            save_adapter(adapter.select(DELTA_MODULES), path)
    return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3, help="interleaved repeats, of which the least counts")
    parser.add_argument("--sweep-layers", type=int, default=1, help="layers for the sweep over k; 0 leaves it out")
    parser.add_argument("--memory", action="store_true", help="peak memory too: each method in a process of its own")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--page", type=Path, help="write the tables into this docs page")
    options = parser.parse_args()
    paths = make(options.folder, adapters=options.adapters, layers=options.layers)
    few = delta_load(options.folder, paths)
    on_all, on_few = mergers()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch, single_thread():
        out = Path(scratch, "merged")
        whole = Load("whole adapters", paths, on_all, out, options.repeat)
        part = Load("one module", few, {"svd": on_all["svd"], **on_few}, out, options.repeat)
        one_layer = make(options.folder, adapters=options.adapters, layers=1)
        tables = [targets(whole), *steps_of_svd(one_layer, whole.of_svd(), K, options.repeat)]
        if options.sweep_layers:
            swept = make(options.folder, adapters=options.adapters, layers=options.sweep_layers)
            tables.append(sweep(swept, options.repeat))
    peaks = peaks_of([(paths, on_all), (few, on_few)]) if options.memory else {}
    peak = ["peak MB"] if peaks else []
    titles = ["what", "modules", "CPU s", "wall s", "x safetensors", "x lorakit", "x SVD", "runs", *peak]
    tables[:0] = [
        Table("speed", titles, whole.rows(peaks)),
        Table("delta", ["method", "CPU s", "wall s", "x SVD", "runs", *peak], part.short_rows(peaks)),
    ]
    publish(tables, options.page)
    size = sum((path / WEIGHTS).stat().st_size for path in paths) / 1e6
    print(
        f"\n{options.adapters} adapters of rank 16, {options.layers} layers of {len(SHAPES)} modules, {size:.0f} MB in "
        f"bfloat16; results of rank {K}. One thread, CPU time (user and system); the least of {options.repeat} runs."
    )
    print(measuring.machine())
    if options.json:
        numbers = {
            load.title: {name: {"cpu": c.cpu, "wall": c.wall} for name, c in load.costs.items()}
            for load in (whole, part)
        }
        found = {"machine": measuring.machine(), "megabytes": size, "costs": numbers, "peaks": peaks}
        options.json.write_text(json.dumps(found | {t.name: [t.titles, *t.rows] for t in tables}, indent=2) + "\n")


def merge_one(method: str, *paths: str) -> None:
    """Run one row in this process."""
    on_all, on_few = mergers()
    folder = Path(paths[0]).parents[1]
    with tempfile.TemporaryDirectory(dir=folder) as scratch, single_thread():
        merge((on_all | on_few)[method], [Path(path) for path in paths], Path(scratch, "merged"))


if __name__ == "__main__":
    merge_one(*sys.argv[2:]) if sys.argv[1:2] == ["--one"] else main()
