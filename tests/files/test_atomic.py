"""An output is written whole or not at all, whatever interrupts it."""

import os
import socket
import stat
from pathlib import Path

import pytest
import torch

from lorakit import Adapter, load_adapter, save_adapter
from lorakit.adapters import Source
from lorakit.exceptions import CorruptFileError, OutputError
from lorakit.files import atomic as _atomic
from lorakit.testing import make_adapters

OLD, NEW = make_adapters(2, ranks=(2, 3), random_state=0)


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def old(tmp_path):
    return save_adapter(OLD, tmp_path / "out")


def test_existing_output_is_refused_or_replaced(old, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"out: exists; pass overwrite=True"):
        save_adapter(NEW, old)
    assert contents(tmp_path) == before
    save_adapter(NEW, old, overwrite=True)
    assert load_adapter(old).ranks == (3,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_other_files_are_never_deleted(old, tmp_path):
    (old / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"out: also contains notes.txt, which would be deleted.*another path"):
        save_adapter(NEW, old, overwrite=True)
    with pytest.raises(OutputError, match="also contains out"):
        save_adapter(NEW, tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_output_may_be_the_input(old):
    adapter = load_adapter(old)
    delta = adapter["layer.0"].delta()
    save_adapter(adapter, old, overwrite=True, dtype=torch.float64)
    torch.testing.assert_close(load_adapter(old)["layer.0"].delta().float(), delta)
    with pytest.raises(CorruptFileError, match="has changed since"):
        adapter["layer.0"]


def test_links_files_and_devices_are_refused(old, tmp_path):
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = contents(old)
    for name in ("link", "dangling"):
        with pytest.raises(OutputError, match=f"{name}: is a symbolic link"):
            save_adapter(NEW, tmp_path / name, overwrite=True)
    for path in (tmp_path / "file", tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(OutputError, match=f"{path.name}: exists and is not a directory"):
            save_adapter(NEW, path, overwrite=True)
    assert contents(old) == before


def test_missing_parents_are_made_and_unmade(tmp_path, monkeypatch):
    save_adapter(NEW, tmp_path / "a" / "b" / "out")
    monkeypatch.setattr("lorakit.io.formats.peft.codec.model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(NEW, tmp_path / "a" / "c" / "d" / "out")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OutputError, match="cannot be written"):
        save_adapter(NEW, tmp_path / "a" / "b" / "out" / "README.md" / "x")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


WRITING = ["lorakit.io.formats.peft.codec.write_tensors", "lorakit.io.formats.peft.codec.model_card", "os.fsync"]
# Without an exchange: onto the old one, which fails; the old one away; the new one there.
RENAMES = ["rename 1", "rename 2", "rename 3"]


@pytest.mark.parametrize(("failure", "error"), [(interrupt, KeyboardInterrupt), (no_space, OutputError)])
@pytest.mark.parametrize("place", WRITING + RENAMES)
def test_failures_leave_the_old_output(old, tmp_path, monkeypatch, place, failure, error):
    before = contents(tmp_path)
    if place in RENAMES:
        rename, calls = os.rename, []

        def fails_once(source, target):
            calls.append(source)
            return failure() if len(calls) == int(place[-1]) else rename(source, target)

        monkeypatch.setattr("os.rename", fails_once)
        monkeypatch.setattr("lorakit.files._rename._system_call", lambda: None)
    else:
        monkeypatch.setattr(place, failure)
    with pytest.raises(error, match="No space left" if error is OutputError else None):
        save_adapter(NEW, old, overwrite=True)
    assert contents(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_file_that_somebody_adds_at_the_last_moment_is_not_deleted(old, tmp_path, monkeypatch, way):
    if way == "two renames":
        monkeypatch.setattr("lorakit.files._rename._system_call", lambda: None)
    check = _atomic.check_directory

    def then_adds(path, **options):
        check(path, **options)
        if path.name == "out" and list(tmp_path.glob(".out*")):
            (old / "notes.txt").write_text("mine")

    monkeypatch.setattr(_atomic, "check_directory", then_adds)
    with pytest.raises(OutputError, match=r"out: also contains notes\.txt"):
        save_adapter(NEW, old, overwrite=True)
    assert (old / "notes.txt").read_text() == "mine"
    assert load_adapter(old).ranks == (2,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("way", ["exchange", "no exchange", "no links either"])
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_an_output_that_appears_while_another_is_made_is_kept(tmp_path, monkeypatch, way, kind):
    """Two writers that both saw nothing there: without overwrite the first one stays."""
    if way != "exchange":
        monkeypatch.setattr("lorakit.files._rename._system_call", lambda: None)
    if way == "no links either":
        monkeypatch.setattr("os.link", no_space)
    path = tmp_path / "out"
    directory = _atomic.replaced_directory(path, overwrite=False, own_files=frozenset({"a"}))
    with (  # noqa: PT012
        pytest.raises(OutputError, match="out: exists; pass overwrite=True"),
        directory if kind == "directory" else _atomic.replaced_file(path, overwrite=False) as new,
    ):
        (new / "a" if kind == "directory" else new).write_text("second")
        if kind == "directory":
            path.mkdir()
        (path / "a" if kind == "directory" else path).write_text("first")
    assert set(contents(tmp_path).values()) == {b"first"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_input_that_vanishes_is_not_called_an_output_error(old, tmp_path):
    adapter = load_adapter(old)
    (old / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: does not exist"):
        save_adapter(adapter, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_permissions_follow_the_umask(tmp_path, umask, file, folder, kind):
    """Those of the writer, whatever what is replaced had."""
    path = tmp_path / "made" / "out"
    for mask in (umask ^ 0o055, umask):  # made under another one, then replaced
        before = os.umask(mask & 0o077)
        try:
            if kind == "directory":
                save_adapter(OLD, path, overwrite=True)
            else:
                with _atomic.replaced_file(path, overwrite=True) as new:
                    new.write_text("x")
        finally:
            os.umask(before)
    if kind == "directory":
        assert stat.S_IMODE(path.stat().st_mode) == folder
    assert {stat.S_IMODE(e.stat().st_mode) for e in (path.iterdir() if kind == "directory" else [path])} == {file}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a directory to any group")
def test_the_group_of_a_set_group_id_directory_is_inherited(tmp_path):
    os.chown(tmp_path, -1, 12345)
    tmp_path.chmod(0o2775)
    path = save_adapter(OLD, tmp_path / "out")
    with _atomic.replaced_file(tmp_path / "file", overwrite=False) as new:
        new.write_text("x")
    assert path.stat().st_mode & stat.S_ISGID
    assert {e.stat().st_gid for e in (path, *path.iterdir(), tmp_path / "file")} == {12345}


def test_odd_parents(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save_adapter(OLD, tmp_path / "link" / "out")
    assert load_adapter(tmp_path / "real" / "out").ranks == (2,)
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    before = sorted(tmp_path.iterdir())
    for name in ("loop", "file", "socket"):
        with pytest.raises(OutputError, match="out: cannot be"):
            save_adapter(OLD, tmp_path / name / "out")
    with pytest.raises(OutputError, match="socket: exists and is not a directory"):
        save_adapter(OLD, tmp_path / "socket", overwrite=True)
    for name in ("x" * 256, "a/" * 3000):
        with pytest.raises(OutputError, match="cannot be made: File name too long"):
            save_adapter(OLD, tmp_path / name)
    with pytest.raises(OutputError, match="cannot be made"):
        save_adapter(OLD, f"{tmp_path}/nul\0")
    assert sorted(tmp_path.iterdir()) == before


def test_the_longest_name_that_the_file_system_takes(tmp_path):
    path = tmp_path / ("ü" * 127)
    save_adapter(OLD, path)
    save_adapter(NEW, path, overwrite=True)
    assert load_adapter(path).ranks == (3,)
    assert list(tmp_path.iterdir()) == [path]


def test_the_working_directory_may_be_the_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    for path in ("out", "./a/../b/out", Path("c")):
        assert load_adapter(save_adapter(OLD, path)).ranks == (2,)
    with pytest.raises(OutputError, match="also contains"):
        save_adapter(OLD, ".", overwrite=True)
    with pytest.raises(OutputError, match="also contains"):
        save_adapter(OLD, "b/..", overwrite=True)


def test_no_path_is_made_of_names(tmp_path):
    """Adapters, modules and base models are called anything; what is written stays in the output."""
    hostile = ["../../x", "/etc/x", "..", "a/../../b", "~/x", "$HOME", "x\\y", "CON"]
    factors = OLD["layer.0"]
    adapter = Adapter(dict.fromkeys(hostile, factors), name="../../x").with_provenance(
        base_model="../../base", task_type="../../task", sources=(Source("../../source"),), operations=("../../op",)
    )
    (tmp_path / "deep" / "down").mkdir(parents=True)
    path = save_adapter(adapter, tmp_path / "deep" / "down" / "out")
    made = {str(entry.relative_to(tmp_path)) for entry in tmp_path.rglob("*") if not entry.is_dir()}
    assert made == {
        f"deep/down/out/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    with pytest.raises(OutputError, match=r"model\.a\\nb\.lora_A\.weight'... would be a name that cannot be printed"):
        save_adapter(Adapter({"a\nb": factors}), tmp_path / "other")
    assert "# ../../x" in (path / "README.md").read_text()
