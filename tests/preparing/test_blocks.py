"""Blocks of diffusion models: which value of a list each module gets, written out by hand."""

import re

import pytest

from lorakit.exceptions import ParameterError
from lorakit.preparing._blocks import blocks_of, depths, factors_of_blocks

# Modules, and the place of their value in lists of 12, 17, 20 and 26 values, as sd-scripts and image tools count
TEXT = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
SD1 = {  # the 17 of Stable Diffusion 1, in the names of diffusers, and their places among 26
    TEXT: (0, 0),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (1, 2),
    "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q": (2, 3),
    "lora_unet_down_blocks_1_attentions_0_proj_in": (3, 5),
    "lora_unet_down_blocks_1_attentions_1_proj_in": (4, 6),
    "lora_unet_down_blocks_2_attentions_0_proj_in": (5, 8),
    "lora_unet_down_blocks_2_attentions_1_proj_in": (6, 9),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2": (7, 13),
    "lora_unet_up_blocks_1_attentions_0_proj_out": (8, 17),
    "lora_unet_up_blocks_1_attentions_1_proj_out": (9, 18),
    "lora_unet_up_blocks_1_attentions_2_proj_out": (10, 19),
    "lora_unet_up_blocks_2_attentions_0_proj_out": (11, 20),
    "lora_unet_up_blocks_2_attentions_1_proj_out": (12, 21),
    "lora_unet_up_blocks_2_attentions_2_proj_out": (13, 22),
    "lora_unet_up_blocks_3_attentions_0_proj_out": (14, 23),
    "lora_unet_up_blocks_3_attentions_1_proj_out": (15, 24),
    "lora_unet_up_blocks_3_attentions_2_proj_out": (16, 25),
}
XL = {  # the 12 of XL, in the names of its first code, and their places among 20 and 26
    "lora_te1_text_model_encoder_layers_3_self_attn_q_proj": (0, 0, 0),
    "lora_unet_input_blocks_4_1_proj_in": (1, 5, 5),
    "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q": (2, 6, 6),
    "lora_unet_input_blocks_7_1_proj_in": (3, 8, 8),
    "lora_unet_input_blocks_8_1_proj_in": (4, 9, 9),
    "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v": (5, 10, 13),
    "lora_unet_output_blocks_0_1_proj_in": (6, 11, 14),
    "lora_unet_output_blocks_1_1_proj_in": (7, 12, 15),
    "lora_unet_output_blocks_2_1_proj_in": (8, 13, 16),
    "lora_unet_output_blocks_3_1_proj_in": (9, 14, 17),
    "lora_unet_output_blocks_4_1_proj_in": (10, 15, 18),
    "lora_unet_output_blocks_5_1_proj_in": (11, 16, 19),
}
FLUX = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": (None, 0),
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (None, 1),
    "lora_unet_img_in": (None, 2),
    **{f"lora_unet_double_blocks_{i}_img_attn_qkv": (i, 3 + i) for i in range(19)},
    **{f"lora_unet_single_blocks_{i}_linear1": (19 + i, 22 + i) for i in range(38)},
    "lora_unet_final_layer_linear": (None, 60),
}


def diffusers_name(module):
    """The same module of FLUX.1 in the names of diffusers."""
    module = module.replace("lora_unet_double_blocks_", "transformer.transformer_blocks.")
    module = module.replace("lora_unet_single_blocks_", "transformer.single_transformer_blocks.")
    return re.sub(r"(?<=\d)_", ".", module)


@pytest.mark.parametrize(
    ("places", "column", "count"), [(SD1, 0, 17), (SD1, 1, 26), (XL, 0, 12), (XL, 1, 20), (XL, 2, 26), (FLUX, 1, 61)]
)
def test_each_module_gets_the_value_of_its_block(places, column, count):
    found = factors_of_blocks([100 + i for i in range(count)], list(places), places)
    assert found == {module: 100 + columns[column] for module, columns in places.items()}


@pytest.mark.parametrize("rename", [str, diffusers_name], ids=["kohya", "diffusers"])
def test_57_values_are_for_the_double_and_single_blocks(rename):
    inner = {rename(module): places[0] for module, places in FLUX.items() if places[0] is not None}
    assert len(inner) == 57
    assert factors_of_blocks(list(range(57)), list(inner), inner) == inner


def test_a_flux_file_of_a_few_blocks_takes_the_list_of_the_whole_model():
    modules = ["lora_unet_double_blocks_2_img_attn_qkv", "lora_unet_single_blocks_0_linear1"]
    found = factors_of_blocks(list(range(57)), modules, modules)
    assert found == dict(zip(modules, (2, 19), strict=True))


def test_a_smaller_flux_takes_as_many_values_as_it_has_blocks():
    modules = [f"transformer.transformer_blocks.{i}.attn.to_q" for i in range(5)]
    modules += [f"transformer.single_transformer_blocks.{i}.attn.to_q" for i in range(20)]
    assert factors_of_blocks(list(range(25)), modules, modules) == {m: i for i, m in enumerate(modules)}


def test_what_is_no_attention_keeps_its_update_under_a_short_list():
    modules = [*SD1, "lora_unet_conv_in", "lora_unet_down_blocks_0_downsamplers_0_conv", "lora_unet_time_embedding"]
    assert set(factors_of_blocks([0.5] * 17, modules, modules)) == set(SD1)
    all_26 = factors_of_blocks(list(range(26)), modules, modules)
    assert (all_26["lora_unet_conv_in"], all_26["lora_unet_down_blocks_0_downsamplers_0_conv"]) == (1, 4)
    assert "lora_unet_time_embedding" not in all_26


@pytest.mark.parametrize(
    ("places", "wrong", "right"), [(SD1, 12, "17 or 26"), (XL, 17, "12 or 20 or 26"), (FLUX, 26, "57 or 61")]
)
def test_a_list_of_another_model_is_refused(places, wrong, right):
    with pytest.raises(ParameterError, match=rf"blocks has {wrong} values.*{right}"):
        factors_of_blocks([1.0] * wrong, list(places), places)


def test_names_of_blocks():
    given = {"OUT03": 0.25, "OUT03-OUT05": 0.5, "IN": 0.0}
    found = factors_of_blocks(given, list(XL), XL)
    by_block = {blocks_of(list(XL))[module]: value for module, value in found.items()}
    assert by_block == {
        ("OUT", 3): 0.25,  # the first that names it counts
        **{("OUT", i): 0.5 for i in (4, 5)},
        **{("IN", i): 0.0 for i in (4, 5, 7, 8)},
    }


def test_a_span_may_go_from_one_kind_of_blocks_to_the_next():
    found = factors_of_blocks({"IN08-OUT01": 0.5}, list(XL), XL)
    assert {blocks_of(list(XL))[module] for module in found} == {("IN", 8), ("M", 0), ("OUT", 0), ("OUT", 1)}


@pytest.mark.parametrize("name", ["M00", "M", "MID"])
def test_names_of_the_middle(name):
    (module,) = factors_of_blocks({name: 0.5}, list(XL), XL)
    assert "middle_block" in module


@pytest.mark.parametrize("name", ["OUT11", "D03", "IN04-", "out", ""])
def test_a_block_without_modules_is_refused(name):
    with pytest.raises(ParameterError, match=rf"names '{name}'.*BASE, IN04-IN05, IN07-IN08, M00, OUT00-OUT05"):
        factors_of_blocks({name: 0.5}, list(XL), XL)


def test_no_diffusion_model():
    with pytest.raises(ParameterError, match=r"no module is in a block.*layers\.0"):
        factors_of_blocks([1.0] * 26, ["model.layers.0.mlp"], ["model.layers.0.mlp"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_are_finite(value):
    with pytest.raises(ParameterError, match="finite"):
        factors_of_blocks({"M": value}, list(XL), XL)


def test_depth_is_the_layer_or_the_place_of_the_block():
    layers = [f"model.layers.{i}.q_proj" for i in range(5)]
    depth = depths([*layers, "vision.blocks.0.fc", "vision.blocks.2.fc", "lm_head"])
    assert [depth(module) for module in layers] == [0, 0.25, 0.5, 0.75, 1]
    assert [depth("vision.blocks.2.fc"), depth("lm_head")] == [1, None]
    depth = depths(list(FLUX))
    assert depth("lora_unet_double_blocks_0_img_attn_qkv") == 0
    assert depth("lora_unet_single_blocks_0_linear1") == 19 / 56
    assert depth("lora_unet_single_blocks_37_linear1") == 1
