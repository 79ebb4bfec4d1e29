"""Biases and norms of diffusion transformers move as diffusers' converters of checkpoints move them."""

import re

import pytest
import torch
from safetensors.torch import save_file
from test_families import BY_NAME, CHECKPOINTS, MODELS, Checkpoint, checkpoints, comfyui, kohya, modules_of

from lorakit import convert_adapter, load_adapter, save_adapter
from lorakit.exceptions import OutputError, UnsupportedAdapterError

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_libraries")]
SCALES = ("flux", "flux2")  # whose first code calls the weight of a norm so
LEFT_OUT = {  # as in the test of updates
    "mochi": ("blocks.47.attn.proj_y", "blocks.47.mlp_y.w1", "blocks.47.mlp_y.w2", "blocks.47.attn.q_norm_y",
              "blocks.47.attn.k_norm_y"),
    "sd3": ("joint_blocks.1.context_block.attn.proj", "joint_blocks.1.context_block.mlp.fc1",
            "joint_blocks.1.context_block.mlp.fc2"),
}  # fmt: skip
# Layers that have no bias in the published models, so that the converters do not think of one
WITHOUT_BIAS = {"flux2": r"adaLN", "z-image": r"qkv", "mochi": r"qkv|mlp"}


def layers_of(family):
    """Every layer of the tables, in blocks 0 and 1: the numbers of outputs of those with matrices, and the norms."""
    sizes = {name: d_out for name, (d_out, _) in modules_of(BY_NAME[family]).items()}
    norms = list(modules_of(BY_NAME[family].of_norms))
    if family == "mochi":
        sizes = {name.replace("blocks.1.", "blocks.47."): d_out for name, d_out in sizes.items()}
        norms = [name.replace("blocks.1.", "blocks.47.") for name in norms]
    kept = {name: d_out for name, d_out in sizes.items() if name not in LEFT_OUT.get(family, ())}
    if family == "ltx":
        kept = {name: d_out for name, d_out in kept.items() if "prompt_adaln" not in name}
    return kept, [name for name in norms if name not in LEFT_OUT.get(family, ())]


def written(path, family, spell):
    """A file of vectors, and of factors at one layer."""
    sizes, norms = layers_of(family)
    rng = torch.Generator().manual_seed(0)
    vectors = {
        f"{spell(name)}.diff_b": torch.randn(d_out, generator=rng)
        for name, d_out in sizes.items()
        if not re.search(WITHOUT_BIAS.get(family, "^$"), name)
    }
    vectors |= {f"{spell(name)}.w_norm": torch.randn(24, generator=rng) for name in norms}
    # of several layers of one name, the widths of the factors tell which it is
    alike = [row.name for row in BY_NAME[family].rows["original"]]
    several = [name for name in sizes if alike.count(re.sub(r"\.\d+\.", ".#.", name, count=1)) > 1]
    widths, factors = modules_of(BY_NAME[family]), {}
    for name in [next(iter(sizes)), *several]:
        start, (_, d_in) = f"{spell(name)}.lora_", widths[name.replace(".47.", ".1.")]
        factors |= {f"{start}down.weight": torch.ones(2, d_in), f"{start}up.weight": torch.ones(sizes[name], 2)}
    save_file(vectors | factors, path, {"ss_base_model_version": MODELS[family]})
    return load_adapter(path, differences="keep")


def read(adapter):
    return {name: adapter.differences.read(name) for name in adapter.differences.infos}


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_they_move_as_parameters_of_checkpoints_do(tmp_path, family):
    adapter = written(tmp_path / "x.safetensors", family, comfyui)
    given = read(adapter)
    _, norms = layers_of(family)
    assert norms
    base = Checkpoint({f"{name}.weight": torch.zeros(d) for name, d in layers_of(family)[0].items()})
    for name, vector in given.items():
        layer, _, parameter = name.removeprefix("diffusion_model.").rpartition(".")
        base[f"{layer}.{'scale' if parameter == 'weight' and family in SCALES else parameter}"] = vector.clone()
    moved = getattr(checkpoints, CHECKPOINTS[family])(base, config={})
    expected = {f"transformer.{key}": vector for key, vector in moved.items() if vector.ndim == 1 and vector.any()}
    converted = convert_adapter(adapter, "diffusers")
    found = read(converted)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], vector) for name, vector in expected.items())
    back = read(convert_adapter(converted, "comfyui"))
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], vector) for name, vector in given.items())


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_kohya_and_comfyui(tmp_path, family):
    """The names of one code in both spellings; what is written is read again."""
    adapter = written(tmp_path / "x.safetensors", family, kohya)
    path = save_adapter(adapter, tmp_path / "comfyui.safetensors", format="comfyui")
    found, given = read(load_adapter(path, differences="keep")), read(adapter)
    flat = {f"lora_unet_{name.removeprefix('diffusion_model.').replace('.', '_')}": v for name, v in found.items()}
    assert {name.replace(".", "_") for name in given} == set(flat)
    assert all(torch.equal(flat[name.replace(".", "_")], vector) for name, vector in given.items())


def test_part_of_a_fused_layer_has_zeros_elsewhere(tmp_path):
    """Only V has a bias: that of the joined layer is zero at Q and K. A layer may have a bias and no factors."""
    prefix = "transformer.transformer_blocks.0.attn"
    tensors = {f"{prefix}.to_q.lora_A.weight": torch.ones(2, 4), f"{prefix}.to_q.lora_B.weight": torch.ones(4, 2)}
    tensors |= {f"{prefix}.to_v.diff_b": torch.arange(1.0, 5)}
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = load_adapter(tmp_path / "x.safetensors", differences="keep")
    converted = convert_adapter(adapter, "kohya", family="flux")
    assert list(converted) == ["lora_unet_double_blocks_0_img_attn_qkv"]
    bias = converted.differences.read("lora_unet_double_blocks_0_img_attn_qkv.bias")
    assert torch.equal(bias, torch.cat([torch.zeros(8), torch.arange(1.0, 5)]))
    again = convert_adapter(converted, "diffusers", family="flux")
    found = {name: vector for name, vector in read(again).items() if vector.any()}
    assert list(found) == [f"{prefix}.to_v.bias"]


def test_what_has_no_name_or_no_place(tmp_path):
    adapter = written(tmp_path / "x.safetensors", "flux", comfyui)
    with pytest.raises(OutputError, match=r"a diffusers file holds biases of adapted layers only"):
        save_adapter(adapter, tmp_path / "y.safetensors", format="diffusers")
    odd = "diffusion_model.double_blocks.0.odd.w_norm"
    tensors = {odd: torch.ones(3), "diffusion_model.img_in.lora_A.weight": torch.ones(2, 4)}
    tensors["diffusion_model.img_in.lora_B.weight"] = torch.ones(8, 2)
    save_file(tensors, tmp_path / "odd.safetensors", {"ss_base_model_version": "flux1"})
    adapter = load_adapter(tmp_path / "odd.safetensors", differences="keep")
    with pytest.raises(UnsupportedAdapterError, match=r"also adds to '.*0\.odd\.weight'.*name is not known.*'drop'"):
        convert_adapter(adapter, "kohya")


def test_one_model_of_several(tmp_path):
    """What is added to the text encoder goes with it."""
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    unet = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {}
    for module in (layer, unet):
        tensors |= {f"{module}.lora_down.weight": torch.ones(2, 4), f"{module}.lora_up.weight": torch.ones(4, 2)}
        tensors |= {f"{module}.diff_b": torch.arange(4.0)}
    tensors |= {"lora_te_text_model_encoder_layers_0_mlp_fc1.diff_b": torch.arange(4.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = load_adapter(tmp_path / "x.safetensors", differences="keep")
    converted = convert_adapter(adapter, "peft", component="unet")
    assert list(converted.differences.infos) == ["mid_block.attentions.0.proj_in.bias"]
    both = convert_adapter(adapter, "diffusers")
    assert len(both.differences.infos) == 3
