"""What Windows and macOS do otherwise, acted out on Linux, as far as that goes.

Windows has no file locks and no limits of the kind that lorakit asks for, opens no directories, refuses to bring a file
to the disk through a read-only handle, and neither renames nor deletes what is open. macOS has no call that exchanges
two directories in one step.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit import LegoMerger, bake, load_adapter, load_adapters, save_adapter
from lorakit.checkpoints import writing
from lorakit.files import _rename, _scratch
from lorakit.files.safetensors import close_files
from lorakit.testing import make_adapters

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="acts out other systems on Linux")


@pytest.fixture
def without_exchange(monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(_rename, "_system_call", lambda: None)


@pytest.fixture
def windows(monkeypatch, without_exchange):
    """As on Windows."""
    import fcntl

    close_files()
    monkeypatch.setattr(_scratch, "fcntl", None)
    monkeypatch.setattr(writing, "fcntl", None)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    monkeypatch.delattr(os, "geteuid")
    sync, open_ = os.fsync, os.open

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(descriptor)

    def open_no_folders(path, flags, *args, **kwargs):
        # Files without a name are made in this way here; Windows has another one, which the standard library takes.
        if Path(path).is_dir() and flags & os.O_TMPFILE != os.O_TMPFILE:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return open_(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "open", open_no_folders)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, _refusing_open(getattr(os, name), replaces=name == "replace"))
    for name in ("unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, _refusing_open(getattr(os, name)))


def _refusing_open(call, replaces=True):
    """The same call, which fails for a path that this process has open, or below which it has a file open."""

    def refuse(path, *args, **kwargs):
        own = os.path.realpath(path)
        if any(file == own or file.startswith(own + os.sep) for file in _open_files()):
            raise PermissionError(errno.EACCES, "the file is used by a process", os.fspath(path))
        if not replaces and args and os.path.lexists(args[0]):
            raise FileExistsError(errno.EEXIST, "File exists", os.fspath(args[0]))
        return call(path, *args, **kwargs)

    return refuse


def _open_files():
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if stat.S_ISREG(descriptor.stat().st_mode):
                found.append(str(descriptor.readlink()))
        except OSError:  # closed since
            continue
    mapped = [line.split(maxsplit=5)[5:] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    return found + [name.strip() for names in mapped for name in names]


def test_the_acting_refuses_what_windows_refuses(windows, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with file.open("rb") as stream:
        with pytest.raises(PermissionError):
            file.rename(tmp_path / "other")
        with pytest.raises(PermissionError):
            file.unlink()
        with pytest.raises(PermissionError):
            shutil.rmtree(tmp_path)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fsync(stream.fileno())
    file.unlink()


@pytest.mark.parametrize("system", ["without_exchange", "windows"])
def test_written_read_and_replaced(system, tmp_path, request):
    request.getfixturevalue(system)
    one, two, _ = make_adapters(random_state=0)
    out = tmp_path / "out"
    save_adapter(one, out)
    first = load_adapter(out)
    assert first[next(iter(first.infos))].rank  # the file stays open
    save_adapter(two, out, overwrite=True)
    second = load_adapter(out)
    assert {name: info.rank for name, info in second.infos.items()} == {
        name: two.infos[name].rank for name in two.infos
    }
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("system", ["without_exchange", "windows"])
def test_a_merge_takes_the_place_of_one_of_its_sources(system, tmp_path, request):
    request.getfixturevalue(system)
    paths = [save_adapter(adapter, tmp_path / adapter.name) for adapter in make_adapters(random_state=0)]
    merged = LegoMerger(k=4, random_state=0).fit(load_adapters(paths)).merged_
    save_adapter(merged, paths[0], overwrite=True)
    assert {info.rank for info in load_adapter(paths[0]).infos.values()} == {4}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(path.name for path in paths)


@pytest.mark.parametrize("system", ["without_exchange", "windows"])
def test_a_baked_model_is_replaced(system, tmp_path, request):
    request.getfixturevalue(system)
    (adapter,) = make_adapters(1, random_state=0)
    shapes = {name: (adapter.infos[name].d_out, adapter.infos[name].d_in) for name in adapter.infos}
    save_file({f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "base.safetensors")
    for strength in (1.0, 0.5):
        bake(tmp_path / "base.safetensors", adapter, tmp_path / "out.safetensors", strengths=[strength], overwrite=True)
    for name, weight in load_file(tmp_path / "out.safetensors").items():
        factors = adapter[name.removesuffix(".weight")]
        torch.testing.assert_close(weight, 0.5 * factors.B @ factors.A)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base.safetensors", "out.safetensors"]
