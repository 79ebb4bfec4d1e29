"""The names of real models' modules survive every conversion there and back."""

from functools import cache

import pytest
import tiny_diffusion as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Adapter, LoraFactors, convert_adapter
from lorakit.adapters import Provenance

pytestmark = pytest.mark.interop

PIPELINES = {
    "sd1": {"unet": tiny.sd1_unet, "text_encoder": tiny.clip},
    "sdxl": {"unet": tiny.sdxl_unet, "text_encoder": tiny.clip, "text_encoder_2": tiny.clip_with_projection},
    "sd3": {
        "transformer": tiny.sd3_transformer,
        "text_encoder": tiny.clip_with_projection,
        "text_encoder_2": tiny.clip_with_projection,
        "text_encoder_3": tiny.t5,
    },
    "flux": {"transformer": tiny.flux_transformer, "text_encoder": tiny.clip, "text_encoder_2": tiny.t5},
}


FAMILIES = {"sd3": "sd3", "flux": "flux"}  # of the transformer, where the names alone do not always tell it


@cache
def layers_of(pipeline):
    """As diffusers' files name them: with text_model, whether or not the model has that level."""
    named = {}
    for component, make in PIPELINES[pipeline].items():
        for path, layer in tiny.layers(make()).items():
            level = "text_model." if path.startswith("encoder.layers.") else ""
            d_out, d_in = layer.weight.shape[:2]
            named[f"{component}.{level}{path}"] = LoraFactors(torch.ones(1, d_in), torch.ones(d_out, 1))
    return named


def modules_of(pipeline):
    return tuple(layers_of(pipeline))


ONE = LoraFactors(torch.ones(1, 1), torch.ones(1, 1))


def adapter_of(modules, format="diffusers", pipeline=None):
    layers = layers_of(pipeline) if pipeline else {}
    factors = {module: layers.get(module, ONE) for module in modules}
    return Adapter(factors, provenance=Provenance(format=format))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_whole_pipelines(pipeline):
    modules, family = modules_of(pipeline), FAMILIES.get(pipeline)
    kohya = convert_adapter(adapter_of(modules, pipeline=pipeline), "kohya", family=family)
    back = convert_adapter(kohya, "diffusers")
    assert set(back) == set(modules)
    assert tuple(convert_adapter(back, "kohya", family=family)) == tuple(kohya)
    for component in PIPELINES[pipeline]:
        peft = convert_adapter(kohya, "peft", component=component)
        assert set(convert_adapter(peft, "diffusers", component=component)) == {
            module for module in modules if module.startswith(f"{component}.")
        }


@given(st.data())
def test_any_part_of_them(data):
    pipeline = data.draw(st.sampled_from(sorted(PIPELINES)))
    modules = data.draw(st.lists(st.sampled_from(modules_of(pipeline)), min_size=1, max_size=8, unique=True))
    family = FAMILIES.get(pipeline)
    kohya = convert_adapter(adapter_of(modules, pipeline=pipeline), "kohya", family=family)
    assert set(convert_adapter(kohya, "diffusers", family=family)) == set(modules)


def test_stable_diffusion_1_is_flattened():
    """What sd-scripts does is to replace the dots."""
    kohya = convert_adapter(adapter_of(modules_of("sd1")), "kohya")
    for module, name in zip(modules_of("sd1"), kohya, strict=True):
        component, _, path = module.partition(".")
        assert name == f"lora_{'unet' if component == 'unet' else 'te'}_{path.replace('.', '_')}"


def test_stable_diffusion_xl_has_the_names_of_sd_scripts():
    kohya = convert_adapter(adapter_of(modules_of("sdxl")), "kohya")
    assert "lora_unet_input_blocks_7_1_transformer_blocks_2_attn2_to_k" in kohya
    assert "lora_unet_output_blocks_5_2_conv" in kohya
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1" in kohya
    assert not any("down_blocks" in module or module.startswith("lora_te_") for module in kohya)
    theirs = [f"lora_unet_{module.removeprefix('unet.').replace('.', '_')}" for module in modules_of("sdxl")
              if module.startswith("unet.")]  # fmt: skip
    assert list(convert_adapter(adapter_of(theirs, "kohya"), "diffusers")) == list(
        convert_adapter(kohya, "diffusers", component="unet")
    )


LANGUAGE_MODELS = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "phi3": {"tie_word_embeddings": False, "pad_token_id": 0},
    "phi": {},
    "gemma2": {"head_dim": 8},
    "starcoder2": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_mlx_has_the_names_of_transformers(kind):
    mlx_nn = pytest.importorskip("mlx.nn")
    mlx_models = pytest.importorskip("mlx_lm.utils")
    config = tiny.transformers.AutoConfig.for_model(
        kind,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        **LANGUAGE_MODELS[kind],
    )
    model = tiny.transformers.AutoModelForCausalLM.from_config(config)
    theirs = {path for path, layer in model.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Embedding))}
    model_class, args_class = mlx_models._get_classes(config.to_dict())
    mlx_model = model_class(args_class.from_dict(config.to_dict()))
    names = {path for path, layer in mlx_model.named_modules() if isinstance(layer, (mlx_nn.Linear, mlx_nn.Embedding))}
    assert names == theirs - ({"lm_head"} if config.tie_word_embeddings else set())
    adapter = adapter_of(sorted(names), "mlx")
    assert list(convert_adapter(convert_adapter(adapter, "peft"), "mlx")) == sorted(names)
