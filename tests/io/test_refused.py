"""Adapters of other kinds are refused by name, in whatever format they come, and plain LoRA never is."""

from pathlib import Path

import pytest
import torch
from peft_files import write_directory
from single_files import lora_ab, write_file

from lorakit import load_adapter
from lorakit.exceptions import UnsupportedAdapterError
from lorakit.io.formats._unsupported import is_marked, refuse_markers

# Ends of keys, as PEFT, LyCORIS and diffusers write them, and a word of the message.
KINDS = {
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "hada_w1_a.default"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "OFT": ("oft_blocks", "oft_R.weight", "oft_diag"),
    "BOFT": ("boft_R", "boft_s"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "glora_A"),
    "whole differences": ("diff", "diff_b", "set_weight"),
    "normalisation": ("w_norm", "b_norm"),
    "IA": ("on_input", "ia3_l"),
    "VeRA": ("vera_lambda_b", "vera_lambda_d", "vera_A"),
    "AdaLoRA": ("lora_E", "ranknum"),
    "DoRA": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    "lora_bias": ("lora_B.bias", "lora_up.bias"),
    "VB-LoRA": ("vblora_logits_A", "vblora_vector_bank.default"),
    "FourierFT": ("fourierft_spectrum",),
    "RandLoRA": ("randlora_lambda",),
    "T-LoRA": ("lambda_layer",),
    "Bone": ("bone_block", "miss_block"),
    "HRA": ("hra_u",),
    "SHiRA": ("shira_weight",),
    "C3A": ("c3a_kernel",),
    "prompt or prefix": ("prompt_embeddings",),
    "LLaMA-Adapter": ("adaption_prompt",),
    "Poly": ("poly_lora_A",),
    "layer norm tuning": ("ln_tuning_layers.weight",),
}
CASES = [(kind, end) for kind, ends in KINDS.items() for end in ends]


@pytest.mark.parametrize(("kind", "end"), CASES)
def test_every_kind_by_name(kind, end):
    key = f"lora_unet_mid_block.{end}"
    with pytest.raises(UnsupportedAdapterError) as caught:
        refuse_markers(Path("file.safetensors"), ["lora_unet_mid_block.alpha", key, f"other.{end}"])
    message = str(caught.value)
    assert message.startswith(f"file.safetensors: '{key}' belongs to ")
    assert kind in message
    assert "train" in message  # the way out


def test_a_file_is_named_by_what_makes_it_special():
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        refuse_markers(Path("x"), ["a.hada_w1_a", "a.dora_scale"])


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.encoder.layer.0.query.lora_A.weight",
        "base_model.model.q.lora_embedding_A",
        "unet.down_blocks.0.attn1.to_q.lora.down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_mid.weight",
        "lora_unet_x.alpha",
        "diffusion_model.diff.lora_A.weight",  # a module may be called as a kind's end
        "diffusion_model.a1.weight.lora_A.weight",
        "model.layers.0.m.lora_a",
        "sam.prompt_embeddings.0.proj.lora_A.weight",
        "diff",
        "w_norm",
    ],
)
def test_plain_lora_is_not_refused(key):
    assert not is_marked(key)
    refuse_markers(Path("x"), [key])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "prefix", ["unet.mid.", "transformer.blocks.0.", "lora_unet_mid.", "diffusion_model.mid.", "mid."]
)
@pytest.mark.parametrize("beside_lora", [True, False])
def test_in_files_of_every_format(tmp_path, kind, prefix, beside_lora):
    key = f"{prefix}{KINDS[kind][0]}"
    if prefix != "mid." and kind in ("LoHa", "LoKr"):
        pytest.skip("these are read: test_kinds.py")
    if prefix in ("lora_unet_mid.", "diffusion_model.mid.") and kind == "whole differences":
        pytest.skip("this is read: test_differences.py")
    tensors = {key: torch.ones(2, 2)}
    if beside_lora:
        other = prefix.rstrip(".")
        tensors |= lora_ab(other) if prefix != "lora_unet_mid." else {
            f"{other}.lora_down.weight": torch.ones(2, 3), f"{other}.lora_up.weight": torch.ones(3, 2)
        }  # fmt: skip
    path = write_file(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UnsupportedAdapterError) as caught:
        load_adapter(path)
    assert "x.safetensors" in str(caught.value)
    assert f"{key!r} belongs to" in str(caught.value)
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    "end", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight", "lora_E", "lora_B.bias"]
)
def test_in_peft_directories_that_say_lora(tmp_path, end):
    tensors = {f"base_model.model.{key}": tensor for key, tensor in lora_ab("q").items()}
    path = write_directory(tmp_path, {**tensors, f"base_model.model.q.{end}": torch.ones(3)})
    with pytest.raises(UnsupportedAdapterError, match=f"q.{end}' belongs to"):
        load_adapter(path)
