"""Opening checkpoints: what is taken, and what is refused with a reason."""

import json
import shutil

import pytest
import torch
from models import tensors, write_shards
from safetensors.torch import save_file

from lorakit.exceptions import CorruptFileError, UnsafeFileError, UnsupportedCheckpointError
from lorakit.files.open_checkpoint import open_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "base", tensors(torch.bfloat16))


def test_one_content_in_every_form(tmp_path, folder):
    content = tensors(torch.bfloat16)
    single = tmp_path / "single"
    single.mkdir()
    save_file(content, single / "diffusion_pytorch_model.safetensors")
    forms = (
        folder,
        folder / "model.safetensors.index.json",
        str(single),
        single / "diffusion_pytorch_model.safetensors",
        content,
    )
    for form in forms:
        opened = open_checkpoint(form)
        assert set(opened) == set(content)
        assert len(opened) == len(content)
        for name, tensor in content.items():
            assert torch.equal(opened[name], tensor)
            assert opened[name].dtype == tensor.dtype
        assert torch.equal(opened.rows("model.embed_tokens.weight", 3, 7), content["model.embed_tokens.weight"][3:7])


def test_a_pipeline_is_its_components(tmp_path):
    root = tmp_path / "pipe"
    for component, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (root / component).mkdir(parents=True)
        save_file({"a.weight": torch.ones(2, 2)}, root / component / f"{name}.safetensors")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text("{}")
    index = {"_class_name": "X", "unet": ["d", "U"], "text_encoder": ["t", "C"], "scheduler": ["d", "S"]}
    (root / "model_index.json").write_text(json.dumps(index))
    assert sorted(open_checkpoint(root)) == ["text_encoder.a.weight", "unet.a.weight"]


def test_a_missing_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CorruptFileError, match=r"model-00002-of-00003\.safetensors: is missing.*2 tensors are in it"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda placed: placed.update({"ghost.weight": placed["model.norm.weight"]}), "'ghost.weight' is in .*none of"),
        (lambda placed: placed.pop("model.norm.weight"), r"'model\.norm\.weight' is in no shard, and it is in model-"),
        (
            lambda placed: placed.update({"model.norm.weight": placed["model.layers.0.q_proj.weight"]}),
            r"says that 'model\.norm\.weight' is in model-00001",
        ),
        (lambda placed: placed.clear() or placed.update(a=3), "weight_map is"),
    ],
)
def test_an_index_that_lies(folder, change, message):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match=message):
        open_checkpoint(folder)


def test_an_index_that_points_out_of_its_folder(folder):
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(UnsafeFileError, match=r"names the shard '\.\./other"):
        open_checkpoint(folder)


def test_one_tensor_in_two_shards(folder):
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")
    with pytest.raises(CorruptFileError, match=r"is both in model-00001-of-00003.safetensors and in model-00002"):
        open_checkpoint(folder)


def test_a_truncated_shard(folder):
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CorruptFileError, match="is truncated"):
        open_checkpoint(folder)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    cases = {
        "empty": ((), UnsupportedCheckpointError, "holds no weights in safetensors.*it has nothing"),
        "pickled": (("pytorch_model.bin",), UnsafeFileError, "is a pickle"),
        "adapter": (("adapter_model.safetensors",), UnsupportedCheckpointError, "holds an adapter"),
        "several": (("a.safetensors", "b.safetensors"), UnsupportedCheckpointError, r"a\.safetensors, b\.safetensors"),
    }
    for name, (files, error, message) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_bytes(b"x")
        with pytest.raises(error, match=message):
            open_checkpoint(folder)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedCheckpointError, match="is no checkpoint in safetensors"):
        open_checkpoint(tmp_path / "model.gguf")
    with pytest.raises(TypeError, match="'a' is a int"):
        open_checkpoint({"a": 3})


def test_a_file_that_changed_since(folder):
    opened = open_checkpoint(folder)
    name = "model.norm.weight"
    path = opened.shard_of[name][0].path
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptFileError, match="has changed since"):
        opened[name]
