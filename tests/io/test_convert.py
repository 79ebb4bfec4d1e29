"""Names of modules in one family of files and in another: exact, both ways, or refused."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Adapter, LoraFactors, SVDMerger, convert_adapter, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import UnsupportedAdapterError
from lorakit.io.names.kohya import dialects
from lorakit.io.names.table import NameTable
from lorakit.testing import make_adapters

ONE = LoraFactors(torch.ones(1, 2), torch.ones(2, 1))
TO_Q = "transformer_blocks.0.attn1.to_q"


def adapter_of(modules, format, **known):
    return Adapter(dict.fromkeys(modules, ONE), name="mine", provenance=Provenance(format=format, **known))


def names(modules, format, to, component=None, **metadata):
    return list(convert_adapter(adapter_of(modules, format, metadata=metadata), to, component=component))


# kohya: diffusers, by hand
PAIRS = {
    "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0": (
        "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
    ),
    "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj": (
        "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"
    ),
    "lora_unet_mid_block_resnets_1_time_emb_proj": "unet.mid_block.resnets.1.time_emb_proj",
    "lora_unet_down_blocks_10_downsamplers_0_conv": "unet.down_blocks.10.downsamplers.0.conv",
    "lora_te_text_model_encoder_layers_11_self_attn_out_proj": (
        "text_encoder.text_model.encoder.layers.11.self_attn.out_proj"
    ),
}
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v"
    ),
    "lora_unet_input_blocks_2_0_in_layers_2": "unet.down_blocks.0.resnets.1.conv1",
    "lora_unet_input_blocks_6_0_op": "unet.down_blocks.1.downsamplers.0.conv",
    "lora_unet_middle_block_2_out_layers_3": "unet.mid_block.resnets.1.conv2",
    "lora_unet_output_blocks_8_0_skip_connection": "unet.up_blocks.2.resnets.2.conv_shortcut",
    "lora_unet_output_blocks_3_0_emb_layers_1": "unet.up_blocks.1.resnets.0.time_emb_proj",
    "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
    "lora_te1_text_model_encoder_layers_0_mlp_fc2": "text_encoder.text_model.encoder.layers.0.mlp.fc2",
    "lora_te2_text_projection": "text_encoder_2.text_projection",
}
FLUX = {
    "lora_unet_double_blocks_18_img_attn_proj": "transformer.transformer_blocks.18.attn.to_out.0",
    "lora_unet_single_blocks_37_modulation_lin": "transformer.single_transformer_blocks.37.norm.linear",
    "lora_unet_time_in_out_layer": "transformer.time_text_embed.timestep_embedder.linear_2",
    "lora_te1_text_model_encoder_layers_0_mlp_fc2": "text_encoder.text_model.encoder.layers.0.mlp.fc2",
    "lora_te3_encoder_block_3_layer_1_DenseReluDense_wo": "text_encoder_2.encoder.block.3.layer.1.DenseReluDense.wo",
}
SD3 = {
    "lora_unet_joint_blocks_2_x_block_mlp_fc1": "transformer.transformer_blocks.2.ff.net.0.proj",
    "lora_unet_joint_blocks_2_context_block_attn_proj": "transformer.transformer_blocks.2.attn.to_add_out",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
}
ONETRAINER = {
    "lora_transformer_transformer_blocks_2_attn_add_q_proj": "transformer.transformer_blocks.2.attn.add_q_proj",
    "lora_transformer_single_transformer_blocks_0_proj_mlp": "transformer.single_transformer_blocks.0.proj_mlp",
    "lora_te1_text_model_encoder_layers_0_mlp_fc2": "text_encoder.text_model.encoder.layers.0.mlp.fc2",
}


@pytest.mark.parametrize(
    ("pairs", "version"),
    [(PAIRS, "sd_v1"), (SDXL, ""), (SDXL, "sdxl_base_v1-0"), (FLUX, "flux1"), (SD3, "sd3m"), (ONETRAINER, "")],
)
def test_kohya_and_diffusers(pairs, version):
    assert names(pairs, "kohya", "diffusers", ss_base_model_version=version) == list(pairs.values())
    assert names(pairs.values(), "diffusers", "kohya", ss_base_model_version=version) == list(pairs)


def test_a_single_text_encoder_of_a_larger_model_keeps_its_number():
    module = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert names([module], "diffusers", "kohya") == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    numbered = ["lora_te1_text_model_encoder_layers_0_mlp_fc1"]
    assert names([module], "diffusers", "kohya", ss_base_model_version="sdxl_base_v1-0") == numbered
    assert names([module], "diffusers", "kohya", ss_base_model_version="flux1") == numbered
    modules = [module, "transformer.single_transformer_blocks.0.proj_mlp"]
    assert names(modules, "diffusers", "kohya")[:1] == numbered


def test_a_model_with_more_blocks_than_stable_diffusion_xl_keeps_the_names_of_diffusers():
    modules = ["unet.down_blocks.3.resnets.0.conv1", "unet.mid_block.attentions.0.transformer_blocks.5.attn1.to_q"]
    assert names(modules, "diffusers", "kohya") == [f"lora_{module.replace('.', '_')}" for module in modules]


@pytest.mark.parametrize("table", dialects()._fields)
@given(data=st.data())
def test_every_name_of_every_table_comes_back(table, data):
    chosen = getattr(dialects(), table)
    rules = [rule for alike in chosen._leftwards.values() for rule in alike]
    rule = data.draw(st.sampled_from(rules))
    numbers = data.draw(st.lists(st.integers(0, 60), min_size=rule.numbers, max_size=rule.numbers))
    left = rule.template.format(*numbers)
    right = chosen.right_of(left)
    assert right is not None
    assert chosen.left_of(right) == left
    assert "." not in left
    assert names([left], "kohya", "diffusers") == [right]  # whichever table comes first


def test_tables_look_at_whole_numbers_only():
    table = NameTable([("a_#_conv1", "a.#.conv1"), ("a_0_conv2", "b.zero"), ("a_#_conv2", "b.#.x")])
    assert table.right_of("a_12_conv1") == "a.12.conv1"
    assert table.right_of("a_x_conv1") is table.right_of("a_1_conv3") is table.right_of("a_1_conv1_2") is None
    assert table.right_of("a_0_conv2") == "b.zero"
    assert table.right_of("a_10_conv2") == "b.10.x"
    with pytest.raises(ValueError, match="different numbers of #"):
        NameTable([("a_#", "b")])


@pytest.mark.parametrize(
    ("kohya", "comfyui"),
    [
        ("lora_unet_double_blocks_3_img_mlp_0", "diffusion_model.double_blocks.3.img_mlp.0"),
        ("lora_unet_single_blocks_0_modulation_lin", "diffusion_model.single_blocks.0.modulation.lin"),
        ("lora_unet_joint_blocks_0_x_block_attn2_qkv", "diffusion_model.joint_blocks.0.x_block.attn2.qkv"),
        ("lora_unet_blocks_7_cross_attn_k_img", "diffusion_model.blocks.7.cross_attn.k_img"),
        ("lora_unet_input_blocks_4_1_proj_in", "diffusion_model.input_blocks.4.1.proj_in"),
    ],
)
def test_kohya_and_comfyui(kohya, comfyui):
    assert names([kohya], "kohya", "comfyui") == [comfyui]
    assert names([comfyui], "comfyui", "kohya") == [kohya]


@pytest.mark.parametrize(
    ("model", "comfyui"),
    [("flux1", "img_attn.qkv"), ("FLUX.2-dev", "img_attn.qkv"), ("chroma", "img_attn.qkv"),
     ("hunyuan_video", "img_attn_qkv")],
)  # fmt: skip
def test_names_that_models_share(model, comfyui):
    """The training metadata tell, also where the flat names are the same."""
    module = "lora_unet_double_blocks_3_img_attn_qkv"
    assert names([module], "kohya", "comfyui", ss_base_model_version=model) == [
        f"diffusion_model.double_blocks.3.{comfyui}"
    ]
    with pytest.raises(
        UnsupportedAdapterError, match=r"several models.*FLUX.1 \('diffusion_model.double_blocks.3.img_"
    ):
        names([module], "kohya", "comfyui")
    with pytest.raises(UnsupportedAdapterError, match="has no name of its own in diffusers"):
        names([module], "kohya", "diffusers", ss_base_model_version="hunyuan_image_2.1")


def test_diffusers_and_peft():
    modules = [f"unet.mid_block.attentions.0.{TO_Q}", "unet.conv_in"]
    bare = [module.removeprefix("unet.") for module in modules]
    assert names(modules, "diffusers", "peft") == bare
    assert names(bare, "peft", "diffusers") == modules
    assert names(["transformer.proj_out"], "diffusers", "peft") == ["proj_out"]
    assert names(["proj_out", "conv_in"], "peft", "diffusers") == ["transformer.proj_out", "unet.conv_in"]
    text = ["text_model.encoder.layers.0.mlp.fc1"]
    assert names(text, "peft", "diffusers", "text_encoder_2") == [f"text_encoder_2.{text[0]}"]
    assert names(["encoder.layers.0.mlp.fc1"], "peft", "diffusers", "text_encoder") == [f"text_encoder.{text[0]}"]
    with pytest.raises(UnsupportedAdapterError, match=r"mine: modules such as 'text_model.*component='text_encoder'"):
        names(text, "peft", "diffusers")


def test_one_model_of_several():
    modules = ["unet.conv_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1"]
    with pytest.raises(
        UnsupportedAdapterError, match=r"mine: holds modules of text_encoder, unet, expected those of one"
    ):
        names(modules, "diffusers", "peft")
    assert names(modules, "diffusers", "peft", "unet") == ["conv_in"]
    assert names(modules, "diffusers", "diffusers", "unet") == ["unet.conv_in"]
    assert names(modules, "diffusers", "kohya", "unet") == ["lora_unet_conv_in"]
    kohya = ["lora_unet_conv_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"]
    assert names(kohya, "kohya", "diffusers") == modules
    assert names(kohya, "kohya", "peft", "unet") == ["conv_in"]
    with pytest.raises(
        UnsupportedAdapterError, match="no modules of 'transformer', it has those of 'text_encoder', 'unet'"
    ):
        names(kohya, "kohya", "peft", "transformer")


def test_a_family_that_the_names_do_not_say():
    adapter = adapter_of(["transformer_blocks.0.attn.to_out.0"], "diffusers")
    for family, expected in (("sd3", "joint_blocks_0_x_block_attn_proj"), ("flux", "double_blocks_0_img_attn_proj")):
        assert list(convert_adapter(adapter, "kohya", family=family)) == [f"lora_unet_{expected}"]
    with pytest.raises(
        UnsupportedAdapterError, match=r"several models.*pass family='flux' or 'flux2' or 'sd3'"
    ) as caught:
        convert_adapter(adapter, "kohya")
    assert caught.value.module == "transformer_blocks.0.attn.to_out.0"
    with pytest.raises(ValueError, match=r"family must be one of 'flux'.*got 'sdxl'"):
        convert_adapter(adapter, "kohya", family="sdxl")


def test_mlx_and_peft():
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.31.mlp.down_proj", "model.embed_tokens", "lm_head"]
    assert names(modules, "mlx", "peft") == modules
    assert names(modules, "peft", "mlx") == modules
    with pytest.raises(UnsupportedAdapterError, match=r"'transformer.h.0.attn.c_attn' has no name of its own in mlx"):
        names(["transformer.h.0.attn.c_attn"], "peft", "mlx")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("lora_unet_down_blocks_0_attentions_0_something", "expected kohya names"),
        ("lora_unet_down_blocks_x_attentions_0_proj_in", "expected kohya names"),
        ("lora_unet_input_blocks_9_0_op", "expected kohya names"),
        ("lora_te9_text_projection", "expected kohya names"),
    ],
)
def test_names_without_a_counterpart_are_refused_by_name(module, reason):
    with pytest.raises(
        UnsupportedAdapterError, match=rf"mine: module '{module}' has no name.*{reason}.*rename_modules"
    ):
        names(["lora_unet_conv_in", module], "kohya", "diffusers")


T5 = "encoder_block_0_layer_0_SelfAttention_q"
IN_DIFFUSERS = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"


def test_the_t5_of_flux_is_the_third_encoder_to_sd_scripts():
    """sd-scripts counts FLUX.1's as Stable Diffusion 3's; OneTrainer and diffusers call it the second."""
    both = ["lora_unet_double_blocks_0_img_attn_proj", f"lora_te3_{T5}"]
    transformer = "transformer.transformer_blocks.0.attn.to_out.0"
    metadata = {"ss_base_model_version": "flux1"}
    assert names(both, "kohya", "diffusers", **metadata) == [transformer, IN_DIFFUSERS]
    assert names([transformer, IN_DIFFUSERS], "diffusers", "kohya", **metadata) == both
    single = "lora_unet_single_blocks_0_modulation_lin"  # which FLUX.1 alone has
    assert IN_DIFFUSERS in names([single, f"lora_te3_{T5}"], "kohya", "diffusers")
    assert names([f"lora_te3_{T5}"], "kohya", "diffusers", ss_base_model_version="sd3_m") == [
        IN_DIFFUSERS.replace("_2", "_3")
    ]
    one_trainer = {"ot_branch": "master", **metadata}
    assert names([IN_DIFFUSERS], "diffusers", "kohya", **one_trainer) == [f"lora_te2_{T5}"]
    assert names([f"lora_te2_{T5}"], "kohya", "diffusers", **one_trainer) == [IN_DIFFUSERS]


def test_the_second_transformer_of_wan():
    """Wan 2.2 has one for high noise and one for low noise; other formats have a file for each."""
    first, second = (f"{model}.blocks.0.attn1.to_q" for model in ("transformer", "transformer_2"))
    both = adapter_of([first, second], "diffusers")
    with pytest.raises(UnsupportedAdapterError, match=rf"second transformer, such as '{second}'.*component='transfor"):
        convert_adapter(both, "comfyui", family="wan")
    for component in ("transformer", "transformer_2"):
        one = convert_adapter(both, "comfyui", component=component, family="wan")
        assert list(one) == ["diffusion_model.blocks.0.self_attn.q"]
        assert one.provenance.conversions == ({"to": "comfyui", "component": component, "family": "wan"},)
        back = convert_adapter(one, "diffusers", component=component, family="wan")
        assert list(back) == [f"{component}.blocks.0.attn1.to_q"]
        assert torch.equal(back[f"{component}.blocks.0.attn1.to_q"].A, both[f"{component}.blocks.0.attn1.to_q"].A)
    assert list(convert_adapter(both, "diffusers", component="transformer_2")) == [second]
    assert list(convert_adapter(both, "diffusers", component="transformer")) == [first]
    assert list(convert_adapter(both, "kohya", component="transformer_2", family="wan")) == [
        "lora_unet_blocks_0_self_attn_q"
    ]
    with pytest.raises(UnsupportedAdapterError, match="has no modules of 'transformer_2'"):
        convert_adapter(adapter_of([first], "diffusers"), "comfyui", component="transformer_2")


def test_two_spellings_of_one_module():
    both = ["lora_unet_input_blocks_0_0", "lora_unet_conv_in"]
    with pytest.raises(UnsupportedAdapterError, match=r"_0_0' and 'lora_unet_conv_in' are both 'unet.conv_in'.*select"):
        names(both, "kohya", "diffusers")


def test_families_without_a_way():
    for source, target in (("mlx", "kohya"), ("comfyui", "peft"), ("diffusers", "mlx")):
        with pytest.raises(UnsupportedAdapterError, match=f"named as {source} files.*to {target}'s, expected one of"):
            names(["a"], source, target)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"format must be one of .*'kohya'.*got 'onnx'"):
        names(["conv_in"], "peft", "onnx")
    with pytest.raises(ValueError, match=r"component must be one of 'unet'.*got 'vae'"):
        names(["conv_in"], "peft", "diffusers", "vae")
    with pytest.raises(ValueError, match="from mlx to peft it has no meaning"):
        names(["lm_head"], "mlx", "peft", "unet")


def test_the_same_family_is_the_same_adapter():
    adapter = adapter_of(["x"], "kohya")
    assert convert_adapter(adapter, "kohya") is adapter


def test_bases():
    """Kohya's files say a version, the others an id of the hub, which a card may link to."""
    trained = {"ss_base_model_version": "sd_v1", "ss_sd_model_name": "org/base"}
    adapter = adapter_of(["lora_unet_conv_in"], "kohya", base_model="sd_v1", metadata=trained)
    converted = convert_adapter(adapter, "diffusers")
    assert (converted.provenance.format, converted.provenance.base_model) == ("diffusers", "org/base")
    assert convert_adapter(converted, "kohya").provenance == adapter.provenance
    for name in ("v1.safetensors", "folder/v1.ckpt"):
        local = adapter.with_provenance(metadata=trained | {"ss_sd_model_name": name})
        assert convert_adapter(local, "peft").provenance.base_model is None


def trained_files(tmp_path, n=2):
    """Adapters of a UNet and a text encoder, as kohya files."""
    modules = {
        "lora_unet_mid_block_attentions_0_proj_in": ModuleKind("conv", (1, 1)),
        f"lora_unet_mid_block_attentions_0_{TO_Q.replace('.', '_')}": ModuleKind(),
        "lora_unet_down_blocks_0_resnets_0_conv1": ModuleKind("conv", (2, 3)),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": ModuleKind(),
    }
    paths = []
    for i, made in enumerate(make_adapters(n, n_modules=len(modules), ranks=(2, 3), random_state=0)):
        factors = dict(zip(modules, (made[module] for module in made), strict=True))
        adapter = Adapter(factors, kinds=modules, provenance=Provenance(format="kohya"))
        paths.append(save_adapter(adapter, tmp_path / f"{i}.safetensors"))
    return paths


def test_files_through_every_format_and_back(tmp_path):
    adapter = load_adapter(trained_files(tmp_path, 1)[0])
    diffusers = load_adapter(save_adapter(adapter, tmp_path / "d.safetensors", format="diffusers"))
    assert diffusers.provenance.format == "diffusers"
    kohya = load_adapter(save_adapter(diffusers, tmp_path / "k.safetensors", format="kohya"))
    unet = convert_adapter(diffusers, "peft", component="unet")
    peft = load_adapter(save_adapter(unet, tmp_path / "p"))
    assert set(kohya) == set(adapter)
    for module in adapter:
        torch.testing.assert_close(kohya[module].delta(), adapter[module].delta())
        assert kohya.infos[module][1:] == adapter.infos[module][1:]
    back = convert_adapter(peft, "kohya")
    assert set(back) == {module for module in adapter if module.startswith("lora_unet_")}
    for module in back:
        torch.testing.assert_close(back[module].delta(), adapter[module].delta())
    with pytest.raises(UnsupportedAdapterError, match="holds modules of text_encoder, unet"):
        save_adapter(adapter, tmp_path / "both", format="peft")
    assert not (tmp_path / "both").exists()


def test_converted_adapters_merge_as_the_others(tmp_path):
    adapters = load_adapters(trained_files(tmp_path))
    plain = SVDMerger().fit(adapters).merged_
    merged = SVDMerger().fit([convert_adapter(adapter, "diffusers") for adapter in adapters]).merged_
    assert merged.provenance.format == "diffusers"
    again = convert_adapter(merged, "kohya")
    assert set(again) == set(plain)
    for module in plain:
        assert torch.equal(again[module].A, plain[module].A)


def test_nothing_is_read(tmp_path):
    path = trained_files(tmp_path, 1)[0]
    converted = convert_adapter(load_adapter(path), "diffusers")
    module = "unet.mid_block.attentions.0.proj_in"
    pickled = pickle.dumps(converted)
    expected = converted[module].delta()
    assert torch.equal(pickle.loads(pickled)[module].delta(), expected)
    assert len(pickle.dumps(converted.select([module]))) < 2_000
    path.unlink()
    assert convert_adapter(converted, "kohya").infos["lora_unet_mid_block_attentions_0_proj_in"].rank == 2
