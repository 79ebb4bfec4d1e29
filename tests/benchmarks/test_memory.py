"""Memory of a merge: that of one module, however many modules the model has."""

import sys

import pytest
from memory import merge_command, peak_of
from model_scale import SHAPES, make

ADAPTERS, RANK = 8, 16
# MB of the widest module's factors of all adapters, in float32: what a merge works on at one time
POOL = ADAPTERS * RANK * max(sum(shape) for shape in SHAPES.values()) * 4 / 1e6

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def peak(folder, method, adapters, *, layers, k=16, rank=RANK, jobs=1, how="disk"):
    paths = make(folder, adapters=adapters, layers=layers, rank=rank)
    return peak_of(merge_command(method, paths, folder / "merged", k=k, jobs=jobs, how=how)).anonymous


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model-scale")


@pytest.fixture(scope="module")
def own(folder):
    return peak(folder, "svd", 2, layers=1, rank=1, k=2)


# Copies of the factors that a method has at its peak; documented in docs/results/memory.rst
@pytest.mark.parametrize("how", ["disk", "cli"])
@pytest.mark.parametrize(("method", "copies"), [("svd", 5), ("lego", 10)])
def test_memory_is_that_of_one_module(method, copies, how, folder, own):
    few, many = (peak(folder, method, ADAPTERS, layers=layers, how=how) for layers in (1, 6))
    assert few - own < copies * POOL
    assert many < 1.2 * few


@pytest.mark.parametrize("method", ["svd", "lego"])
def test_two_jobs_hold_two_modules(method, folder, own):
    one, two = (peak(folder, method, ADAPTERS, layers=2, jobs=jobs) - own for jobs in (1, 2))
    assert two < 2.5 * one


def test_results_in_memory_grow_with_the_model(folder):
    on_disk, in_memory = (peak(folder, "svd", 2, layers=12, how=how) for how in ("disk", "memory"))
    assert in_memory > on_disk + 15  # of the 30 MB that the result has
