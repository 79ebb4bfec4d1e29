"""Results that forked processes write to the file where results are kept: the same bits, and nothing left behind."""

import os
import pickle
import signal
import sys

import pytest
import torch
from joblib import parallel_config

from lorakit import AdapterSet, SVDMerger, SVDPruner, TSVMerger, results, results_on_disk
from lorakit._execution import iter_modules, may_fork
from lorakit.exceptions import OutputError
from lorakit.testing import make_adapters

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")
fcntl = pytest.importorskip("fcntl")
PARENT = os.getpid()
X = AdapterSet(
    make_adapters(3, n_modules=7, d_in=200, d_out=150, ranks=(8, 4, 8), dtype=torch.bfloat16, random_state=0)
)


def in_processes(estimator, adapters, folder):
    """Merge or prune in two processes, on disk."""
    with may_fork(), parallel_config("threading", n_jobs=2), results_on_disk(folder):
        return estimator.fit_transform(adapters)


def same(x, y):
    for one, two in zip(x, y, strict=True):
        assert one.infos == two.infos
        for module in one:
            assert all(torch.equal(a, b) for a, b in zip(one[module], two[module], strict=True))


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
@pytest.mark.parametrize(
    "estimator",
    [TSVMerger(scale="match"), TSVMerger(k=3), SVDMerger(k=4, scale="match", scale_scope="model"), SVDPruner(k=3)],
    ids=["tsv", "tsv, cut", "whole model", "pruner"],
)
def test_the_same_bits_from_processes(estimator, locks, tmp_path, monkeypatch):
    if not locks:
        monkeypatch.setattr(results, "_has_locks", lambda file: False)
    some = X[1].select(list(X[1])[2:5])  # an adapter that lacks modules
    adapters = AdapterSet([X[0], some, X[2]])
    same(in_processes(estimator, adapters, tmp_path), estimator.fit_transform(adapters))
    assert list(tmp_path.iterdir()) == []


def test_factors_are_written_where_they_are_made_and_do_not_travel(tmp_path, monkeypatch):
    received, written, loads, true = [], [], pickle.loads, results._OnDisk._written
    monkeypatch.setattr("lorakit._forked.pickle.loads", lambda raw: received.append(len(raw)) or loads(raw))
    monkeypatch.setattr(results._OnDisk, "_written", lambda *args: written.append(os.getpid()) or true(*args))
    merged = in_processes(TSVMerger(), X, tmp_path)[0]
    assert written == []  # by this process
    smallest = min(info.rank * (info.d_in + info.d_out) * merged.dtype.itemsize for info in merged.infos.values())
    assert len(received) == len(X.module_names)
    assert max(received) < smallest


def name_of(adapters, module):
    return module


def test_a_result_is_left_by_the_process_that_made_it():
    with may_fork():
        for n_jobs in (1, 2):
            loop = iter_modules(
                lambda module: name_of,
                X,
                n_jobs=n_jobs,
                verbose=0,
                leave=lambda module, name: (module, name, os.getpid()),
            )
            found = list(loop)
            if n_jobs == 1:
                assert found == list(X.module_names)
            else:
                assert [(module, name) for module, name, _ in found] == [(m, m) for m in X.module_names]
                assert PARENT not in {pid for *_, pid in found}


def test_places_do_not_overlap(tmp_path):
    with results_on_disk(tmp_path):
        kept = results.Results()
    with may_fork():
        loop = iter_modules(
            lambda module: lambda adapters, module: adapters[0][module],
            X,
            n_jobs=3,
            verbose=0,
            leave=lambda module, factors: kept.leave(factors),
        )
        places = sorted(loop)
    ends = [place.start + sum(shape.numel() * place.dtype.itemsize for shape in place.shapes) for place in places]
    assert [place.start for place in places] == [0, *ends[:-1]]


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path, monkeypatch):
    true = os.pwrite

    def half(file, part, start):
        return true(file, part[: part.nbytes // 2], start) and killed()

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OutputError, match="signal SIGKILL"):
        in_processes(TSVMerger(), X, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_while_it_has_the_lock_holds_up_nobody(tmp_path, monkeypatch):
    true = fcntl.lockf

    def lock(file, how):
        true(file, how)
        if how == fcntl.LOCK_EX and os.getpid() != PARENT:
            killed()

    monkeypatch.setattr(fcntl, "lockf", lock)
    with pytest.raises(OutputError, match="signal SIGKILL"):
        in_processes(TSVMerger(), X, tmp_path)


def test_a_full_disk_is_named_by_the_process_that_writes(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        in_processes(TSVMerger(), X, tmp_path)


def test_a_write_that_takes_a_part_only_goes_on(tmp_path, monkeypatch):
    true = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, part, start: true(file, part[:1000], start))
    same(in_processes(TSVMerger(), X, tmp_path), TSVMerger().fit_transform(X))
