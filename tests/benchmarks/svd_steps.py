"""Where the time of merging by SVD goes, and what a merge as exact would take at least on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import Table, interleaved

from lorakit import load_adapters
from lorakit.linalg import frame_of, split_svd, svd_of_sum
from lorakit.linalg.frames import combine_rows, joined
from lorakit.linalg.products import gram_of

EIGENVECTORS = "eigenvectors of an R x R matrix"


class Files(NamedTuple):
    """What SVD does with files, and all that it takes: CPU seconds on whole adapters."""

    read: float
    write: float
    digest: float
    all: float
    n_modules: int


class Flops(NamedTuple):
    """Operations of the products of whole adapters, an addition and a multiplication each one."""

    gram: float  # R^2 (d_in + d_out) of each module: a symmetric matrix, of which a half is computed
    vectors: float  # 2 R k (d_in + d_out)


def steps_of_svd(paths: Sequence[Path], files: Files, k: int, repeat: int) -> list[Table]:
    """Where the time of SVD goes, from the factors of one layer, in memory, and the least that it could be."""
    algebra, flops = _algebra(paths, files.n_modules, k, repeat)
    steps = {
        "read, cast, scale": files.read,
        **algebra,
        "write": files.write,
        "hash of the inputs": files.digest,
    }
    steps["the rest: small products, loop, checks, results on disk"] = files.all - sum(steps.values())
    rows = [
        [name, f"{took:.2f}", f"{100 * took / files.all:.0f}%"] for name, took in (steps | {"all": files.all}).items()
    ]
    parts = Table("parts", ("step of SVD", "CPU s", "share"), rows)
    return [parts, _bound(files, algebra[EIGENVECTORS], flops, repeat)]


def _bound(files: Files, eigenvectors: float, flops: Flops, repeat: int) -> Table:
    """What an exact merge takes if its products run as fast as the fastest of this machine, and all else is free."""
    speed = {dtype: _fastest(dtype, max(3, repeat)) for dtype in (np.float64, np.float32)}
    steps = {
        "read, cast, scale; write": files.read + files.write,
        f"Gram matrices, {flops.gram / 1e9:.0f} GFLOP in float64": flops.gram / speed[np.float64],
        EIGENVECTORS: eigenvectors,
        f"k singular vectors, {flops.vectors / 1e9:.0f} GFLOP in float32": flops.vectors / speed[np.float32],
    }
    floor = files.read + files.write
    rows = [
        [name, f"{took:.2f}", f"{took / floor:.2f}"] for name, took in (steps | {"all": sum(steps.values())}).items()
    ]
    print(
        "fastest products, GFLOP a second: "
        + ", ".join(f"{dtype.__name__} {rate / 1e9:.0f}" for dtype, rate in speed.items()),
        file=sys.stderr,
    )
    return Table("bound", ("step", "CPU s, at least", "x lorakit"), rows)


def _fastest(dtype: type[np.floating], repeat: int) -> float:
    """Operations a second of a product of square matrices, which BLAS is best at."""
    n = 1024
    x, y = (np.random.RandomState(seed).standard_normal((n, n)).astype(dtype) for seed in (0, 1))
    found = interleaved({f"product in {dtype.__name__}": lambda: x @ y}, repeat=5 * repeat)
    return 2 * n**3 / next(iter(found.values())).cpu


def _algebra(paths: Sequence[Path], n_modules: int, k: int, repeat: int) -> tuple[dict[str, float], Flops]:
    X = load_adapters(paths)
    modules = [X.factors(module) for module in X.module_names]
    weights = [1 / len(X)] * len(X)
    outputs = [joined([u.B for u in updates]) for updates in modules]
    inputs = [joined([u.A.mT for u in updates]) for updates in modules]
    frames = [frame_of([columns]) for columns in outputs]
    # of the size, and as well separated, as those whose eigenvectors are wanted
    cores = [
        frame.blocks[0] @ gram_of([columns]) @ frame.blocks[0].mT for frame, columns in zip(frames, inputs, strict=True)
    ]
    few = [torch.linalg.eigh(core).eigenvectors[:, -k:] for core in cores]
    svds = [svd_of_sum(updates, weights, k) for updates in modules]
    sides = [side for updates in modules for side in ([u.B for u in updates], [u.A.mT for u in updates])]
    # one after another, and none is kept: fresh memory would count as work
    found = interleaved(
        {
            "pool": partial(each, joined, sides),
            "gram": partial(each, lambda columns: gram_of([columns]), outputs + inputs),
            "gram, outputs": partial(each, lambda columns: gram_of([columns]), outputs),
            "frames": partial(each, lambda columns: frame_of([columns]), outputs),
            "eigen": partial(each, torch.linalg.eigh, cores),
            "outputs": partial(each, lambda i: frames[i].expand(few[i]), range(len(few))),
            "inputs": partial(each, lambda i: combine_rows(few[i].mT, inputs[i].mT, double=False), range(len(few))),
            "split": partial(each, lambda svd: split_svd(*svd, k), svds),
        },
        repeat=max(3, repeat),
    )
    times = n_modules / len(modules)
    cpu = {name: times * c.cpu for name, c in found.items()}
    algebra = {
        "putting the units of all adapters together": cpu["pool"],
        "Gram matrices, R^2 (d_in + d_out) in float64": cpu["gram"],
        "Cholesky factor and its inverse, for outputs": cpu["frames"] - cpu["gram, outputs"],
        EIGENVECTORS: cpu["eigen"],
        "k singular vectors, R k (d_in + d_out)": cpu["outputs"] + cpu["inputs"],
        "signs, splitting": cpu["split"],
    }
    lengths = [(columns.shape[1], len(columns)) for columns in outputs + inputs]
    flops = Flops(times * sum(r * r * d for r, d in lengths), times * sum(2 * r * k * d for r, d in lengths))
    return algebra, flops


def each(job: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Run a job on every item."""
    for item in items:
        job(item)
