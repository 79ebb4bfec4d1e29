#!/usr/bin/env python
"""Time SVD and LEGO against width, number of adapters, number of layers and workers, and extrapolate.

    python tests/benchmarks/scaling.py

Adapters of rank 16 in bfloat16, in memory: reading is in speed.py. CPU time of ``fit`` to rank 32 on one thread, the
least of interleaved repeats; the workers are timed by the clock. Exponents are least squares on logarithms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from measuring import Cost, Table, interleaved, made_adapters, publish, single_thread
from scipy.optimize import nnls

from lorakit import AdapterSet, LegoMerger, SVDMerger

RANK, K = 16, 32
MERGERS: dict[str, Callable[..., Any]] = {
    "svd": partial(SVDMerger, k=K),
    "lego": partial(LegoMerger, k=K, n_init=10, random_state=0),
}
LLAMA_70B = {  # (d_out, d_in) of one layer: the queries share keys and values
    "q_proj": (8192, 8192),
    "k_proj": (1024, 8192),
    "v_proj": (1024, 8192),
    "o_proj": (8192, 8192),
    "gate_proj": (28672, 8192),
    "up_proj": (28672, 8192),
    "down_proj": (8192, 28672),
}
LLAMA_7B = dict.fromkeys("qkvo", (4096, 4096)) | {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}
Point = tuple[str, float, float, float]  # method, R, d_in + d_out, CPU seconds of one module


def times_of(loads: dict[Any, AdapterSet], repeat: int, n_jobs: int | None = None) -> dict[tuple[str, Any], Cost]:
    """Fit every method on every load."""
    jobs = {
        f"{method} {x}": partial(lambda make_one, X: make_one(n_jobs=n_jobs).fit(X), make_one, X)
        for x, X in loads.items()
        for method, make_one in MERGERS.items()
    }
    found = interleaved(jobs, repeat=repeat)
    return {(method, x): found[f"{method} {x}"] for x in loads for method in MERGERS}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope on logarithmic axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def series(
    name: str, title: str, values: Sequence[int], load_of: Callable[[int], AdapterSet], repeat: int
) -> tuple[Table, list[Point]]:
    """Time over one quantity, a module's but for layers, and its exponents: of all values, and of the last two."""
    loads = {value: load_of(value) for value in values}
    found = times_of(loads, repeat)
    counts = {value: len(X.module_names) for value, X in loads.items()}
    per_module = {(method, value): c.cpu / counts[value] for (method, value), c in found.items()}
    points = []
    for value, X in loads.items():
        (info,) = {i for i in X.infos(X.module_names[0]) if i is not None}
        points += [(method, len(X) * RANK, info.d_in + info.d_out, per_module[method, value]) for method in MERGERS]
    shown = {key: c.cpu for key, c in found.items()} if name == "layers" else per_module
    rows = [[str(v), str(counts[v]), *(f"{1e3 * shown[method, v]:.1f}" for method in MERGERS)] for v in values]
    for label, last in (("exponent, all", values), ("exponent, last two", values[-2:])):
        rows.append([label, "", *(f"{exponent(last, [shown[m, v] for v in last]):.2f}" for m in MERGERS)])
    what = "ms" if name == "layers" else "ms a module"
    return Table(name, (title, "modules", *(f"{method}, {what}" for method in MERGERS)), rows), points


def workers(n_modules: int, repeat: int) -> Table:
    """Wall time with one worker and with two."""
    X = made_adapters(8, {f"m{i}": (4096, 4096) for i in range(n_modules)})
    jobs = {
        f"{method}, n_jobs={n}": partial(lambda make_one, n: make_one(n_jobs=n).fit(X), make_one, n)
        for method, make_one in MERGERS.items()
        for n in (1, 2)
    }
    found = interleaved(jobs, repeat=repeat)
    rows = []
    for method in MERGERS:
        one, two = (found[f"{method}, n_jobs={n}"] for n in (1, 2))
        rows.append(
            [method, f"{one.wall:.2f}", f"{two.wall:.2f}", f"{one.wall / two.wall:.2f}", f"{two.cpu / one.cpu:.2f}"]
        )
    return Table("workers", ("method", "1 worker, wall s", "2 workers, wall s", "speed-up", "CPU time, 2 / 1"), rows)


def terms(method: str, R: float, width: float) -> dict[str, float]:
    """What the work of a module consists of, in multiply-adds; width is d_in + d_out, and n what the units span."""
    if method == "lego":  # it clusters A and B together; starts and centres are a few, of R distances each
        n = min(R, width)
        return {"1": 1.0, "R d": R * width, "n R d": n * R * width, "small": n * R * R}
    n = min(R, width / 2)
    return {"1": 1.0, "R d": R * width, "n R d": n * R * width, "small": n * n * R}


def model(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """Fit nanoseconds a multiply-add to each method's terms: non-negative least squares of relative errors."""
    found = {}
    for method in MERGERS:
        mine = [(terms(m, R, width), cpu) for m, R, width, cpu in points if m == method]
        names = list(mine[0][0])
        rows = np.array([[t[name] / cpu for name in names] for t, cpu in mine])
        size = np.linalg.norm(rows, axis=0)
        coefficients, _ = nnls(rows / size, np.ones(len(rows)))
        error = np.abs(rows / size @ coefficients - 1).max()
        found[method] = dict(zip(names, coefficients / size, strict=True)) | {"error": float(error)}
    return found


def predicted(method: str, rates: dict[str, float], R: float, width: float) -> float:
    """Seconds for one module."""
    return sum(rates[name] * amount for name, amount in terms(method, R, width).items())


def extrapolated(rates: dict[str, dict[str, float]]) -> Table:
    """Time and memory of loads that were not run."""
    rows = []
    for title, shapes, layers, T in (
        ("7B, 8 adapters", LLAMA_7B, 32, 8),
        ("70B, 8 adapters", LLAMA_70B, 80, 8),
        ("7B, 64 adapters", LLAMA_7B, 32, 64),
        ("7B, 1,000 adapters", LLAMA_7B, 32, 1000),
        ("70B, 1,000 adapters", LLAMA_70B, 80, 1000),
    ):
        R = RANK * T
        widths = [sum(shape) for shape in shapes.values()]
        seconds = [layers * sum(predicted(m, rates[m], R, w) for w in widths) for m in MERGERS]
        largest = max(widths)
        rows.append(
            [
                title,
                str(R),
                f"{2 * R * layers * sum(widths) / 1e9:.2f}",
                *(hours(s) for s in seconds),
                f"{4 * R * largest / 1e6:.0f}",
                f"{8 * R * R / 1e6:.1f}",
            ]
        )
    titles = (
        "load",
        "R",
        "files, GB",
        *(f"{m}, CPU time" for m in MERGERS),
        "R d in float32, MB",
        "R^2 in float64, MB",
    )
    return Table("extrapolated", titles, rows)


def hours(seconds: float) -> str:
    """Return a time in a unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def rate_table(rates: dict[str, dict[str, float]]) -> Table:
    """What the extrapolation multiplies."""
    names = [name for name in next(iter(rates.values())) if name != "error"]
    rows = [
        [method, f"{1e3 * r['1']:.1f}", *(f"{1e9 * r[n]:.3f}" for n in names if n != "1"), f"{100 * r['error']:.0f}%"]
        for method, r in rates.items()
    ]
    titles = ("method", "fixed, ms", *(f"{n}, ns" for n in names if n != "1"), "largest error")
    return Table("rates", titles, rows)


def square(d: int, n_modules: int) -> dict[str, tuple[int, int]]:
    """Shapes of some square modules."""
    return {f"m{i}": (d, d) for i in range(n_modules)}


def main() -> None:
    """Measure, fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="interleaved repeats, of which the least counts")
    parser.add_argument("--quick", action="store_true", help="smaller values, to try the script")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--page", type=Path, help="write the tables into this docs page")
    options = parser.parse_args()
    widths = [256, 512, 1024] if options.quick else [1024, 2048, 4096, 8192, 16384]
    counts = [2, 4, 8] if options.quick else [2, 4, 8, 16, 32, 64]
    many = [4, 16] if options.quick else [16, 64, 256]
    layers = [1, 4] if options.quick else [1, 5, 20, 80]
    d = 512 if options.quick else 4096
    with single_thread():
        tables, points = [], []
        for name, title, values, load_of in (
            ("width", "d_in = d_out", widths, lambda width: made_adapters(8, square(width, 4))),
            ("adapters", "adapters", counts, lambda T: made_adapters(T, square(d, 4 if T < 32 else 1))),
            ("many", "adapters", many, lambda T: made_adapters(T, square(d // 8, 1))),
            ("layers", "layers", layers, lambda n: made_adapters(8, square(min(d, 1024), 7 * n))),
        ):
            table, found = series(name, title, values, load_of, options.repeat)
            tables.append(table)
            points += found
        tables.append(workers(2 if options.quick else 64, options.repeat))
    rates = model(points)
    tables += [rate_table(rates), extrapolated(rates)]
    publish(tables, options.page)
    print(
        f"\nCPU time of fit (user and system) on one thread; the least of {options.repeat} runs. {measuring.machine()}"
    )
    if options.json:
        found = {"machine": measuring.machine(), "rates": rates, "points": points}
        options.json.write_text(json.dumps(found | {t.name: [t.titles, *t.rows] for t in tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
