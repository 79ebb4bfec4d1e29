"""Hashes of files: in a thread, once for each version."""

import hashlib
import os

import pytest

from lorakit.cli._ahead import hash_ahead
from lorakit.files import digests
from lorakit.files.checks import file_version
from lorakit.files.digests import hash_beside, known_digest


def silent(done, total):
    pass


@pytest.fixture
def read(monkeypatch):
    """Paths that were read, each time."""
    paths, digest = [], digests.digest.__wrapped__
    monkeypatch.setattr(digests, "digest", lambda path, version: paths.append(path) or digest(path, version))
    return paths


def asked(path):
    return known_digest(path, file_version(path), silent)


def test_what_a_thread_hashes_is_read_once_by_any_path(tmp_path, read, monkeypatch):
    file = tmp_path / "a" / "x.safetensors"
    file.parent.mkdir()
    file.write_bytes(os.urandom(1000))
    monkeypatch.chdir(tmp_path)
    hash_beside([(file, file_version(file)), (file, file_version(file))])
    hash_beside([(file, file_version(file))])
    assert asked((file.parent / ".." / "a" / "x.safetensors").relative_to(tmp_path)) == (
        hashlib.sha256(file.read_bytes()).hexdigest()
    )
    assert read == [file]


def test_another_version_is_hashed_anew(tmp_path, read):
    file = tmp_path / "x"
    file.write_bytes(b"before")
    hash_beside([(file, file_version(file))])
    file.write_bytes(b"after it")
    assert asked(file) == hashlib.sha256(b"after it").hexdigest()


def test_a_file_that_is_gone_is_an_error_when_it_is_asked_for(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"here")
    version = file_version(file)
    file.unlink()
    hash_beside([(file, version)])
    with pytest.raises(FileNotFoundError):
        known_digest(file, version, silent)


@pytest.fixture
def begun(monkeypatch):
    """Names of the files that are hashed ahead."""
    names = []
    monkeypatch.setattr(digests, "hash_beside", lambda files: names.extend(path.name for path, _ in files))
    monkeypatch.setattr("lorakit._cores.usable_cores", lambda: 2)
    monkeypatch.setattr("lorakit.cli._ahead._LEAST", 1000)
    return names


def test_folders_and_files_are_hashed_ahead_where_they_are_large(tmp_path, begun, monkeypatch):
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "adapter_model.safetensors").write_bytes(bytes(600))
    (tmp_path / "law" / "other.txt").write_bytes(bytes(600))
    (tmp_path / "one.safetensors").write_bytes(bytes(600))
    paths = [str(tmp_path / "law"), str(tmp_path / "one.safetensors"), "hf://org/missing"]
    hash_ahead(paths[:1], jobs=None)
    hash_ahead(paths, jobs=1)
    assert begun == []
    hash_ahead(paths, jobs=None)
    assert begun == ["adapter_model.safetensors", "one.safetensors"]
    begun.clear()
    monkeypatch.setattr("lorakit._cores.usable_cores", lambda: 1)
    hash_ahead(paths, jobs=2)
    assert begun == []
