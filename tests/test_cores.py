"""How many modules are taken at a time where nobody says."""

import pytest
import torch

from lorakit import _cores
from lorakit._cores import bytes_of_module, free_memory, usable_cores, usable_jobs
from lorakit.adapter_set import AdapterSet
from lorakit.adapters import Adapter, ModuleInfo, ModuleKind
from lorakit.provenance import Provenance


class Infos:
    """A reader that has nothing to read."""

    def __init__(self, modules, rank, width):
        self.infos = {f"layer.{i}": ModuleInfo(rank, width, width, ModuleKind()) for i in range(modules)}
        self.dtype = torch.bfloat16


def adapters(n, *, modules, rank=16, width=4096):
    reader = Infos(modules, rank, width)
    return AdapterSet(Adapter.from_reader(reader, name=f"a{i}", provenance=Provenance()) for i in range(n))


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(_cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(_cores, "free_memory", lambda: 2**40)


def test_all_cores_for_a_large_job():
    assert usable_jobs(adapters(8, modules=64)) == 8


def test_no_more_than_there_are_modules():
    assert usable_jobs(adapters(64, modules=3)) == 3


def test_one_for_a_small_job():
    assert usable_jobs(adapters(2, modules=36, rank=8, width=384)) == 1


def test_one_on_a_gpu():
    assert usable_jobs(adapters(8, modules=64), device="cuda:0") == 1
    assert usable_jobs(adapters(8, modules=64), device="cpu") == 8


def test_as_many_as_memory_holds(monkeypatch):
    X = adapters(8, modules=64)
    one = bytes_of_module(X, "layer.0", whole_updates=False)
    for free, jobs in ((2 * one * 3 + 1, 3), (one, 1), (0, 1)):
        monkeypatch.setattr(_cores, "free_memory", lambda free=free: free)
        assert usable_jobs(X) == jobs
    monkeypatch.setattr(_cores, "free_memory", lambda: None)
    assert usable_jobs(X) == 8


def test_whole_updates_need_more():
    X = adapters(8, modules=1)
    more = bytes_of_module(X, "layer.0", whole_updates=True) - bytes_of_module(X, "layer.0", whole_updates=False)
    assert more == 3 * 4 * 4096**2


def test_more_ranks_than_the_widths_take_no_square_of_them():
    few, many = (bytes_of_module(adapters(n, modules=1), "layer.0", whole_updates=False) for n in (1000, 2000))
    assert many < 2.1 * few


def test_the_container_limits_memory(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  50 kB\n")
    assert free_memory(tmp_path) == 50 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 50 * 1024
    (group / "memory.max").write_text("5000\n")
    assert free_memory(tmp_path) == 4000
    (group / "memory.max").write_text("500\n")
    assert free_memory(tmp_path) == 0


def test_this_machine_has_memory_and_cores():
    free = free_memory()
    assert free is None or free > 0
    assert usable_cores() >= 1
