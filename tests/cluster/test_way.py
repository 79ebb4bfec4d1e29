"""How many files and functions one clustering passes, from the request to the labels: counted, and kept few."""

import sys
from pathlib import Path

import numpy as np
import pytest

import lorakit
from lorakit import LegoMerger, MSUKMeans
from lorakit.testing import make_adapters

PACKAGE = Path(lorakit.__file__).parent


def way(job):
    """Return the files of cluster/ and merging/ that a call enters, the functions, and how often they return."""
    entered, returns = [], 0

    def watch(frame, event, _):
        nonlocal returns
        code = frame.f_code
        path = Path(code.co_filename)
        if (
            code.co_name.startswith("<")
            or PACKAGE not in path.parents
            or path.parent.name not in ("cluster", "merging")
        ):
            return
        if event == "call":
            entered.append((path.name, code.co_name))
        returns += event == "return"

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        job()
    finally:
        sys.setprofile(before)
    return {file for file, _ in entered}, set(entered), returns


@pytest.mark.parametrize(
    ("backend", "n_files", "n_functions"), [("numpy", 8, 35), ("torch", 8, 36), ("sklearn", 7, 31)]
)
def test_one_module_of_a_merge(backend, n_files, n_functions):
    updates = [adapter["layer.0"] for adapter in make_adapters(ranks=(8, 8, 8), n_modules=1, random_state=0)]
    merger, weights = LegoMerger(backend=backend), np.full(3, 1 / 3)
    files, functions, _ = way(lambda: merger._merge_module_path(updates, weights, [6], np.random.RandomState(0)))
    assert len(files) <= n_files, files
    assert len(functions) <= n_functions, functions


@pytest.mark.parametrize(
    ("backend", "n_files", "n_functions"), [("numpy", 5, 26), ("torch", 5, 27), ("sklearn", 4, 22)]
)
def test_one_fit_of_msukmeans(backend, n_files, n_functions):
    kmeans, X = MSUKMeans(6, random_state=0, backend=backend), np.random.default_rng(0).standard_normal((60, 100))
    files, functions, _ = way(lambda: kmeans.fit(X))
    assert len(files) <= n_files, files
    assert len(functions) <= n_functions, functions
