#!/usr/bin/env python
"""Time lorakit against PEFT's add_weighted_adapter, scikit-learn's k-means and torch's sketch, and compare results.

    python tests/benchmarks/against.py                  # minutes: PEFT decomposes whole updates
    python tests/benchmarks/against.py --widths 512

Every call of PEFT runs in a process of its own, on a model of one linear layer, and is stopped after --limit seconds
by the clock. One thread, CPU time; the least of several calls where they are short. It exits with 1 if results that
should be the same are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measuring
import numpy as np
import torch
from measuring import Cost, Table, cost, interleaved, least, made_adapters, publish, single_thread
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans

from lorakit import (
    Adapter,
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    DareMerger,
    LoraFactors,
    MagnitudeMerger,
    MSUKMeans,
    SVDMerger,
    TiesMerger,
)
from lorakit.linalg import frobenius_norm
from lorakit.metrics import relative_error

RANK, K, DENSITY = 16, 16, 0.5
SHORT = 1.0  # seconds of calls after which no more are made
KEPT = 0.99  # share of the norm of the best update of rank k that a sketch is to keep
AGREES = 1e-4  # relative difference of two updates in float32
DRAWS = "random draws of its own"
ONES = "weights 1: equal weights only"
ROOTS = "weights enter A and B by their roots"


class Pair(NamedTuple):
    """A combination of PEFT's, and what of ours gives the same update."""

    peft: str
    weight: Callable[[int], float]  # PEFT's weight of each of T adapters
    ours: Callable[[int], Any]
    bound: float | None  # largest relative difference of the updates; None where they are not to be the same
    note: str


def mean(T: int) -> float:
    """Weights that sum to 1."""
    return 1 / T


def one(T: int) -> float:
    """Weights of PEFT's sign elections, which already take a mean."""
    return 1.0


# On wide updates ours sketches where PEFT decomposes. Behind a sparse mask singular values decay slowly: the two keep
# somewhat different directions, of which PEFT's are the best, and ours are to keep nearly as much of the norm.
SKETCHED = "cut by a sketch"
PAIRS = [
    Pair("linear", mean, lambda T: AverageMerger(scale=float(T)), AGREES, ROOTS),
    Pair("cat", mean, lambda T: ConcatMerger(), AGREES, ""),
    Pair("svd", mean, lambda T: SVDMerger(k=K), AGREES, "A holds no singular values, B all of them"),
    Pair("ties", one, lambda T: TiesMerger(space="factors", density=DENSITY), AGREES, ONES),
    Pair(
        "magnitude_prune",
        mean,
        lambda T: MagnitudeMerger(space="factors", density=DENSITY, scale=float(T)),
        AGREES,
        ROOTS,
    ),
    Pair("dare_linear", mean, lambda T: DareMerger(space="factors", density=DENSITY, random_state=0), None, DRAWS),
    Pair(
        "dare_ties",
        one,
        lambda T: DareMerger(space="factors", density=DENSITY, sign_election=True, random_state=0),
        None,
        DRAWS,
    ),
    Pair("ties_svd", one, lambda T: TiesMerger(k=K, density=DENSITY), None, SKETCHED),
    Pair("magnitude_prune_svd", mean, lambda T: MagnitudeMerger(k=K, density=DENSITY), None, SKETCHED),
    Pair("dare_linear_svd", mean, lambda T: DareMerger(k=K, density=DENSITY, random_state=0), None, DRAWS),
    Pair(
        "dare_ties_svd",
        one,
        lambda T: DareMerger(k=K, density=DENSITY, sign_election=True, random_state=0),
        None,
        DRAWS,
    ),
]


def loaded(width: int, n_adapters: int) -> AdapterSet:
    """The adapters of one run, the same in every process.

    In float32: in bfloat16 many entries have the magnitude at which masks cut, and which of them stay is arbitrary.
    """
    return made_adapters(n_adapters, {"0": (width, width)}, rank=RANK, dtype=torch.float32)


def several(job: Callable[[], object]) -> Cost:
    """Call until it has taken a second."""
    costs = [cost(job)]
    while len(costs) < 5 and sum(c.wall for c in costs) < SHORT:
        costs.append(cost(job))
    return least(costs)


def run_peft(combination: str, width: int, n_adapters: int, weight: float, out: Path) -> None:
    """Merge with PEFT, in this process; print what it took and write the update."""
    import peft
    from torch import nn

    X = loaded(width, n_adapters)
    model: Any = nn.Sequential(nn.Linear(width, width, bias=False))
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    for i, adapter in enumerate(X):
        if i:
            model.add_adapter(adapter.name, config)
        else:
            model = peft.get_peft_model(model, config, adapter_name=adapter.name)
    layer = model.base_model.model[0]
    for adapter in X:
        layer.lora_A[adapter.name].weight.data, layer.lora_B[adapter.name].weight.data = adapter["0"]
    options = {"svd_rank": K} if combination.endswith("svd") else {}
    if "ties" in combination or "dare" in combination or "magnitude" in combination:
        options["density"] = DENSITY

    def call() -> None:
        if "merged" in model.peft_config:
            model.delete_adapter("merged")
        model.add_weighted_adapter(list(X.names), [weight] * len(X), "merged", combination_type=combination, **options)

    with single_thread():
        took = several(call)
    scaled = layer.scaling["merged"] * layer.lora_B["merged"].weight.data
    save_file({"A": layer.lora_A["merged"].weight.data.contiguous(), "B": scaled.contiguous()}, out)
    print(json.dumps(took))


def by_peft(pair: Pair, width: int, n_adapters: int, limit: int) -> tuple[Cost, Adapter] | None:
    """Merge with PEFT in a fresh process; None if it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "merged.safetensors")
        arguments = [pair.peft, str(width), str(n_adapters), str(pair.weight(n_adapters)), str(out)]
        command = [sys.executable, __file__, "--peft", *arguments]
        try:  # by the clock: under a limit of CPU time the system counts that time in steps of milliseconds
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            raise RuntimeError(f"PEFT's {pair.peft} failed:\n{done.stderr}")
        found = load_file(out)
    return Cost(*json.loads(done.stdout.splitlines()[-1])), Adapter({"0": LoraFactors(found["A"], found["B"])})


def against_peft(width: int, n_adapters: int, limit: int) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and what disagrees."""
    X = loaded(width, n_adapters)
    rows, wrong = [], []
    for pair in PAIRS:
        merger = pair.ours(n_adapters)
        merger.fit(X)  # what is imported at the first use
        ours = several(lambda m=merger: m.fit(X))
        theirs = by_peft(pair, width, n_adapters, limit)
        note = pair.note
        row = [str(width), str(n_adapters), pair.peft, type(merger).__name__, f"{1e3 * ours.cpu:.1f}"]
        if theirs is None:
            row += [f"over {limit} s", "", ""]
        else:
            took, merged = theirs
            row += [f"{1e3 * took.cpu:.1f}", f"{took.cpu / ours.cpu:.1f}"]
            differs = relative_error(merger.merged_, merged)
            row.append("" if pair.note == DRAWS else f"{differs:.0e}")
            if pair.note == SKETCHED:
                norms = [float(frobenius_norm(found["0"])) for found in (merger.merged_, merged)]
                note = f"{note}: norm {norms[0] / norms[1]:.4f} of PEFT's"
                if norms[0] < KEPT * norms[1]:
                    wrong.append(f"{pair.peft}, {width} wide, {n_adapters} adapters: {note}")
            if pair.bound is not None and differs > pair.bound:
                wrong.append(f"{pair.peft}, {width} wide, {n_adapters} adapters: differs by {differs:.1e}")
        rows.append([*row, note])
        print("  " + ", ".join(rows[-1]), file=sys.stderr)
    return rows, wrong


def against_sketch(width: int, n_adapters: int, repeat: int) -> Table:
    """SVDMerger against torch.svd_lowrank on the dense mean: time, and error beyond the least possible."""
    X = loaded(width, n_adapters)
    factors = X.factors("0")
    dense: dict[int, Any] = {}

    def sketch(niter: int) -> None:
        torch.manual_seed(0)
        product = sum((u.B @ u.A for u in factors[1:]), factors[0].B @ factors[0].A) / len(factors)
        dense[niter] = torch.svd_lowrank(product, q=K, niter=niter)

    merger = SVDMerger(k=K)
    jobs: dict[str, Callable[[], object]] = {"SVDMerger": lambda: merger.fit(X)}
    jobs |= {f"torch.svd_lowrank, niter={n}": lambda n=n: sketch(n) for n in (2, 6)}
    found = interleaved(jobs, repeat=repeat)
    best = merger.truncation_error_["0"]
    product = sum(u.B.double() @ u.A.double() for u in factors) / len(factors)
    updates = {"SVDMerger": merger.merged_["0"].B.double() @ merger.merged_["0"].A.double()}
    updates |= {f"torch.svd_lowrank, niter={n}": (u * s).double() @ v.double().mT for n, (u, s, v) in dense.items()}
    rows = []
    for name, c in found.items():
        error = float((product - updates[name]).norm())
        excess = f"{100 * max(0.0, error / best - 1):.4f}%"  # float32 can come out below
        rows.append(
            [
                name,
                f"{1e3 * c.cpu:.1f}",
                f"{c.cpu / found['SVDMerger'].cpu:.1f}",
                f"{error / product.norm():.4f}",
                excess,
            ]
        )
    return Table("sketch", ("what", "CPU ms", "x ours", "error / norm", "beyond Eckart-Young"), rows)


def against_kmeans(width: int, n_adapters: int, repeat: int) -> Table:
    """MSUKMeans against KMeans on the same units: time, and inertia over several seeds."""
    units = loaded(width, n_adapters).msus("0").numpy()
    k = 2 * RANK
    rows = []
    for n_init, n_seeds in ((1, 60), (10, 10)):  # one start varies more
        seeds = range(n_seeds)
        models = {
            "MSUKMeans": lambda seed, n=n_init: MSUKMeans(k, n_init=n, random_state=seed),
            "KMeans, float32": lambda seed, n=n_init: KMeans(k, n_init=n, random_state=seed),
        }
        inertia: dict[str, list[float]] = {name: [] for name in models}

        def fit_all(name: str, make_one: Callable[[int], Any], into: dict[str, list[float]], seeds: range) -> None:
            into[name] = [float(make_one(seed).fit(units).inertia_) for seed in seeds]

        jobs = {name: lambda name=name, m=m, i=inertia, s=seeds: fit_all(name, m, i, s) for name, m in models.items()}
        found = interleaved(jobs, repeat=repeat)
        base = float(np.mean(inertia["MSUKMeans"]))
        for name, c in found.items():
            values = np.array(inertia[name]) / base
            rows.append(
                [
                    f"{name}, n_init={n_init}",
                    f"{1e3 * c.cpu / len(seeds):.1f}",
                    f"{c.cpu / found['MSUKMeans'].cpu:.1f}",
                    f"{values.mean():.4f}",
                    f"{values.std() / len(values) ** 0.5:.4f}",
                    f"{values.min():.4f}",
                ]
            )
    return Table("kmeans", ("what", "CPU ms", "x ours", "inertia, mean", "standard error", "least"), rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--adapters", nargs="+", type=int, default=[4, 8], help="for the largest width; others take 8")
    parser.add_argument("--limit", type=int, default=300, help="seconds by the clock for one process of PEFT")
    parser.add_argument("--repeat", type=int, default=3, help="interleaved repeats, for all but PEFT")
    parser.add_argument("--json", type=Path, help="write the tables to this file")
    parser.add_argument("--page", type=Path, help="write the tables into this docs page")
    options = parser.parse_args()
    largest = max(options.widths)
    with single_thread():
        tables = [
            against_sketch(largest, max(options.adapters), options.repeat),
            against_kmeans(largest, max(options.adapters), options.repeat),
        ]
        rows, wrong = [], []
        for width in options.widths:
            for n_adapters in options.adapters if width == largest else [8]:
                more, disagree = against_peft(width, n_adapters, options.limit)
                rows += more
                wrong += disagree
    titles = ("width", "adapters", "PEFT", "lorakit", "lorakit, CPU ms", "PEFT, CPU ms", "x ours", "differs by", "note")
    tables.insert(0, Table("peft", titles, rows))
    publish(tables, options.page)
    print(f"\nOne module of rank-{RANK} adapters, results of rank {K}, density {DENSITY}. {measuring.machine()}")
    if options.json:
        options.json.write_text(json.dumps({t.name: [t.titles, *t.rows] for t in tables}, indent=2) + "\n")
    if wrong:
        sys.exit("results differ that should not:\n" + "\n".join(wrong))


def _peft_here(arguments: Sequence[str]) -> None:
    combination, width, n_adapters, weight, out = arguments
    run_peft(combination, int(width), int(n_adapters), float(weight), Path(out))


if __name__ == "__main__":
    _peft_here(sys.argv[2:]) if sys.argv[1:2] == ["--peft"] else main()
