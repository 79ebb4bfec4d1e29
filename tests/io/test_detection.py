"""Formats are told by content: every sample is recognised by exactly one codec, whatever the file is called."""

import pytest
import torch
from peft_files import pair as peft_pair
from peft_files import write_directory
from single_files import configs, lora_ab, pair, write_file, write_mlx

from lorakit import load_adapter
from lorakit.exceptions import LorakitError, UnsupportedAdapterError
from lorakit.io.formats.codec import Location
from lorakit.io.formats.registry import codecs

MOCHI, XLABS = "blocks.0.attn.qkv_x", "single_blocks.0.processor.proj_lora"
OLD = "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"


def down_up(start):
    return pair(f"{start}down.weight", f"{start}up.weight")


def default_ab(module):
    return pair(f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight")


# Name of the sample: (format, what writes it below a folder and returns the path to open)
SAMPLES = {
    "peft": ("peft", lambda p: write_directory(p)),
    "peft, its file": ("peft", lambda p: write_directory(p) / "adapter_model.safetensors"),
    "peft, the file renamed": (
        "peft", lambda p: (write_directory(p) / "adapter_model.safetensors").rename(p / "task" / "x.safetensors")),
    "peft, bare keys": ("peft", lambda p: write_directory(p, lora_ab("encoder.q"))),
    "peft, diffusion-pipe": (
        "peft", lambda p: write_directory(p, lora_ab("diffusion_model.q")) / "adapter_model.safetensors"),
    "peft, bare keys of a transformer": (
        "peft", lambda p: write_directory(p, lora_ab("transformer.blocks.0.q")) / "adapter_model.safetensors"),
    "peft, one file": ("peft", lambda p: write_file(p / "x.safetensors", peft_pair())),
    "kohya": (
        "kohya", lambda p: write_file(p / "x.safetensors", down_up("lora_unet_q.lora_"))),
    "kohya, text encoder": (
        "kohya", lambda p: write_file(p / "x.safetensors", down_up("lora_te1_q.lora_"))),
    "diffusers": ("diffusers", lambda p: write_file(p / "x.safetensors", lora_ab("unet.q"))),
    "diffusers, a directory": (
        "diffusers", lambda p: write_file(p / "task" / "pytorch_lora_weights.safetensors", lora_ab("unet.q")).parent),
    "diffusers, flux": ("diffusers", lambda p: write_file(p / "x.safetensors", lora_ab("transformer.single.0.q"))),
    "diffusers, with configs": (
        "diffusers",
        lambda p: write_file(p / "x.safetensors", lora_ab("unet.q"), configs(unet={"r": 2, "lora_alpha": 2}))),
    "diffusers, text encoder": (
        "diffusers", lambda p: write_file(p / "x.safetensors", lora_ab("text_encoder_2.text_model.q"))),
    "diffusers, old": ("diffusers", lambda p: write_file(p / "x.safetensors", down_up(f"{OLD}."))),
    "comfyui": ("comfyui", lambda p: write_file(p / "x.safetensors", lora_ab("diffusion_model.q"))),
    "comfyui, text encoder": ("comfyui", lambda p: write_file(p / "x.safetensors", lora_ab("text_encoders.clip_l.q"))),
    "bare, diffusers' names": (
        "bare", lambda p: write_file(p / "x.safetensors", default_ab("transformer_blocks.0.attn.to_q"))),
    "bare, Wan": ("bare", lambda p: write_file(p / "x.safetensors", lora_ab("blocks.0.self_attn.q"))),
    "bare, a model without a table": (
        "bare", lambda p: write_file(p / "x.safetensors", down_up("transformer_blocks.0.new_layer.lora_"))),
    "bare, Mochi": (
        "bare", lambda p: write_file(p / "x.safetensors", pair(f"{MOCHI}.lora_A", f"{MOCHI}.lora_B"))),
    "xlabs": ("xlabs", lambda p: write_file(p / "x.safetensors", down_up("double_blocks.0.processor.qkv_lora1."))),
    "xlabs, with a prefix": (
        "xlabs", lambda p: write_file(p / "x.safetensors", down_up(f"diffusion_model.{XLABS}."))),
    "control_lora": (
        "control_lora",
        lambda p: write_file(
            p / "x.safetensors", {"lora_controlnet": torch.zeros(0)} | pair("input_blocks.0.down", "input_blocks.0.up"))
    ),
    "mlx": ("mlx", lambda p: write_mlx(p / "task")),
    "mlx, its file": ("mlx", lambda p: write_mlx(p / "task") / "adapters.safetensors"),
    "mlx, a checkpoint": (
        "mlx", lambda p: write_mlx(p / "task", weights="0100_adapters.safetensors") / "0100_adapters.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("format", "write"), SAMPLES.values(), ids=SAMPLES)
def test_exactly_one_codec_recognises_it(tmp_path, format, write):
    path = write(tmp_path)
    location = Location(path)
    asked = [(codec, location.weights(codec.about)) for codec in codecs()]
    assert [c.about.name for c, weights in asked if weights is not None and c.recognises(location, weights)] == [format]
    assert load_adapter(path, assume_alpha=2).provenance.format == format


def test_every_format_has_samples():
    assert {format for format, _ in SAMPLES.values()} == {codec.about.name for codec in codecs()}


@pytest.mark.parametrize(("format", "write"), SAMPLES.values(), ids=SAMPLES)
def test_format_forces(tmp_path, format, write):
    """The right format gives the same; a wrong one a typed error, or what the bytes mean in that format."""
    path = write(tmp_path)
    expected = load_adapter(path, assume_alpha=2)
    for codec in codecs():
        if codec.about.name == format:
            assert list(load_adapter(path, format=format, assume_alpha=2)) == list(expected)
            continue
        adapter, error = None, None
        try:
            adapter = load_adapter(path, format=codec.about.name, assume_alpha=2)
        except LorakitError as raised:
            error = str(raised)
        assert (adapter is not None and adapter.provenance.format == codec.about.name) or str(tmp_path) in error


def test_unknown_formats_are_listed():
    with pytest.raises(ValueError, match=r"'peft'.*got 'pefd'"):
        load_adapter(".", format="pefd")


@pytest.mark.parametrize(
    "keys", [["model.a", "model.b", "model.c", "model.d"], ["model.diffusion_model.out.weight"], []]
)
def test_what_no_format_knows(tmp_path, keys):
    path = write_file(tmp_path / "x.safetensors", {key: torch.ones(2) for key in keys})
    with pytest.raises(UnsupportedAdapterError, match="no LoRA factors of a known format") as caught:
        load_adapter(path)
    assert str(keys[:3]) in str(caught.value)
