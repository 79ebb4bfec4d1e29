"""The hashes of sources: of what was read, whatever happens to a file before, between and after."""

from __future__ import annotations

import hashlib
import json
import os
from threading import Event

import pytest
import safetensors.torch
import torch
from recorded import CONFIG, WEIGHTS, record_at, saved, sha256

from lorakit import (
    SVDMerger,
    load_adapter,
    load_adapters,
    save_adapter,
)
from lorakit._execution import report_progress
from lorakit.adapters import Source
from lorakit.files import digests
from lorakit.files.checks import file_version
from lorakit.files.safetensors import read_header
from lorakit.io.formats import codec
from lorakit.io.formats.peft import reading
from lorakit.io.formats.record import file_digest, hash_beside
from lorakit.testing import make_adapters


@pytest.fixture
def paths(tmp_path):
    return saved(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("put_back", [False, True])
def test_a_source_that_changes_after_it_was_read(paths, tmp_path, name, put_back):
    """Its hash would be that of something else, also where the file's time was set back."""
    merged = SVDMerger(k=4).fit(load_adapters(paths)).merged_
    file = paths[1] / name
    before = file.stat()
    file.write_bytes(file.read_bytes())
    if put_back:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(UserWarning, match="has changed since it was opened"):
        out = save_adapter(merged, tmp_path / "out")
    changed, same = ("sha256", "config_sha256")[:: 1 if name == WEIGHTS else -1]
    source = record_at(out)["sources"][1]
    assert source[changed] is None
    assert source[same] == sha256(paths[1] / (CONFIG if name == WEIGHTS else WEIGHTS))


def rewrite(file, content, *, in_place):
    """Put other content of the same length into a file, and set its time back."""
    before = file.stat()
    assert len(content) == before.st_size
    if in_place:
        file.write_bytes(content)
    else:
        (file.parent / "new").write_bytes(content)
        (file.parent / "new").replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_read_is_what_is_hashed(paths, tmp_path, in_place):
    """A file that is replaced by one of the same size and time is not read through a handle of the old one."""
    file = paths[0] / WEIGHTS
    first = load_adapter(paths[0])
    old = first["layer.0"].A.clone()
    raw = bytearray(file.read_bytes())
    raw[-400:] = bytes(400)  # B of the last module
    (begin, end) = read_header(file).spans["base_model.model.layer.0.lora_A.weight"]
    raw[begin:end] = (-old / old.abs().max()).numpy().tobytes()
    rewrite(file, bytes(raw), in_place=in_place)
    second = load_adapter(paths[0])
    torch.testing.assert_close(second["layer.0"].A / second["layer.0"].A.norm(), -old / old.norm())
    record = record_at(save_adapter(SVDMerger().fit([second]).merged_, tmp_path / "out"))
    assert record["sources"][0]["sha256"] == hashlib.sha256(raw).hexdigest()


def test_pickles_too(tmp_path):
    (adapter,) = make_adapters(1, ranks=(4,), n_modules=1, random_state=0)
    folder = save_adapter(adapter, tmp_path / "a")
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    before = load_adapter(folder, allow_pickle=True)["layer.0"].delta()
    turned = tmp_path / "adapter_model.bin"  # the archive holds its own name
    torch.save({key: -tensor if "lora_A" in key else tensor for key, tensor in tensors.items()}, turned)
    rewrite(folder / "adapter_model.bin", turned.read_bytes(), in_place=False)
    torch.testing.assert_close(load_adapter(folder, allow_pickle=True)["layer.0"].delta(), -before)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_file_that_changes_while_it_is_opened(paths, tmp_path, monkeypatch, name):
    """After its header, or its config, was read, and before its version is known: it is opened again."""
    file, function = paths[0] / name, "read_header" if name == WEIGHTS else "read_config"
    module = codec if name == WEIGHTS else reading
    read = getattr(module, function)
    if name == WEIGHTS:
        changed = file.read_bytes().replace(b"layer.0", b"layer.9")
    else:
        alpha = json.loads(file.read_text())["lora_alpha"]
        changed = file.read_bytes().replace(f'"lora_alpha": {alpha}'.encode(), f'"lora_alpha": {9 - alpha}'.encode())
    assert changed != file.read_bytes()
    calls = []

    def read_and_change(path, *args):
        found = read(path, *args)
        if not calls:
            rewrite(file, changed, in_place=True)
        calls.append(path)
        return found

    monkeypatch.setattr(module, function, read_and_change)
    adapter = load_adapter(paths[0])
    assert len(calls) == 2
    if name == WEIGHTS:
        assert "layer.9" in adapter
    else:
        assert adapter.scale("layer.0") == (9 - alpha) / adapter["layer.0"].rank
    record = record_at(save_adapter(SVDMerger().fit([adapter]).merged_, tmp_path / "out"))
    key = "sha256" if name == WEIGHTS else "config_sha256"
    assert record["sources"][0][key] == hashlib.sha256(changed).hexdigest()


def test_a_file_that_changes_while_it_is_hashed(paths, tmp_path, monkeypatch):
    file, digest = paths[0] / WEIGHTS, digests.digest.__wrapped__

    def hash_and_change(path, version):
        found = digest(path, version)
        if path == file:
            rewrite(file, file.read_bytes(), in_place=True)
        return found

    monkeypatch.setattr(digests, "digest", hash_and_change)
    merged = SVDMerger(k=4).fit(load_adapters(paths)).merged_
    with pytest.warns(UserWarning, match="has changed since it was opened"):
        record = record_at(save_adapter(merged, tmp_path / "out"))
    assert [source["sha256"] is None for source in record["sources"]] == [True, False, False]


def test_a_file_of_100_gb_is_not_hashed(tmp_path):
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(100 * 10**9)  # sparse: it takes no room
    with pytest.warns(UserWarning, match="has 93 GiB, and files above 32 GiB are not hashed"):
        assert file_digest(huge) is None


def test_hashing_a_large_file_is_reported(tmp_path, monkeypatch):
    file = tmp_path / "large.safetensors"
    file.write_bytes(os.urandom(5_000_000))
    steps = []
    monkeypatch.setattr(digests, "_PIECE", 10**6)
    with report_progress(lambda done, total: steps.append((done, total))):
        assert file_digest(file) == sha256(file)
        assert steps == []  # a small one
        monkeypatch.setattr(digests, "_WATCHED", 10**6)
        digests.digest.cache_clear()
        assert file_digest(file) == sha256(file)
    assert steps == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_large_file_that_is_hashed_beside_is_waited_for_and_reported(tmp_path, monkeypatch):
    file = tmp_path / "large.safetensors"
    file.write_bytes(os.urandom(5_000_000))
    steps, go = [], Event()

    def slow(path, version):
        digests._hashed[path] = 3_000_000
        go.wait(60)
        return digest(path, version)

    digest = digests.digest.__wrapped__
    monkeypatch.setattr(digests, "digest", slow)
    monkeypatch.setattr(digests, "_WATCHED", 10**6)
    monkeypatch.setattr(digests, "_LOOK", 0.01)
    source = Source("large", file, opened=(file_version(file), None))
    hash_beside([source])

    def watch(done, total):
        steps.append((done, total))
        if done:  # the thread that hashes may not have begun
            go.set()

    with report_progress(watch):
        assert file_digest(file, source.opened[0]) == sha256(file)
    assert (3, 5) in steps
    assert set(steps) <= {(0, 5), (3, 5)}


def test_nothing_of_100_gb_is_hashed_beside(tmp_path, monkeypatch):
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(100 * 10**9)
    monkeypatch.setattr(digests, "digest", lambda path, version: pytest.fail("it is hashed"))
    source = Source("huge", huge, opened=(file_version(huge), None))
    hash_beside([source])
    with pytest.warns(UserWarning, match="are not hashed"):
        assert file_digest(huge, source.opened[0]) is None
