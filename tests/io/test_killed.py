"""Whatever stops a writer, and whoever else writes: one whole output is there, and the next run tidies up."""

import fcntl
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lorakit import load_adapter, save_adapter
from lorakit.exceptions import CorruptFileError, OutputError
from lorakit.files import _rename, _scratch
from lorakit.files import checks as _checks
from lorakit.testing import make_adapters

HERE = Path(__file__).parent
OLD, NEW = make_adapters(2, ranks=(2, 3), random_state=0)
EVERY = [
    f"{kind}-{output}-{way}"
    for kind in ("directory", "file")
    for output in ("old", "new")
    for way in ("exchange", "two")
]


def script(name, *args, **options):
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / name), *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False, **options)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal", "cases"),
    [
        ("SIGKILL", [case for case in EVERY if case.startswith("directory")]),
        ("SIGKILL", [case for case in EVERY if case.startswith("file")]),
        ("SIGTERM", ["directory-old-two"]),
        ("SIGINT", ["directory-old-two", "file-old-exchange"]),
    ],
)
def test_stopped_at_every_point(tmp_path, signal, cases):
    lines = [line.split() for line in script("kill_writer.py", tmp_path / "folder", signal, *cases)]
    assert [case for case, _, _ in lines] == cases
    for case, points, left in lines:
        assert int(points) > (30 if case.startswith("directory") else 15)
        if signal == "SIGINT":  # Python gets to clean up
            assert int(left) == 0
        else:
            assert int(left) > 5


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exchange", "two"])
def test_writers_do_not_mix(tmp_path, way):
    ((whole, changed, seen),) = (map(int, line.split()) for line in script("compete.py", tmp_path, way, 30))
    assert seen == 3
    assert whole > changed


FILE_SIZES = """
import os, resource, sys
from pathlib import Path
import torch
from lorakit import load_adapter, save_adapter
from lorakit.exceptions import OutputError
from lorakit.testing import make_adapters
torch.set_num_threads(1)
old, new = make_adapters(2, ranks=(2, 3), random_state=0)
path = save_adapter(old, Path(sys.argv[1]) / "out")
largest = path.joinpath("adapter_model.safetensors").stat().st_size + 700  # of rank 3 instead of 2
refused = 0
for limit in range(0, largest, 97):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_adapter(new, path, overwrite=True)
        expected = 3
    except OutputError as error:
        assert "File too large; nothing was changed" in str(error), error
        expected = 2
        refused += 1
    assert load_adapter(path).ranks == (expected,)
    assert os.listdir(sys.argv[1]) == ["out"]
print(refused, limit // 97 + 1)
"""


def test_full_disk_at_any_size(tmp_path):
    """A file size limit is the nearest thing to a full disk that needs no privileges."""
    (tmp_path / "script.py").write_text(FILE_SIZES)
    (tmp_path / "folder").mkdir()
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "folder"],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    refused, tried = map(int, run.stdout.split())
    assert 10 < refused < tried  # a limit above the file's size is none


@pytest.fixture
def out(tmp_path):
    return save_adapter(OLD, tmp_path / "out")


def scratch_of(out, *, half_done):
    """Make what a writer of ``out`` has beside it; return an open lock that is not held."""
    folder = out.with_name(".out.0123abcd.lorakit")
    (folder / "new").mkdir(parents=True)
    if half_done:
        out.rename(folder / "old")
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT), folder


def test_only_dead_writers_are_cleared(out, tmp_path):
    lock, folder = scratch_of(out, half_done=False)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        save_adapter(NEW, out, overwrite=True)
        assert folder.is_dir()
        fcntl.flock(lock, fcntl.LOCK_UN)
        save_adapter(NEW, out, overwrite=True)
        assert list(tmp_path.iterdir()) == [out]
    finally:
        os.close(lock)


def test_what_only_looks_like_a_writers_is_left_alone(out, tmp_path):
    kept = [
        tmp_path / name
        for name in (".out.backup", ".out.x.0123abcd.lorakit", ".output.0123abcd.lorakit", ".out.0123abcd.lorakit.bak")
    ]
    for folder in kept:
        folder.mkdir()
    mine = tmp_path / ".out.deadbeef.lorakit"  # the right name, but no lock in it
    mine.mkdir()
    (mine / "notes.txt").touch()
    save_adapter(NEW, out, overwrite=True)
    assert set(tmp_path.iterdir()) == {out, *kept, mine}
    assert (mine / "notes.txt").exists()


@pytest.mark.parametrize("finder", ["load", "load a file of it", "save", "refused save"])
def test_half_done_is_put_back(out, tmp_path, finder):
    """By the next writer; a reader changes nothing, and says what to do."""
    lock, folder = scratch_of(out, half_done=True)
    os.close(lock)
    if finder.startswith("load"):
        path = out / "adapter_model.safetensors" if finder == "load a file of it" else out
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FileNotFoundError, match=r"out: is half replaced: .*write it again, or") as caught:
            load_adapter(path)
        assert sorted(tmp_path.rglob("*")) == before
        old, new = re.search(r"rename (\S+) to (\S+)$", str(caught.value)).groups()
        Path(old).rename(new)
        assert load_adapter(path).ranks == (2,)
        save_adapter(OLD, out, overwrite=True)
    elif finder == "save":
        save_adapter(NEW, out, overwrite=True)
    else:
        with pytest.raises(OutputError, match="out: exists; pass overwrite=True"):
            save_adapter(NEW, out)
    assert load_adapter(out).ranks == ((3,) if finder == "save" else (2,))
    assert list(tmp_path.iterdir()) == [out]
    assert not folder.exists()


def test_what_was_deleted_after_it_was_replaced_does_not_come_back(out):
    lock, folder = scratch_of(out, half_done=True)
    os.close(lock)
    (folder / "new").rmdir()  # it is in place, so the writer was done but for tidying up; the user deleted it then
    with pytest.raises(FileNotFoundError, match="out: does not exist"):
        load_adapter(out)


def test_a_writer_between_its_renames_is_waited_for(out, tmp_path):
    lock, folder = scratch_of(out, half_done=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    goes_on = threading.Timer(0.2, (folder / "old").rename, (out,))
    goes_on.start()
    assert load_adapter(out).ranks == (2,)
    goes_on.join()
    os.close(lock)


@pytest.mark.parametrize("moment", ["before it is looked for", "before its size is asked"])
def test_moved_away_by_the_next_of_several_writers(out, monkeypatch, moment):
    """What was there at the first look is away at the second, and comes back: it is there, as the reader sees it."""
    with _scratch.scratch_beside(out) as folder:
        moves = []

        def move_away():
            if not moves:
                out.rename(folder / "away")
                moves.append(threading.Timer(0.1, (folder / "away").rename, (out,)))
                moves[0].start()

        if moment == "before it is looked for":
            required = _checks.require_path
            monkeypatch.setattr("lorakit.io.opening.require_path", lambda path: (move_away(), required(path)))
        else:
            required = _checks.require_path
            monkeypatch.setattr(_checks, "require_path", lambda path: (required(path), move_away()))
        assert load_adapter(out).ranks == (2,)
        moves[0].join()


def test_moved_away_before_a_module_is_read(out):
    adapter = load_adapter(out)
    with _scratch.scratch_beside(out) as folder:
        out.rename(folder / "away")
        back = threading.Timer(0.1, (folder / "away").rename, (out,))
        back.start()
        assert adapter[next(iter(adapter))].rank == 2
        back.join()


def test_moved_away_while_it_is_replaced(out, tmp_path, monkeypatch):
    """Another writer takes the old output away between any two looks of this one, which then has nothing to replace."""
    monkeypatch.setattr(_rename, "_system_call", lambda: None)
    lstat, rename = Path.lstat, os.rename
    for moment in range(4):
        looks = []

        def takes_away(moment=moment, looks=looks):
            looks.append(1)
            if len(looks) == moment + 1 and out.exists():
                rename(out, tmp_path / f"away {moment}")

        def seen(path, takes_away=takes_away):
            found = lstat(path)
            if path == out:
                takes_away()
            return found

        def renamed(source, target, takes_away=takes_away):
            try:
                rename(source, target)
            except OSError:
                takes_away()
                raise

        save_adapter(OLD, out, overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "lstat", seen)
            patch.setattr("os.rename", renamed)
            save_adapter(NEW, out, overwrite=True)
        assert load_adapter(out).ranks == (3,), moment
    assert {path.name for path in tmp_path.iterdir()} >= {"out", "away 0", "away 1", "away 2"}


@pytest.mark.parametrize("missing", ["locks on this file system", "locks on this system"])
def test_without_locks(out, tmp_path, monkeypatch, missing):
    """Nobody can know whether a writer lives: nothing is removed, but no output stays away."""
    if missing == "locks on this system":
        monkeypatch.setattr(_scratch, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(_scratch, "_PATIENCE", 3)
    lock, folder = scratch_of(out, half_done=True)
    os.close(lock)
    with pytest.raises(FileNotFoundError, match="out: is half replaced"):
        load_adapter(out)
    with pytest.raises(OutputError, match="out: exists; pass overwrite=True"):
        save_adapter(NEW, out)
    assert load_adapter(out).ranks == (2,)
    save_adapter(NEW, out, overwrite=True)
    assert load_adapter(out).ranks == (3,)
    assert set(tmp_path.iterdir()) == {out, folder}


def no_locks(*args):
    raise OSError(95, "Operation not supported")


def test_a_writer_that_was_stopped_between_its_renames_bears_what_others_do(out, tmp_path, monkeypatch):
    """Its old output is put back by another writer that has waited long enough; then it goes on."""
    monkeypatch.setattr(_rename, "_system_call", lambda: None)
    monkeypatch.setattr(_scratch, "_PATIENCE", 3)
    rename, seen = os.rename, []

    def stops(source, target):
        rename(source, target)
        if Path(target).name == "old" and not seen:
            _scratch.put_back(out)
            seen.append(load_adapter(out).ranks)

    monkeypatch.setattr("os.rename", stops)
    save_adapter(NEW, out, overwrite=True)
    assert seen == [(2,)]
    assert load_adapter(out).ranks == (3,)
    assert list(tmp_path.iterdir()) == [out]


def test_a_reader_tells_versions_of_one_size_apart(out):
    """Even where they are written faster than the file system's clock ticks."""
    stamps = set()
    for _ in range(20):
        save_adapter(OLD, out, overwrite=True)
        stamps.add((out / "adapter_model.safetensors").stat().st_mtime_ns)
    assert len(stamps) == 20
    adapter = load_adapter(out)
    save_adapter(OLD.renamed("same size"), out, overwrite=True)
    with pytest.raises(CorruptFileError, match="has changed since the adapter was opened"):
        adapter["layer.0"]


def test_replaced_between_the_check_and_the_reading(out, monkeypatch):
    adapter = load_adapter(out)
    monkeypatch.setattr("lorakit.files.safetensors._handle", handle_of_a_new_file(out))
    with pytest.raises(CorruptFileError, match="has changed since the adapter was opened"):
        adapter["layer.0"]


def handle_of_a_new_file(out):
    from safetensors import safe_open

    def handle(path, opened):
        save_adapter(NEW, out, overwrite=True)
        return safe_open(path, framework="pt")

    handle.cache_clear = lambda: None
    return handle


def test_replaced_while_it_is_opened(out, monkeypatch):
    """Weights of one version and config of another never become one adapter."""
    from lorakit.io.formats.peft import config as _peft_config

    read, calls = _peft_config.read_json_object, []

    def replaces(path):
        if path.parent != out:  # the writer looks at what it made
            return read(path)
        calls.append(path)
        if len(calls) < 3:
            save_adapter(NEW if len(calls) == 1 else OLD, out, overwrite=True)
        return read(path)

    monkeypatch.setattr(_peft_config, "read_json_object", replaces)
    adapter = load_adapter(out)
    assert len(calls) == 3
    assert adapter.ranks == (2,)
    assert (adapter["layer.0"].delta() == OLD["layer.0"].delta()).all()


def test_what_is_protected_is_told_and_tried_again(out, tmp_path, monkeypatch):
    """As a file that is immutable is. Its folder keeps its lock, by which the next writer knows whose it is."""
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
    with pytest.warns(UserWarning, match=r"\.out\.[0-9a-f]{8}\.lorakit: could not be removed: something in it"):
        save_adapter(NEW, out, overwrite=True)
    assert load_adapter(out).ranks == (3,)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    save_adapter(OLD, out, overwrite=True)
    assert [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize("umask", [0o777, 0o333, 0o177])
def test_umasks_that_take_the_owners_rights(out, tmp_path, umask):
    before = os.umask(umask)
    try:
        with pytest.raises(OutputError, match=r"the umask takes rights from the owner.*set it with `umask 022`"):
            save_adapter(NEW, out, overwrite=True)
    finally:
        os.umask(before)
    assert load_adapter(out).ranks == (2,)
    assert [*tmp_path.iterdir()] == [out]
