"""Loops over modules in forked processes: the same results, errors and warnings as in this one."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config

from lorakit import LegoMerger, SVDMerger, TiesMerger, TSVMerger, load_adapters, results_on_disk, save_adapter
from lorakit._execution import iter_modules, map_modules, may_fork, report_progress
from lorakit._forked import forked
from lorakit.exceptions import CorruptFileError, OutputError
from lorakit.testing import make_adapters

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked elsewhere")
N = 7


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_in_order_from_several_processes():
    def call(i):
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i, os.getpid(), np.arange(i), torch.full((2,), float(i))

    found = list(forked(call, 20, 3))
    assert [i for i, *_ in found] == list(range(20))
    assert len({pid for _, pid, *_ in found} - {os.getpid()}) == 3
    assert all(len(a) == i and t.tolist() == [i, i] for i, _, a, t in found)


def test_arrays_come_whole_and_can_be_written_to():
    expected = [np.random.default_rng(i).standard_normal((50, 3)) for i in range(9)]
    found = list(forked(lambda i: [expected[i], expected[i][::2]], 9, 2))
    for (whole, part), right in zip(found, expected, strict=True):
        assert np.array_equal(whole, right)
        assert np.array_equal(part, right[::2])
        whole += 1


def test_an_error_comes_at_its_place_with_what_it_carries():
    def call(i):
        if i == 2:
            error = CorruptFileError("is cut", path="x", module="m", remedy="copy it again")
            error.add_note("in module 'm'")
            raise error
        return i

    loop, seen = forked(call, 6, 2), []
    with pytest.raises(CorruptFileError, match="x: module 'm': is cut; copy it again") as caught:
        seen.extend(loop)
    assert seen == [0, 1]
    assert caught.value.module == "m"
    assert caught.value.__notes__ == ["in module 'm'"]
    assert "in call" in str(caught.value.__cause__)


def test_an_error_that_does_not_pickle_is_told():
    class Own(Exception):
        pass

    def call(i):
        raise Own("seven")

    with pytest.raises(RuntimeError, match="Own: seven"):
        list(forked(call, 1, 2))
    pickling = pytest.importorskip("tblib.pickling_support")  # as Dask does: contexts of errors are pickled too
    pickling.install()
    with pytest.raises(RuntimeError, match="Own: seven"):
        list(forked(call, 1, 2))


def test_a_process_that_is_killed_is_an_error_and_ends_the_others():
    pids = []

    def call(i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if i > 3:
            time.sleep(60)
        return os.getpid()

    with pytest.raises(OutputError, match=r"was ended by the signal SIGKILL; if memory ran out.*n_jobs=1"):
        pids.extend(forked(call, 8, 2))
    assert not any(map(alive, pids))


def test_a_killed_parent_leaves_no_process(tmp_path):
    """It cannot end them, and they would wait for it."""
    parent = os.fork()
    if not parent:
        for pid in forked(lambda i: (os.getpid(), time.sleep(0.01 if i < 2 else 60))[0], 9, 2):
            (tmp_path / str(pid)).touch()
        os._exit(0)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while any(ends_not(int(file.name)) for file in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ends_not(pid):
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_who_leaves_the_loop_leaves_no_process():
    loop = forked(lambda i: (os.getpid(), time.sleep(0.01 if i < 2 else 60))[0], 9, 2)
    pid = next(loop)
    assert alive(pid)
    loop.close()
    assert not alive(pid)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    made = make_adapters(3, n_modules=N, d_in=96, d_out=64, ranks=(8, 4, 8), random_state=0)
    return load_adapters([save_adapter(adapter, folder / adapter.name) for adapter in made])


@pytest.mark.parametrize(
    "merger",
    [TSVMerger(scale="match"), SVDMerger(k=0.9), LegoMerger(k=4, random_state=0), TiesMerger(k=4, scale_scope="model")],
    ids=lambda merger: merger.method,
)
def test_merges_have_the_same_bits(saved, merger):
    one = merger.fit_compare(saved), merger.merged_
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:  # threads of torch in this process before the fork: the workers have none of them
        torch.randn(600, 600) @ torch.randn(600, 600) + torch.randn(600, 600).exp()
        with may_fork(), parallel_config("threading", n_jobs=2), results_on_disk():
            two = merger.fit_compare(saved), merger.merged_
    finally:
        torch.set_num_threads(before)
    assert one[0] == two[0]
    assert all(torch.equal(x, y) for m in one[1] for x, y in zip(one[1][m], two[1][m], strict=True))


def test_results_on_disk_are_read_in_processes(saved):
    """They share the position of the file."""
    with results_on_disk():
        merged = TSVMerger().fit(saved).merged_
    found = {}
    for jobs in (1, 3):
        with may_fork(), parallel_config("threading", n_jobs=jobs):
            found[jobs] = TSVMerger(k=3).fit([merged, *saved]).merged_
    assert all(torch.equal(x, y) for m in found[1] for x, y in zip(found[1][m], found[3][m], strict=True))


def who(adapters, module):
    warnings.warn(f"seen in {os.getpid() > 0}", stacklevel=2)
    return os.getpid()


def test_progress_and_warnings_come_back(saved):
    calls = []
    with (
        may_fork(),
        report_progress(lambda done, total: calls.append((done, total))),
        pytest.warns(UserWarning, match="seen in True") as warned,
    ):
        pids = set(map_modules(who, saved, n_jobs=2, verbose=0))
    assert os.getpid() not in pids
    assert calls == [(i, N) for i in range(1, N + 1)]
    assert len(warned) == 1


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_one_job_stays_in_this_process(saved, n_jobs):
    with may_fork(), pytest.warns(UserWarning, match="seen"):
        assert set(map_modules(who, saved, n_jobs=n_jobs, verbose=0)) == {os.getpid()}


def forks_again(adapters, module):
    return list(map_modules(pid_of, adapters, n_jobs=2, verbose=0)), os.getpid()


def pid_of(adapters, module):
    return os.getpid()


def test_a_worker_forks_nothing(saved):
    with may_fork():
        for inner, outer in iter_modules(lambda module: forks_again, saved, n_jobs=2, verbose=0):
            assert inner == [outer]
