"""What is read from a PEFT directory: scales, kinds, dtypes, names, laziness."""

import math
import os
import pickle
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch
from peft_files import pair, write_directory

from lorakit import load_adapter, load_adapters
from lorakit.adapters import ModuleKind
from lorakit.exceptions import CorruptFileError, UnsupportedAdapterError


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


def raw_update(tensors, module="enc.0.q"):
    a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
    return b.double().flatten(1) @ a.double().flatten(1)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / math.sqrt(2)),
        ({"lora_alpha": -4}, -2.0),
        ({"lora_alpha": 0}, 0.0),
        ({"alpha_pattern": {"q": 6}}, 3.0),
        ({"alpha_pattern": {"enc.0.q": 6}}, 3.0),
        ({"alpha_pattern": {"0.q": 8, "q": 6}}, 4.0),  # the first in file order wins
        ({"alpha_pattern": {"q": 6, "0.q": 8}}, 3.0),
        ({"alpha_pattern": {"nc.0.q": 8}}, 2.0),  # what stands before must end in a dot
        ({"alpha_pattern": {r"enc\.[0-3]\.q": 8}}, 4.0),
        ({"r": 7, "rank_pattern": {"q": 2}, "use_rslora": True, "alpha_pattern": {"x": 1}}, 4 / math.sqrt(2)),
        ({"r": ...}, 2.0),
    ],
)
def test_scale_is_folded_in(write_peft, changes, scale):
    adapter = load_adapter(write_peft(**changes))
    torch.testing.assert_close(adapter["enc.0.q"].delta().double(), scale * raw_update(pair()), rtol=1e-5, atol=1e-5)


def test_scale_is_split_evenly(write_peft):
    factors = load_adapter(write_peft())["enc.0.q"]
    torch.testing.assert_close(factors.A, pair()["base_model.model.enc.0.q.lora_A.weight"] * math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_widened_before_scaling(write_peft, dtype):
    tensors = pair(dtype=dtype)
    adapter = load_adapter(write_peft(tensors, lora_alpha=3))
    assert adapter.dtype == dtype
    assert adapter["enc.0.q"].dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(adapter["enc.0.q"].delta().double(), 1.5 * raw_update(tensors), rtol=1e-5, atol=1e-5)


def test_embedding_and_convolutions(write_peft):
    prefix = "base_model.model."
    tensors = {
        f"{prefix}wte.lora_embedding_A": torch.randn(2, 11),
        f"{prefix}wte.lora_embedding_B": torch.randn(4, 2),
        f"{prefix}c1.lora_A.weight": torch.randn(2, 3, 5),
        f"{prefix}c1.lora_B.weight": torch.randn(4, 2, 1),
        f"{prefix}c3.lora_A.weight": torch.randn(2, 3, 2, 1, 2),
        f"{prefix}c3.lora_B.weight": torch.randn(4, 2, 1, 1, 1),
    }
    adapter = load_adapter(write_peft(tensors))
    assert adapter.infos["wte"] == (2, 11, 4, ModuleKind("embedding"))
    assert adapter.infos["c1"] == (2, 15, 4, ModuleKind("conv", (5,)))
    assert adapter.infos["c3"] == (2, 12, 4, ModuleKind("conv", (2, 1, 2)))
    torch.testing.assert_close(adapter["c3"].delta(), 2 * raw_update(tensors, "c3").float())


@pytest.mark.parametrize("infix", ["default", "my_task"])
def test_adapter_name_in_keys_is_tolerated(write_peft, infix):
    tensors = {key.replace(".weight", f".{infix}.weight"): value for key, value in pair().items()}
    assert list(load_adapter(write_peft(tensors))) == ["enc.0.q"]


def test_keys_without_prefix_are_tolerated(write_peft):
    tensors = {key.removeprefix("base_model.model."): value for key, value in pair().items()}
    assert list(load_adapter(write_peft(tensors))) == ["enc.0.q"]


def test_provenance(write_peft):
    path = write_peft(task_type="SEQ_CLS", fan_in_fan_out=True)
    known = load_adapter(path).provenance
    assert (known.format, known.base_model, known.task_type, known.fan_in_fan_out) == (
        "peft",
        "org/base",
        "SEQ_CLS",
        True,
    )
    assert known.sources[0].name == "task"
    assert known.sources[0].path == path / "adapter_model.safetensors"


def test_directory_file_string_and_relative_path_are_the_same(write_peft, monkeypatch):
    path = write_peft()
    monkeypatch.chdir(path)
    for given in (path, str(path), path / "adapter_model.safetensors", Path(), "../task", "adapter_model.safetensors"):
        adapter = load_adapter(given)
        assert adapter.name == "task"
        assert adapter.provenance.sources[0].path.samefile(path / "adapter_model.safetensors")


def test_opening_reads_no_weights(write_peft):
    tensors = {**pair("a"), **pair("b")}
    tensors["base_model.model.b.lora_A.weight"][0, 0] = torch.nan
    adapter = load_adapter(write_peft(tensors))
    assert adapter["a"].rank == 2
    with pytest.raises(CorruptFileError, match=r"module 'b'.*1 NaN or infinite values of 10"):
        adapter["b"]


def test_a_scale_that_overflows_is_named(write_peft):
    tensors = {name: tensor * 1e38 for name, tensor in pair("a").items()}
    adapter = load_adapter(write_peft(tensors, lora_alpha=2000))
    with pytest.raises(
        CorruptFileError, match=r"module 'a' has values up to .*e\+38, which its scale 1000 makes infinite"
    ):
        adapter["a"]


def test_names_are_made_distinct(write_peft):
    paths = [write_peft(folder=name) for name in ("x/last", "y/last", "z")]
    assert load_adapters(paths).names == ("x/last", "y/last", "z")
    assert load_adapters([paths[2], paths[2]]).names == ("z", "z-2")
    assert load_adapters(paths, names="abc").names == ("a", "b", "c")
    assert load_adapters(str(paths[2])).names == ("z",)
    for names in (["a", "b"], ["a", "a", "b"]):
        with pytest.raises(ValueError, match="3 different names"):
            load_adapters(paths, names=names)


def test_pickles_as_path(write_peft):
    adapter = load_adapter(write_peft(pair(d_in=5000)), name="n")
    data = pickle.dumps(adapter)
    assert len(data) < 1500
    again = pickle.loads(data)
    assert (again.name, again.dtype, again.provenance) == (adapter.name, adapter.dtype, adapter.provenance)
    assert torch.equal(again["enc.0.q"].A, adapter["enc.0.q"].A)
    assert joblib.hash(again) == joblib.hash(adapter)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_changed_file_is_noticed(write_peft, file):
    path = write_peft()
    adapter = load_adapter(path)
    data = pickle.dumps(adapter)
    os.utime(path / file, ns=(1, 1))
    for use in (lambda: adapter["enc.0.q"], lambda: pickle.loads(data)):
        with pytest.raises(CorruptFileError, match=rf"{file}.*has changed since.*load_adapter again"):
            use()
    (path / file).unlink()
    for use in (lambda: adapter["enc.0.q"], lambda: pickle.loads(data)):
        with pytest.raises(FileNotFoundError, match=file):
            use()


def test_assume_alpha(write_peft):
    update = raw_update(pair()).float()
    bare = load_adapter(write_peft(config=False), assume_alpha=8)
    torch.testing.assert_close(bare["enc.0.q"].delta(), 4 * update)
    silent = load_adapter(write_peft(folder="b", lora_alpha=...), assume_alpha=8)
    torch.testing.assert_close(silent["enc.0.q"].delta(), 4 * update)
    given = load_adapter(write_peft(folder="c"), assume_alpha=8)
    torch.testing.assert_close(given["enc.0.q"].delta(), 2 * update)


@pytest.mark.parametrize("field", [{"modules_to_save": ["classifier"]}, {"trainable_token_indices": [1]}, {}])
def test_weights_beside_are_dropped_only_when_asked(write_peft, field):
    tensors = {**pair(), "base_model.model.classifier.weight": torch.ones(2, 2)}
    path = write_peft(tensors, **field)
    with pytest.raises(UnsupportedAdapterError, match="modules_to_save='drop'"):
        load_adapter(path)
    with pytest.warns(UserWarning, match=r"left out.*classifier\.weight"):
        adapter = load_adapter(path, modules_to_save="drop")
    assert list(adapter) == ["enc.0.q"]
    pickle.loads(pickle.dumps(adapter))  # no second warning, which would be an error here
    with pytest.raises(ValueError, match="'refuse', 'drop' or 'first'"):
        load_adapter(path, modules_to_save="keep")


def test_unknown_config_fields_are_warned_of(write_peft):
    with pytest.warns(UserWarning, match=r"sets use_newlora, which this version of lorakit does not know"):
        load_adapter(write_peft(use_newlora=True, other=None))
