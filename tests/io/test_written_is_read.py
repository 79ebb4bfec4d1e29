"""What lorakit cannot read it does not write, and the old output stays; what reads as less than it was is refused."""

import pytest
import torch
from peft_files import pair, write_directory
from safetensors.torch import load_file
from single_files import factors, lora_ab, write_file, write_mlx

from lorakit import Adapter, LoraFactors, load_adapter, save_adapter
from lorakit.adapters import Provenance
from lorakit.exceptions import CorruptFileError, OutputError, UnsupportedAdapterError
from lorakit.files import json_text, safetensors


def adapter(*names, format="peft", **metadata):
    a, b = factors()
    return Adapter(dict.fromkeys(names, LoraFactors(a, b)), provenance=Provenance(format=format, metadata=metadata))


@pytest.fixture
def out(tmp_path):
    return save_adapter(adapter("old"), tmp_path / "out")


def still_old(out):
    return list(load_adapter(out)) == ["old"] and [*out.parent.iterdir()] == [out]


def test_a_name_that_is_too_long_with_its_prefix(out):
    with pytest.raises(OutputError, match=r"a name of 10.. characters, expected 1000 at most; rename the module"):
        save_adapter(adapter("m" * 990), out, overwrite=True)
    assert still_old(out)


def test_a_config_that_is_too_large(out, monkeypatch):
    monkeypatch.setattr(json_text, "_MAX_CONFIG", 1000)
    with pytest.raises(
        OutputError, match=r"out: nothing was written, as it could not be read again: .*out/adapter_config"
    ):
        save_adapter(adapter(*(f"layer.{i}.q" for i in range(100))), out, overwrite=True)
    monkeypatch.undo()
    assert still_old(out)


def test_a_header_that_is_too_large(tmp_path, monkeypatch):
    path = save_adapter(adapter("lora_unet_a", format="kohya"), tmp_path / "out.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(safetensors, "_MAX_HEADER", 10_000)
    with pytest.raises(OutputError, match=r"its header would have .* bytes, expected 10000 at most"):
        save_adapter(adapter("lora_unet_b", format="kohya", ss_tag_frequency="x" * 10_000), path, overwrite=True)
    assert path.read_bytes() == before


def test_too_many_tensors(out, monkeypatch):
    monkeypatch.setattr(safetensors, "_MAX_TENSORS", 5)
    with pytest.raises(OutputError, match="would hold 6 tensors, expected 5 at most"):
        save_adapter(adapter("a", "b", "c"), out, overwrite=True)
    assert still_old(out)


def test_a_module_that_would_read_as_another(tmp_path):
    """Readers of diffusers' files leave out the part of a name that its old attention processors had."""
    path = save_adapter(adapter("unet.a", format="diffusers"), tmp_path / "out.safetensors")
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"nothing was written, as module 'unet\.a\.processor\.b' would not be read"):
        save_adapter(adapter("unet.a.processor.b", "unet.c", format="diffusers"), path, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\x00b", "m" * 5000])
def test_names_in_pickles(tmp_path, name):
    path = write_directory(tmp_path)
    (path / "adapter_model.safetensors").unlink()
    torch.save(pair(name), path / "adapter_model.bin")
    with pytest.raises(CorruptFileError, match=r"cannot be printed|a name of 5.* characters") as caught:
        load_adapter(path, allow_pickle=True)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_mlx_experts_and_a_module_of_one_name(tmp_path):
    """Three experts of m and a module m.1 are four updates; three were read."""
    a, b = torch.randn(3, 2, 6), torch.randn(3, 4, 2)
    one = {"m.1.lora_a": torch.randn(6, 2), "m.1.lora_b": torch.randn(2, 4)}
    path = write_mlx(tmp_path / "x", {"m.lora_a": a, "m.lora_b": b, **one})
    with pytest.raises(UnsupportedAdapterError, match=r"'m\.1' is both an expert of a module and a module of its own"):
        load_adapter(path)


@pytest.mark.parametrize("rank", [2.9, 0, -2])
def test_mlx_ranks_are_whole(tmp_path, rank):
    with pytest.raises(CorruptFileError, match=rf"rank is {rank}, expected a whole number of 1 or more"):
        load_adapter(write_mlx(tmp_path / "x", rank=rank))


def test_one_module_in_two_spellings(tmp_path):
    """Read as two modules before, without a word."""
    kohya = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {**lora_ab("unet.mid_block.attentions.0.proj_in"), **lora_ab(kohya)}
    with pytest.raises(UnsupportedAdapterError, match=f"{kohya}' is named as in kohya files and 'unet.mid_block"):
        load_adapter(write_file(tmp_path / "x.safetensors", tensors))


def test_a_fold_that_is_far_larger_than_its_file(tmp_path):
    m = "lora_unet_x"
    tensors = {
        f"{m}.lora_down.weight": torch.randn(1, 400, 1, 1),
        f"{m}.lora_mid.weight": torch.randn(400, 1, 1, 1),
        f"{m}.lora_up.weight": torch.randn(4, 400, 1, 1),
    }
    with pytest.raises(UnsupportedAdapterError, match=f"{m}.*of 160000 numbers, expected at most 64 times the 800"):
        load_adapter(write_file(tmp_path / "x.safetensors", tensors))


def test_lists_and_objects_are_counted_before_they_are_made(monkeypatch):
    monkeypatch.setattr(json_text, "_MAX_OBJECTS", 3)
    assert json_text.parse_json(b'[{}, {}, {"a": 1}]')
    with pytest.raises(ValueError, match="more than 3 objects"):
        json_text.parse_json(b"[{}, {}, {}, {}]")
    monkeypatch.setattr(json_text, "_MAX_LISTS", 3)
    with pytest.raises(ValueError, match="more than 3 lists"):
        json_text.parse_json(b"[[], [], []]")


def test_many_unknown_fields_are_named_in_few_words(tmp_path):
    path = write_directory(tmp_path, **{f"field_{i:04}": True for i in range(2000)})
    with pytest.warns(UserWarning, match="sets field_0000, .* and 1990 more, which this version") as caught:
        load_adapter(path)
    assert len(str(caught[0].message)) < 500


def test_a_config_that_cannot_be_read(tmp_path, monkeypatch):
    path = write_directory(tmp_path)
    (path / "adapter_config.json").unlink()
    try:
        (path / "adapter_config.json").symlink_to("/proc/self/mem")  # a regular file, whose first byte is an error
    except OSError:
        pytest.skip("no links here")
    if not (path / "adapter_config.json").exists():
        pytest.skip("no such file here")
    with pytest.raises(CorruptFileError, match=r"adapter_config\.json: cannot be read: Input/output error"):
        load_adapter(path)


def test_closed_files_are_opened_again(out):
    opened = load_adapter(out)
    opened["old"]
    safetensors.close_files()
    assert torch.equal(
        opened["old"].A, load_file(out / "adapter_model.safetensors")["base_model.model.old.lora_A.weight"]
    )
