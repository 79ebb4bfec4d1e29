"""The loop over modules: seeds, threads, progress, errors."""

import mmap
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from lorakit import AdapterSet, LoraFactors
from lorakit._execution import base_seed, map_modules, module_rng, report_progress, to_compute, to_output
from lorakit.exceptions import OutputError
from lorakit.testing import make_adapters

X = AdapterSet(make_adapters(n_modules=5, random_state=0))


def name_of(adapters, module):
    return module


def threads_of(adapters, module):
    return {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}


def fail(adapters, module):
    if module == "layer.3":
        raise ArithmeticError("no")


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_results_come_in_order(n_jobs):
    assert map_modules(name_of, X, n_jobs=n_jobs, verbose=0) == list(X.module_names)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_one_thread_inside_a_task(n_jobs):
    before = threads_of(None, None)
    assert all(seen == {1} for seen in map_modules(threads_of, X, n_jobs=n_jobs, verbose=0))
    assert threads_of(None, None) == before


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_progress(n_jobs):
    calls = []
    with report_progress(lambda done, total: calls.append((done, total))):
        assert map_modules(name_of, X, n_jobs=n_jobs, verbose=0) == list(X.module_names)
    assert calls == [(i, 5) for i in range(1, 6)]
    map_modules(name_of, X, n_jobs=n_jobs, verbose=0)
    assert len(calls) == 5


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_errors_name_the_module_and_the_adapters(n_jobs):
    with pytest.raises(ArithmeticError) as caught:
        map_modules(fail, X, n_jobs=n_jobs, verbose=0)
    assert "layer.3" in caught.value.__notes__[0]
    assert "task1" in caught.value.__notes__[0]


def test_a_module_has_a_stream_of_its_own():
    draw = {name: module_rng(7, name).rand() for name in ("a", "b")}
    assert draw["a"] != draw["b"]
    assert module_rng(7, "a").rand() == draw["a"]
    assert module_rng(8, "a").rand() != draw["a"]


def test_base_seed_follows_random_state():
    assert base_seed(3) == base_seed(3) != base_seed(4)
    rng = np.random.RandomState(0)
    assert base_seed(rng) != base_seed(rng)


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_arithmetic_is_float32_or_better(given, computed):
    factors = LoraFactors(torch.ones(1, 2, dtype=given), torch.ones(3, 1, dtype=given))
    assert [f.dtype for f in to_compute([factors], None)] == [computed]


def test_one_dtype_for_all():
    mixed = [f["layer.0"] for f in (*make_adapters(1, dtype=torch.float64), *make_adapters(1, dtype=torch.bfloat16))]
    assert {f.dtype for f in to_compute(mixed, None)} == {torch.float64}


def test_what_does_not_fit_is_refused():
    big = LoraFactors(torch.full((1, 2), 1e5), torch.ones(3, 1))
    assert to_output(big, torch.bfloat16, "m").dtype == torch.bfloat16
    with pytest.raises(OutputError, match=r"'m'.*float16.*1e\+05.*bfloat16"):
        to_output(big, torch.float16, "m")


COUNT_FAULTS = """
import resource, sys
import torch
from lorakit._execution import _keep_freed_memory
if sys.argv[1] == "keep":
    _keep_freed_memory()
for round in range(20):
    several = [torch.zeros(2**20) for _ in range(8)]
    del several
    if round == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_freed_memory_is_used_again():
    """Or each module's matrices would be fresh pages, which the system fills with zeros one by one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", COUNT_FAULTS, "keep"]  # with another word, most runs of it take all pages anew
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    pages = 18 * 8 * 2**22 // mmap.PAGESIZE
    assert int(done.stdout) < pages / 4
