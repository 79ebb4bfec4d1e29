"""What is written: whole or not at all, all else of the folder with it, and never over the base."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import adapter, contents, tensors, write_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit import bake
from lorakit.checkpoints import writing
from lorakit.checkpoints.baked_record import baked_record
from lorakit.exceptions import OutputError, UnsafeFileError


@pytest.fixture
def base(tmp_path):
    return write_shards(tmp_path / "base", tensors(torch.bfloat16))


def test_the_folder_comes_along(base, tmp_path):
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"mean": true}')
    for name in ("pytorch_model.bin", "model.gguf", "pytorch_model.bin.index.json", ".gitattributes"):
        (base / name).write_text("old")
    before = contents(base)
    baked = bake(base, adapter(), tmp_path / "out")
    assert baked.left_out == ("model.gguf", "pytorch_model.bin", "pytorch_model.bin.index.json")
    after = contents(tmp_path / "out")
    assert set(after) == set(before) - set(baked.left_out) - {".gitattributes"}
    assert contents(base) == before
    changed = {name for name, raw in after.items() if raw != before[name]}
    assert changed == {file for file in after if file.endswith(".safetensors") and keys(base / file)}
    for file in (name for name in after if name.endswith(".safetensors")):
        with safe_open(tmp_path / "out" / file, "pt") as opened, safe_open(base / file, "pt") as original:
            assert list(opened.keys()) == list(original.keys())
            assert opened.metadata()["format"] == "pt"
    umask = os.umask(0)
    os.umask(umask)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert modes == {0o666 & ~umask}


def keys(file):
    with safe_open(file, "pt") as opened:
        return [key for key in opened.keys() if "_proj" in key]  # noqa: SIM118


def test_the_same_bytes_each_time(base, tmp_path):
    bake(base, adapter(), tmp_path / "one")
    bake(base, adapter(), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    bake(base, adapter(seed=7), tmp_path / "two", overwrite=True)
    assert contents(tmp_path / "one") != contents(tmp_path / "two")


def test_a_copy_is_no_link(base, tmp_path):
    bake(base, adapter(), tmp_path / "out")
    with (tmp_path / "out" / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert (base / "tokenizer.json").read_text() == "{}"
    writing.copy_file(base / "tokenizer.json", tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_ino != (base / "tokenizer.json").stat().st_ino


def test_a_single_file_and_dtypes_that_torch_does_not_add(tmp_path):
    content = tensors() | {"other": torch.zeros(4).to(torch.float8_e4m3fn), "flag": torch.tensor(True)}
    save_file(content, tmp_path / "base.safetensors", metadata={"modelspec.title": "x"})
    bake(tmp_path / "base.safetensors", adapter(), tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert written["other"].dtype == torch.float8_e4m3fn
    assert written["flag"]
    live = bake(content, adapter(), tmp_path / "live.safetensors")
    again = load_file(tmp_path / "live.safetensors")
    for name in content:
        assert torch.equal(again[name].view(torch.uint8), written[name].view(torch.uint8))
    assert live.output == tmp_path / "live.safetensors"
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata()["modelspec.title"] == "x"
    for wrong in ("out", "out.bin"):
        with pytest.raises(OutputError, match=r"give a name with \.safetensors"):
            bake(tmp_path / "base.safetensors", adapter(), tmp_path / wrong)


def test_the_record(base, tmp_path):
    bake(base, [adapter(), adapter(seed=2, name="medicine")], tmp_path / "out", strengths=[0.7, 0.5])
    record = baked_record(tmp_path / "out")
    assert record["class"] == "bake"
    assert record["params"] == {"strengths": [0.7, 0.5]}
    assert [source["role"] for source in record["sources"]] == ["base", "adapter", "adapter"]
    assert "versions" in record
    assert str(tmp_path) not in json.dumps(record)
    assert baked_record(base) is None
    assert baked_record(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        '{"record": "bake-1"}',
        '{"record": "bake-1", "params": {"strengths": [1]}, "versions": {"lorakit": "1"}, "sources": [3, 4]}',
        '{"record": "bake-1", "params": {"strengths": []}, "versions": {}, "sources": [{"headers_sha256": "x"}]}',
    ],
)
def test_a_record_that_is_none(wrong, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"lorakit": wrong})
    assert baked_record(tmp_path / "x.safetensors") is None


@pytest.mark.parametrize("where", ["base", "base/inside", "."])
def test_never_over_the_base(where, base, tmp_path):
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="is the base, in it or around it"):
        bake(base, adapter(), tmp_path / where, overwrite=True)
    assert contents(tmp_path) == before
    shard = base / "model-00001-of-00003.safetensors"
    with pytest.raises(OutputError, match="is the base"):
        bake(shard, adapter(["model.layers.0.q_proj"], drop=""), shard, overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(base)
    with pytest.raises(OutputError, match="is the base"):
        bake(base, adapter(), link, overwrite=True)
    assert (tmp_path / "link").is_symlink()


def test_an_output_that_is_there(base, tmp_path):
    out = tmp_path / "out"
    bake(base, adapter(), out)
    before = contents(out)
    with pytest.raises(OutputError, match="exists; pass overwrite=True"):
        bake(base, adapter(seed=3), out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also contains notes\.txt, which would be deleted"):
        bake(base, adapter(seed=3), out, overwrite=True)
    (out / "notes.txt").unlink()
    (out / "sub").mkdir()
    with pytest.raises(OutputError, match="also contains sub"):
        bake(base, adapter(seed=3), out, overwrite=True)
    (out / "sub").rmdir()
    assert contents(out) == before


def test_links_inside_the_base(base, tmp_path):
    real = base / "model-00001-of-00003.safetensors"
    blob = real.rename(tmp_path / "blob")
    real.symlink_to(blob)  # as in the cache of the Hub
    bake(base, adapter(), tmp_path / "out")
    assert not (tmp_path / "out" / real.name).is_symlink()
    (tmp_path / "elsewhere").mkdir()
    (base / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFileError, match="is a link to a folder"):
        bake(base, adapter(), tmp_path / "out2")


@pytest.mark.parametrize("limit", [100, 700, 900])
def test_a_full_disk(limit, base, tmp_path):
    """The limit of a file's size stands in for it."""
    out = tmp_path / "out"
    bake(base, adapter(), out)
    before = contents(tmp_path)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large; nothing was changed"):
            bake(base, adapter(seed=3), out, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert contents(tmp_path) == before


def test_an_overflow_leaves_the_old_output(tmp_path):
    base = write_shards(tmp_path / "base", tensors(torch.float16))
    out = tmp_path / "out"
    bake(base, adapter(), out)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="float16 cannot hold"):
        bake(base, adapter(size=1e6), out, overwrite=True)
    assert contents(tmp_path) == before


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from models import adapter
from lorakit import bake
from lorakit.checkpoints import writing
write = writing.write_parts
def slow(*args):
    write(*args)
    print("written", flush=True)
    time.sleep(60)
writing.write_parts = slow
bake({base!r}, adapter(seed=5), {out!r}, overwrite=True)
"""


def test_a_killed_writer_leaves_the_old_output(base, tmp_path):
    out = tmp_path / "out"
    bake(base, adapter(), out)
    before = contents(tmp_path)
    script = SCRIPT.format(tests=str(Path(__file__).parent), base=str(base), out=str(out))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert contents(out) == {name.removeprefix("out/"): raw for name, raw in before.items() if name.startswith("out/")}
    assert set(contents(tmp_path)) > set(before)  # what it had written lies beside it until the next writer
    time.sleep(0.01)
    bake(base, adapter(), out, overwrite=True)
    assert contents(tmp_path) == before


def test_shards_that_are_replaced_while_they_are_read(base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = writing.read_rows

    def replaced(file, shard, *args):
        shard.path.write_bytes(shard.path.read_bytes() + b"")
        return real(file, shard, *args)

    monkeypatch.setattr(writing, "read_rows", replaced)
    with pytest.raises(ValueError, match="has changed since"):
        bake(base, adapter(), out)
    assert not out.exists()
