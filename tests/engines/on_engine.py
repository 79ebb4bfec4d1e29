"""Run estimators on one of joblib's engines and compare with the sequential results; prints what it saw, as JSON.

A script and not a test module: Dask and loky start workers that import it, and Ray wants a process of its own::

    python tests/engines/on_engine.py ENGINE FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import joblib
import numpy as np
import torch
from joblib.parallel import get_active_backend
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import make_pipeline

from lorakit import (
    AdapterSet,
    DareMerger,
    LegoMerger,
    LegoPruner,
    RegMeanMerger,
    SVDMerger,
    SVDPruner,
    TiesMerger,
    TSVMerger,
    load_adapters,
    results_on_disk,
)
from lorakit._execution import iter_modules, report_progress
from lorakit.activations import Grams
from lorakit.exceptions import CorruptFileError
from lorakit.testing import make_adapters

REAL = Path(__file__).parents[2] / "examples" / "adapters"
BROKEN = "encoder.layer.3.output.dense"
ESTIMATORS = {
    "lego": LegoMerger(k=8, random_state=0),
    "ties": TiesMerger(k=8),
    "ties on deltas": TiesMerger(k=8, space="delta"),
    "dare": DareMerger(k=8, random_state=0),
    "tsv": TSVMerger(k=8),
    "lego pruner": LegoPruner(k=4, random_state=0),
    "pipeline": make_pipeline(SVDPruner(k=4), LegoMerger(k=6, random_state=0)),
    "rank by energy, one scale": SVDMerger(k=0.5, scale="match", scale_scope="model"),
}


@contextmanager
def engine(name: str, n_workers: int = 2) -> Iterator[None]:
    """Start an engine of this machine and have joblib use it."""
    if name == "dask":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
            joblib.parallel_config("dask"),
        ):
            yield
    elif name == "ray":
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        ray.init(num_cpus=n_workers, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        try:
            with joblib.parallel_config("ray", n_jobs=n_workers):
                yield
        finally:
            ray.shutdown()
    else:
        with joblib.parallel_config(name, n_jobs=n_workers):
            yield


def equal(x: AdapterSet, y: AdapterSet) -> bool:
    """Whether two sets of adapters hold the same bits."""
    return x.names == y.names and all(
        list(a) == list(b)
        and all(torch.equal(p, q) and p.dtype == q.dtype for m in a for p, q in zip(a[m], b[m], strict=True))
        for a, b in zip(x, y, strict=True)
    )


def learned(estimator: object) -> dict[str, dict[str, object]]:
    """What an estimator learned of each module, as lists."""
    found = {k: v for k, v in vars(estimator).items() if k.endswith("_") and isinstance(v, dict)}
    return {k: {m: np.asarray(value).tolist() for m, value in v.items()} for k, v in found.items()}


def work_of(name: str) -> list[tuple[str, BaseEstimator, AdapterSet]]:
    """What to fit on what."""
    real = load_adapters(sorted(path.parent for path in REAL.glob("*/*.safetensors")))
    two_layers = AdapterSet(
        a.select(m for m in a if m.startswith(("encoder.layer.0.", "encoder.layer.5."))) for a in real
    )
    # Above the megabyte from which loky maps arrays into its workers, read-only
    wide = AdapterSet(make_adapters(n_adapters=2, n_modules=3, d_in=600, d_out=600, ranks=(480, 480), random_state=0))
    moments = [np.diag(np.linspace(1, 2, 600, dtype=np.float32)) + np.float32(i) for i in range(2)]
    grams = {a.name: Grams(dict.fromkeys(a, moment)) for a, moment in zip(wide, moments, strict=True)}
    work = [("svd", SVDMerger(k=8), real)]  # of all modules: more than one part where results do not stream
    work += [(label, estimator, two_layers) for label, estimator in ESTIMATORS.items()]
    work += [("in memory", SVDMerger(k=8), wide), ("with data", RegMeanMerger(k=8, grams=grams), wide)]
    # Every loop over modules starts Ray's workers anew, which takes seconds
    few = ("svd", "pipeline", "with data")  # adapters, two loops, arrays of a megabyte
    return [entry for entry in work if name != "ray" or entry[0] in few]


def compare(work: list[tuple[str, BaseEstimator, AdapterSet]], folder: Path) -> Iterator[tuple[str, str]]:
    """Fit on the configured engine and without any; yield what differs."""
    for label, estimator, X in work:
        here, there = clone(estimator), clone(estimator)
        with joblib.parallel_config("sequential"):
            wanted = here.fit_transform(X)
        calls: list[tuple[int, int]] = []
        with report_progress(lambda *call, calls=calls: calls.append(call)), results_on_disk(folder):
            got = there.fit_transform(X)
        n = len(X.module_names)
        if not equal(got, wanted):
            yield label, "factors"
        if learned(there) != learned(here):
            yield label, "what was learned"
        if calls != [(i + 1, n) for i in range(n)] * (len(calls) // n) or not calls:
            yield label, f"progress {calls}"


def fail(folder: Path) -> dict[str, object]:
    """Merge with an adapter that has a NaN in one module; return how that is reported."""
    paths = [Path(shutil.copytree(REAL / name, folder / name)) for name in ("langid", "wn_pos")]
    weights = paths[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    next(t for key, t in tensors.items() if BROKEN in key and "lora_A" in key)[0, 0] = torch.nan
    save_file(tensors, weights)
    started = time.perf_counter()
    try:
        SVDMerger(k=8).fit(load_adapters(paths))
    except CorruptFileError as error:
        told = [str(error), *error.__notes__]
    return {"told": told, "seconds": round(time.perf_counter() - started, 1)}


def stop_early(adapters: AdapterSet) -> None:
    """Leave a loop over modules after its first result, as an error on this side does."""
    with closing(iter_modules(lambda module: rank_of, adapters, n_jobs=None, verbose=0)) as results:
        next(results)


def rank_of(adapters: AdapterSet, module: str) -> int:
    return adapters.factors(module)[0].rank


def main(name: str, folder: Path) -> dict[str, object]:
    """Run everything on one engine."""
    work = work_of(name)
    with engine(name):
        # scikit-learn takes it along to the workers. No more than this: joblib waits forever where Dask warns in vain.
        warnings.filterwarnings("error", message="The given NumPy array is not writable")
        backend, _ = get_active_backend(prefer="threads")
        found = {"engine": type(backend).__name__, "streams": backend.supports_return_generator}
        found["compared"] = [label for label, _, _ in work]
        found["differences"] = list(compare(work, folder))
        found["failure"] = fail(folder)
        if found["streams"]:
            stop_early(work[0][2])
        found["differences afterwards"] = list(compare(work[:1], folder))
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
        print(json.dumps(main(sys.argv[1], Path(folder))))
