"""What files say of their trainer and of the family of their base model; nothing is guessed."""

import json
import warnings

import pytest
import torch
from single_files import configs, factors, lora_ab, write_file, write_mlx

from lorakit import SVDMerger, load_adapter, save_adapter
from lorakit.io.origin import family_of, trainer_of
from lorakit.testing import make_adapters


def kohya(module, d_in=6, d_out=6):
    a, b = factors(2, d_in, d_out)
    return {f"{module}.lora_down.weight": a, f"{module}.lora_up.weight": b, f"{module}.alpha": torch.tensor(2.0)}


FLUX = kohya("lora_unet_double_blocks_0_img_attn_qkv", 6, 18)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"ss_sd_scripts_commit_hash": "ab", "ss_network_module": "networks.lora"}, "sd-scripts"),
        ({"ss_sd_scripts_commit_hash": "ab", "ss_network_module": "lycoris.kohya"}, "LyCORIS in sd-scripts"),
        ({"ss_network_module": "networks.lora_wan"}, "musubi-tuner"),
        ({"ss_network_module": "networks.lora"}, "sd-scripts or musubi-tuner"),
        ({"ss_network_module": "lycoris.kohya"}, "LyCORIS in kohya's trainers"),
        ({"ot_branch": "master"}, "OneTrainer"),
        ({"software": json.dumps({"name": "ai-toolkit", "version": "0.9"})}, "ai-toolkit 0.9"),
        ({"software": "[1"}, None),
        ({"software": "[]", "ss_output_name": "x"}, None),
        ({"modelspec.sai_model_spec": "1.0.0"}, None),
        ({}, None),
    ],
)
def test_a_trainer_is_known_by_its_metadata(tmp_path, metadata, expected):
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", FLUX, metadata))
    assert trainer_of(adapter) == expected


def test_a_trainer_is_known_by_its_files(tmp_path, real_adapter_paths):
    assert trainer_of(load_adapter(real_adapter_paths["icd10"])).startswith("PEFT 0.")
    assert trainer_of(load_adapter(write_mlx(tmp_path / "mlx"))) == "mlx-lm"
    path = write_file(tmp_path / "y.safetensors", kohya("lycoris_double_blocks_0_img_attn_proj"))
    assert trainer_of(load_adapter(path)) == "LyCORIS"
    tensors = lora_ab("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    path = write_file(tmp_path / "z.safetensors", tensors, configs(unet={"r": 2, "lora_alpha": 2}))
    assert trainer_of(load_adapter(path)) == "diffusers"


def test_what_was_merged_is_of_lorakit(tmp_path):
    marked = {"ss_sd_scripts_commit_hash": "ab", "ss_network_module": "networks.lora"}
    path = write_file(tmp_path / "x.safetensors", FLUX, marked)
    merged = SVDMerger(k=2).fit([load_adapter(path, name=name) for name in "ab"]).merged_
    out = load_adapter(save_adapter(merged, tmp_path / "merged.safetensors"))
    assert out.provenance.metadata["ss_network_module"] == "networks.lora"
    assert trainer_of(out).startswith("lorakit ")


def test_an_adapter_of_no_file():
    (adapter,) = make_adapters(1, random_state=0)
    assert trainer_of(adapter) is None
    assert family_of(adapter) is None


UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (FLUX, "FLUX.1, FLUX.2 or HunyuanVideo (kohya names)"),
        (kohya("lora_unet_single_blocks_0_modulation_lin", 6, 18), "FLUX.1 (kohya names)"),
        (kohya(UNET, 768), "Stable Diffusion 1 (kohya names)"),
        (kohya(UNET, 1024), "Stable Diffusion 2 (kohya names)"),
        (kohya(UNET, 2048), "SDXL (kohya names)"),
        (kohya(UNET.replace("attn2", "attn1"), 640), "Stable Diffusion 1, 2 or XL (kohya names)"),
        (kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v", 2048), "SDXL (kohya names)"),
        (
            lora_ab("transformer.single_transformer_blocks.0.proj_mlp", d_in=4, d_out=16),
            "FLUX.1 or HunyuanVideo (diffusers names)",
        ),
        (lora_ab("diffusion_model.double_blocks.0.img_attn.qkv", d_in=6, d_out=18), "FLUX.1 or FLUX.2 (comfyui names)"),
    ],
)
def test_a_family_is_known_by_names_and_widths(tmp_path, tensors, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = family_of(load_adapter(write_file(tmp_path / "x.safetensors", tensors)))
    assert found == expected


def test_a_family_of_language_models(tmp_path, real_adapter_paths):
    assert family_of(load_adapter(real_adapter_paths["icd10"])) == "a model of transformers"
    (adapter,) = make_adapters(1, n_modules=1, random_state=0)
    named = adapter.rename_modules(lambda _: "model.layers.0.self_attn.q_proj")
    assert family_of(named) == "a language model with Llama's names (peft names)"


def test_a_class_that_the_config_names(tmp_path):
    (adapter,) = make_adapters(1, random_state=0)
    path = save_adapter(adapter, tmp_path / "a")
    config = json.loads((path / "adapter_config.json").read_text())
    for library, expected in (("transformers.models.bert.modeling_bert", "BertModel of transformers"), ("mine", None)):
        config["auto_mapping"] = {"base_model_class": "BertModel", "parent_library": library}
        (path / "adapter_config.json").write_text(json.dumps(config))
        assert family_of(load_adapter(path)) == expected
