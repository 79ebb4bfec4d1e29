"""Time SVD and LEGO on the CPU and on a GPU, on adapters of the size of a language model's, and compare the results.

    python tests/benchmarks/gpu_engines.py --modules 28

Every engine that exists here gets a row; what is skipped is said. It exits with 1 if two engines disagree.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lorakit import Adapter, AdapterSet, LegoMerger, LoraFactors, SVDMerger, load_adapters, save_adapter
from lorakit.metrics import relative_error

WIDTHS = {  # one layer of a 7B Llama: name -> (d_in, d_out)
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 11008),
    "mlp.up_proj": (4096, 11008),
    "mlp.down_proj": (11008, 4096),
}
TOLERANCE = {"svd": 1e-4, "lego": 1e-4}  # of an update's norm; float32


class Row(NamedTuple):
    """One engine's run of one method."""

    method: str
    engine: str
    merger: Any  # fitted
    wall: float
    cpu: float
    peak: int | None  # bytes of device memory


def main() -> None:
    """Make adapters, run every engine, compare, print."""
    options = parse_options()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{name} {found}" for name, found in versions().items()))
    with tempfile.TemporaryDirectory() as folder:
        X = AdapterSet(made(i, options) for i in range(options.adapters))
        if options.files:
            for adapter in X:
                save_adapter(adapter, Path(folder, adapter.name))
            X = load_adapters([Path(folder, name) for name in X.names])
        n_bytes = sum(4 * adapter.n_parameters for adapter in X)
        console.print(
            f"{len(X)} adapters of rank {options.rank}, {options.modules} modules, {n_bytes / 1e6:.0f} MB "
            f"{'in files' if options.files else 'in memory'}, float32; k={options.k}, n_init={options.n_init}\n"
        )
        planned, skipped = engines(options)
        rows = [measured(*plan, X) for plan in planned]
        agreed = show(console, rows)
    for line in skipped:
        console.print(f"skipped: {line}", markup=False, highlight=False)
    if not agreed:
        sys.exit("engines disagree")


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=int, default=28, help="modules of every adapter (a 7B Llama has 224)")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("-k", type=int, default=32, help="rank of the results")
    parser.add_argument("--n-init", type=int, default=10)
    parser.add_argument("--files", action="store_true", help="read the adapters from files, module by module")
    parser.add_argument("--device", default="cuda", help="the device to compare with the CPU")
    return parser.parse_args()


def made(i: int, options: argparse.Namespace) -> Adapter:
    """Adapter i: half of every unit is noise of its own, half is a mixture of directions that all adapters share."""
    modules = {}
    for m in range(options.modules):
        layer, place = divmod(m, len(WIDTHS))
        name, (d_in, d_out) = list(WIDTHS.items())[place]
        common = torch.Generator().manual_seed(m)
        own = torch.Generator().manual_seed(1000 * (i + 1) + m)
        shared = torch.randn(options.rank, d_in + d_out, generator=common)
        mixed = torch.randn(options.rank, options.rank, generator=own).softmax(dim=1) @ shared
        units = mixed + 0.3 * torch.randn(options.rank, d_in + d_out, generator=own)
        modules[f"model.layers.{layer}.{name}"] = LoraFactors(0.01 * units[:, :d_in], 0.01 * units[:, d_in:].T)
    return Adapter(modules, name=f"task{i}")


def engines(options: argparse.Namespace) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """What can run here as (method, engine, estimator), and what cannot."""
    lego: dict[str, Any] = {"k": options.k, "n_init": options.n_init, "random_state": 0}
    planned: list[tuple[str, str, Any]] = [
        ("svd", "cpu", SVDMerger(options.k)),
        ("lego", "cpu, numpy", LegoMerger(**lego)),
        ("lego", "cpu, torch", LegoMerger(**lego, backend="torch")),
    ]
    try:
        torch.zeros(1, device=options.device).item()
    except Exception as error:
        return planned, [f"all rows on {options.device!r}: {str(error).splitlines()[0]}"]
    planned.append(("svd", options.device, SVDMerger(options.k, device=options.device)))
    skipped = []
    for backend in ("numpy", "sklearn", "torch", "cuml"):
        merger = LegoMerger(**lego, backend=backend, device=options.device)
        try:  # the first use of a device and of a library costs seconds
            merger.fit([made(0, argparse.Namespace(**vars(options) | {"modules": 1}))])
        except ImportError as error:
            skipped.append(str(error))
        else:
            planned.append(("lego", f"{options.device}, {backend}", merger))
    return planned, skipped


def measured(method: str, engine: str, merger: Any, X: AdapterSet) -> Row:
    """Fit once and take the time."""
    on_gpu = torch.cuda.is_available() and not engine.startswith("cpu")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    wall, cpu = time.perf_counter(), time.process_time()
    merger.fit(X)  # its result is on the host: nothing runs on
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Row(method, engine, merger, wall, cpu, torch.cuda.max_memory_allocated() if on_gpu else None)


def show(console: Console, rows: list[Row]) -> bool:
    """Print a table; return whether every engine agrees with its method's first."""
    table = Table(box=None)
    for title in ("method", "engine", "wall s", "CPU s", "peak MB", "update differs by", "inertia by", "same labels"):
        table.add_column(title, justify="left" if title in ("method", "engine") else "right")
    first: dict[str, Any] = {}
    agreed = True
    for method, engine, merger, wall, cpu, peak in rows:
        reference = first.setdefault(method, merger)
        differs = relative_error(merger.merged_, reference.merged_)
        agreed &= merger is reference or differs < TOLERANCE[method]
        cells = [method, engine, f"{wall:.2f}", f"{cpu:.2f}", "" if peak is None else f"{peak / 1e6:.0f}"]
        cells.append("" if merger is reference else f"{differs:.1e}")
        if method == "lego" and merger is not reference:
            inertia = [merger.inertia_[m] / reference.inertia_[m] - 1 for m in merger.inertia_]
            same = [np.array_equal(merger.labels_[m], reference.labels_[m]) for m in merger.labels_]
            cells += [f"{np.abs(inertia).max():.1e}", f"{sum(same)} of {len(same)}"]
        table.add_row(*cells)
    console.print(table)
    return agreed


def versions() -> dict[str, str]:
    """Machine and libraries."""
    found = {"Python": platform.python_version()}
    for name in ("lorakit", "torch", "scikit-learn", "cuml-cu13", "cuml-cu12"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found | {"machine": platform.machine(), "GPU": device}


if __name__ == "__main__":
    main()
