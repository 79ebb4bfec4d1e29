"""Weights that are a pickle: read only when that is allowed, lazily, and without running anything."""

import io
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch
from click.testing import CliRunner
from peft_files import pair, write_directory
from safetensors.torch import load_file

from lorakit import SVDMerger, load_adapter, load_adapters
from lorakit.cli import main
from lorakit.exceptions import CorruptFileError, UnsafeFileError, UnsupportedAdapterError
from lorakit.files.checks import is_pickled

BIN = "adapter_model.bin"


class Payload:
    """What it says is run by whoever unpickles it with pickle."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture
def write_bin(tmp_path):
    """Write a PEFT directory whose weights are what torch.save makes of ``content``."""

    def write(content, folder="task", **options):
        path = write_directory(tmp_path, pair(), folder=folder)
        (path / "adapter_model.safetensors").unlink()
        torch.save(content, path / BIN, **options)
        return path

    return write


def two_modules(dtype=torch.float32):
    conv = {
        "base_model.model.c.lora_A.weight": torch.randn(2, 3, 3, 3, dtype=dtype),
        "base_model.model.c.lora_B.weight": torch.randn(4, 2, 1, 1, dtype=dtype),
    }
    return {**pair(dtype=dtype), **conv}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_same_bits_as_from_safetensors(write_bin, tmp_path, dtype, zipped):
    tensors = two_modules(dtype)
    path = write_bin(tensors, _use_new_zipfile_serialization=zipped)
    expected = load_adapter(write_directory(tmp_path, tensors, folder="safe"))
    for given in (path, path / BIN):
        adapter = load_adapter(given, allow_pickle=True)
        assert adapter.name == "task"
        assert adapter.dtype == dtype
        assert dict(adapter.infos) == dict(expected.infos)
        for module in expected:
            assert torch.equal(adapter[module].A, expected[module].A)
            assert torch.equal(adapter[module].B, expected[module].B)
    again = pickle.loads(pickle.dumps(adapter.select(["c"])))
    assert torch.equal(again["c"].A, expected["c"].A)
    assert joblib.hash(pickle.loads(pickle.dumps(adapter))) == joblib.hash(adapter)


def test_experts_in_a_pickle(write_bin, tmp_path):
    tensors = pair("mlp.experts", 6, 5, 4)
    fields = {"target_parameters": ["mlp.experts.w"]}
    expected = load_adapter(write_directory(tmp_path, tensors, folder="safe", **fields))
    path = write_directory(tmp_path, tensors, folder="pickled", **fields)
    (path / "adapter_model.safetensors").unlink()
    torch.save(tensors, path / BIN)
    adapter = load_adapter(path, allow_pickle=True)
    assert [*adapter] == [f"mlp.experts.{i}" for i in range(3)]
    assert all(torch.equal(adapter[m].A, expected[m].A) and torch.equal(adapter[m].B, expected[m].B) for m in expected)


def test_refused_without_the_flag(write_bin):
    path = write_bin(pair())
    for given in (path, path / BIN):
        with pytest.raises(UnsafeFileError, match=r"adapter_model\.bin.*save_file.*allow_pickle=True"):
            load_adapter(given)


def test_safetensors_are_preferred(write_bin):
    path = write_bin({"x": Payload("never")})
    path.joinpath("adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"adapter_model\.safetensors: is empty"):
        load_adapter(path, allow_pickle=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "value", "after tensors"])
def test_nothing_is_run(write_bin, tmp_path, zipped, place):
    target = tmp_path / "made_by_the_payload"
    content = {
        "alone": Payload(target),
        "value": {"x": Payload(target)},
        "after tensors": {**pair(), "x": Payload(target)},
    }
    path = write_bin(content[place], _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeFileError, match=r"adapter_model\.bin: asks for more than tensors, and nothing.*mkdir"):
        load_adapter(path, allow_pickle=True)
    assert not target.exists()
    torch.load(path / BIN, weights_only=False)  # it is armed
    assert target.is_dir()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_runs_nothing_either(write_bin, tmp_path, protocol):
    path = write_bin({})
    target = tmp_path / "made"
    (path / BIN).write_bytes(pickle.dumps({"x": Payload(target)}, protocol=protocol))
    with pytest.raises((UnsafeFileError, CorruptFileError), match=r"adapter_model\.bin"):
        load_adapter(path, allow_pickle=True)
    assert not target.exists()


OTHER_CONTENT = {
    "a list": ([torch.ones(2)], "holds a list, expected a dictionary"),
    "a tensor": (torch.ones(2), "holds a Tensor, expected a dictionary"),
    "a number": ({"a": torch.ones(2), "step": 7}, "holds a int under 'step'"),
    "nested": ({"state_dict": pair()}, "holds a dict under 'state_dict'"),
    "keys": ({1: torch.ones(2)}, "under 1, expected tensors by name"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse_coo tensor.*to_dense"),
    "no LoRA": ({"h.weight": torch.ones(2, 2)}, r"no LoRA factors: its first keys are \['h.weight'\]"),
    "integers": ({k: v.to(torch.int64) for k, v in pair().items()}, "stored as int64.*dequantize"),
}


@pytest.mark.parametrize("case", OTHER_CONTENT)
def test_other_content(write_bin, case):
    content, message = OTHER_CONTENT[case]
    path = write_bin(content)
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        load_adapter(path, allow_pickle=True)
    assert BIN in str(caught.value)


def zip_of(method, name="archive/data.pkl", data=b"x" * 1000):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


DAMAGED = {
    "empty": (b"", CorruptFileError, "is empty"),
    "text": (b"hello, world", CorruptFileError, "is no pickle.*again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", CorruptFileError, "git lfs pull"),
    "html": (b"<!DOCTYPE html><html>", CorruptFileError, "HTML page"),
    "pickle of nothing": (b"\x80\x04", CorruptFileError, "cannot be unpickled.*again"),
    "pickle cut": (pickle.dumps({"a": [1] * 99}, protocol=2)[:-40], CorruptFileError, "cannot be unpickled|again"),
    "zip cut": (zip_of(zipfile.ZIP_STORED)[:-30], CorruptFileError, "broken zip"),
    "zip of other things": (zip_of(zipfile.ZIP_STORED, "a.txt"), CorruptFileError, "cannot be unpickled.*again"),
    "bomb": (zip_of(zipfile.ZIP_DEFLATED), UnsafeFileError, "is compressed"),
    "TorchScript": (zip_of(zipfile.ZIP_STORED, "m/constants.pkl"), UnsupportedAdapterError, "TorchScript.*state_dict"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(write_bin, case):
    data, error, message = DAMAGED[case]
    path = write_bin({})
    (path / BIN).write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path, allow_pickle=True)
    assert BIN in str(caught.value)


def test_safetensors_under_a_false_name(write_bin, tmp_path):
    path = write_bin({})
    (write_directory(tmp_path, folder="safe") / "adapter_model.safetensors").rename(path / BIN)
    with pytest.raises(CorruptFileError, match="is a safetensors file, whatever its name says; rename it"):
        load_adapter(path, allow_pickle=True)


def test_truncated(write_bin):
    path = write_bin({k: v.repeat(50, 50) for k, v in pair().items()})
    whole = (path / BIN).read_bytes()
    for size in (10, 100, len(whole) // 2, len(whole) - 1):
        (path / BIN).write_bytes(whole[:size])
        with pytest.raises((CorruptFileError, UnsafeFileError), match=BIN):
            load_adapter(path, allow_pickle=True)


def test_a_view_that_repeats_itself(write_bin):
    tensors = {key: torch.ones(1).expand(1000, 100000) for key in pair()}
    with pytest.raises(CorruptFileError, match=r"claims shape \(1000, 100000\) in a file of"):
        load_adapter(write_bin(tensors), allow_pickle=True)


def test_no_regular_file(write_bin):
    path = write_bin({})
    (path / BIN).unlink()
    os.mkfifo(path / BIN)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        load_adapter(path, allow_pickle=True)


def test_not_with_a_torch_that_can_be_fooled(write_bin, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UnsafeFileError, match=r"torch 2\.9\.1\+cpu can be made to run code.*install torch 2\.10"):
        load_adapter(write_bin(pair()), allow_pickle=True)


def test_it_is_lazy(write_bin, monkeypatch):
    """The file is unpickled once, and mapped: what is not used of it is not read."""
    path = write_bin({**pair("a"), **pair("b", d_in=4_000_000)})
    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: loads.append(kwargs) or load(*args, **kwargs))
    resident = _resident()
    adapter = load_adapter(path, allow_pickle=True)
    for _ in range(3):
        adapter["a"]
    assert len(loads) == 1
    assert loads[0]["mmap"]
    assert loads[0]["weights_only"]
    assert _resident() - resident < 16 * 2**20  # b's A alone has 32 MB
    os.utime(path / BIN, ns=(1, 1))
    with pytest.raises(CorruptFileError, match="has changed since"):
        adapter["a"]


def _resident():
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGESIZE")


def test_merged_by_workers_and_by_the_command_line(write_bin, tmp_path):
    paths = [write_bin(pair(seed=i), folder=f"task{i}") for i in range(2)]
    adapters = load_adapters(paths, allow_pickle=True)
    merged = SVDMerger(k=2).fit(adapters).merged_
    with joblib.parallel_config("loky", n_jobs=2):
        assert torch.equal(SVDMerger(k=2).fit(adapters).merged_["enc.0.q"].A, merged["enc.0.q"].A)
    run = partial(CliRunner().invoke, main)
    arguments = ["merge", *map(str, paths), "-o", str(tmp_path / "out"), "--method", "svd", "-k", "2"]
    refused = run(arguments)
    assert refused.exit_code == 2
    assert "or pass --allow-pickle" in refused.stderr
    done = run([*arguments, "--allow-pickle"])
    assert done.exit_code == 0, done.output
    assert load_adapter(tmp_path / "out")["enc.0.q"].rank == 2
    assert [*load_file(tmp_path / "out" / "adapter_model.safetensors")] == [*pair()]
    assert run(["inspect", str(paths[0]), "--allow-pickle"]).exit_code == 0


def test_suffixes():
    assert is_pickled(Path("a/x.BIN"))
    assert not is_pickled(Path("a/x.safetensors"))
