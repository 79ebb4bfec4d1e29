"""Files whose keys begin with the name of a layer, XLabs' files, and ControlLoRA."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from single_files import factors, lora_ab, pair, write_file

from lorakit import ConcatMerger, convert_adapter, load_adapter, load_adapters, save_adapter
from lorakit.exceptions import CorruptFileError, OutputError, UnsupportedAdapterError

QWEN = "transformer_blocks.0.attn.to_q"


def down_up(start, **sizes):
    return pair(f"{start}down.weight", f"{start}up.weight", **sizes)


@pytest.mark.parametrize(
    ("keys", "alpha", "scale"),
    [
        (pair(f"{QWEN}.lora_A.default.weight", f"{QWEN}.lora_B.default.weight"), None, 1.0),
        (down_up(f"{QWEN}.lora_"), 6.0, 3.0),
        (pair(f"{QWEN}.lora_A", f"{QWEN}.lora_B"), None, 1.0),
    ],
    ids=["DiffSynth", "with alpha", "without weight"],
)
def test_bare_names(tmp_path, keys, alpha, scale):
    a, b = keys.values()
    if alpha is not None:
        keys[f"{QWEN}.alpha"] = torch.tensor(alpha)
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", keys, {"note": "kept"}))
    assert list(adapter) == [QWEN]
    torch.testing.assert_close(adapter[QWEN].delta(), scale * b @ a)
    path = save_adapter(adapter, tmp_path / "y.safetensors")
    assert set(load_file(path)) == {f"{QWEN}.lora_A.weight", f"{QWEN}.lora_B.weight"}
    again = load_adapter(path)
    assert again.provenance.format == "bare"
    assert again.provenance.metadata["note"] == "kept"
    torch.testing.assert_close(again[QWEN].delta(), scale * b @ a)


def test_an_alpha_that_is_not_in_the_file(tmp_path):
    path = write_file(tmp_path / "x.safetensors", lora_ab("blocks.3.cross_attn.k_img"))
    assert load_adapter(path, assume_alpha=1).scale("blocks.3.cross_attn.k_img") == 0.5


def test_bare_names_in_other_formats(tmp_path):
    modules = {"blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.ffn.2": "blocks.1.ffn.net.2"}
    tensors = {key: tensor for module in modules for key, tensor in lora_ab(module).items()}
    adapter = load_adapter(write_file(tmp_path / "wan.safetensors", tensors))
    assert list(convert_adapter(adapter, "diffusers")) == [f"transformer.{name}" for name in modules.values()]
    assert list(convert_adapter(adapter, "peft")) == list(modules.values())
    assert list(convert_adapter(adapter, "comfyui")) == [f"diffusion_model.{name}" for name in modules]
    kohya = convert_adapter(adapter, "kohya")
    assert list(kohya) == ["lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_ffn_2"]
    assert list(convert_adapter(kohya, "bare")) == list(modules)


def test_names_of_language_models_are_not_taken(tmp_path):
    """Their scale is in a config, and without it the update is not known."""
    path = write_file(tmp_path / "x.safetensors", lora_ab("model.layers.0.self_attn.q_proj"))
    with pytest.raises(UnsupportedAdapterError, match="no LoRA factors of a known format"):
        load_adapter(path)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{QWEN}.lora_A.weight": factors()[0]}, "lacks its B"),
        ({**lora_ab(QWEN), f"{QWEN}.alpha": torch.ones(2)}, "expected one number"),
        ({**lora_ab(QWEN), f"{QWEN}.lora_down.weight": factors()[0]}, "are both its A"),
        (
            pair(f"{QWEN}.lora_A.weight", f"{QWEN}.lora_B.weight") | {f"{QWEN}.lora_B.weight": torch.ones(3, 5)},
            "one rank",
        ),
    ],
)
def test_bad_files(tmp_path, tensors, match):
    with pytest.raises(CorruptFileError, match=match) as caught:
        load_adapter(write_file(tmp_path / "x.safetensors", tensors))
    assert str(tmp_path) in caught.value.path


def test_extra_tensors_are_refused(tmp_path):
    path = write_file(tmp_path / "x.safetensors", {**lora_ab(QWEN), "transformer_blocks.0.norm.bias": torch.ones(2)})
    with pytest.raises(UnsupportedAdapterError, match=r"'transformer_blocks.0.norm.bias' is no part of a LoRA"):
        load_adapter(path)
    with pytest.warns(UserWarning, match="left out"):
        assert list(load_adapter(path, modules_to_save="drop")) == [QWEN]


def xlabs(prefix=""):
    tensors = {}
    for place, size in {
        "double_blocks.0.processor.qkv_lora1": (8, 24),
        "double_blocks.0.processor.proj_lora2": (8, 8),
        "single_blocks.1.processor.qkv_lora": (8, 24),
        "single_blocks.1.processor.proj_lora": (40, 8),
    }.items():
        tensors |= down_up(f"{prefix}{place}.", d_in=size[0], d_out=size[1])
    return tensors


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs(tmp_path, prefix):
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", xlabs(prefix)))
    assert adapter.provenance.format == "xlabs"
    assert {adapter.scale(module) for module in adapter} == {1.0}
    path = save_adapter(adapter, tmp_path / "y.safetensors")
    assert set(load_file(path)) == set(xlabs())
    comfyui = convert_adapter(adapter, "comfyui")
    assert sorted(comfyui) == [
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "diffusion_model.double_blocks.0.txt_attn.proj",
        "diffusion_model.single_blocks.1.linear1",
        "diffusion_model.single_blocks.1.linear2",
    ]
    fused = comfyui["diffusion_model.single_blocks.1.linear1"].delta()
    assert fused.shape == (7 * 8, 8)  # Q, K, V, and four times as many of the MLP
    assert torch.equal(fused[:24], adapter["single_blocks.1.processor.qkv_lora"].delta())
    assert not fused[24:].any()
    back = convert_adapter(comfyui, "xlabs")
    assert set(back) == set(adapter)
    assert all(torch.equal(back[module].delta(), adapter[module].delta()) for module in adapter)
    assert len(convert_adapter(adapter, "diffusers")) == 8


def test_xlabs_holds_attention_only(tmp_path):
    path = write_file(
        tmp_path / "x.safetensors", down_up("lora_unet_double_blocks_0_img_mlp_0.lora_", d_in=4, d_out=16)
    )
    with pytest.raises(UnsupportedAdapterError, match=r"'transformer_blocks.0.ff.net.0.proj', has no name"):
        convert_adapter(load_adapter(path), "xlabs")
    path = write_file(tmp_path / "w.safetensors", down_up("lora_unet_single_blocks_0_linear1.lora_", d_in=4, d_out=28))
    with pytest.raises(UnsupportedAdapterError, match=r"holds 'single_transformer_blocks.0.proj_mlp', has no name"):
        convert_adapter(load_adapter(path), "xlabs")
    adapter = load_adapter(write_file(tmp_path / "y.safetensors", xlabs())).rename_modules(lambda m: m[:-1])
    with pytest.raises(OutputError, match="has no place in XLabs' files"):
        save_adapter(adapter, tmp_path / "z.safetensors")
    assert not (tmp_path / "z.safetensors").exists()


def control(seed=0):
    tensors = {"lora_controlnet": torch.zeros(0), "zero_convs.0.0.weight": torch.full((2, 2), float(seed))}
    tensors |= pair("input_blocks.1.1.proj_in.down", "input_blocks.1.1.proj_in.up", seed=seed)
    rng = torch.Generator().manual_seed(seed)
    tensors["input_blocks.1.0.in_layers.2.down"] = torch.randn(2, 3, 3, 3, generator=rng)
    tensors["input_blocks.1.0.in_layers.2.up"] = torch.randn(4, 2, 1, 1, generator=rng)
    return tensors


def test_control_lora(tmp_path):
    paths = [write_file(tmp_path / f"{seed}.safetensors", control(seed)) for seed in (1, 2)]
    with pytest.raises(
        UnsupportedAdapterError, match=r"is a ControlLoRA, with 1 whole weights.*'zero_convs.0.0.weight'"
    ):
        load_adapter(paths[0])
    with pytest.warns(UserWarning, match="carried along"):
        adapters = load_adapters(paths, modules_to_save="first")
    conv = adapters[0].infos["input_blocks.1.0.in_layers.2"]
    assert (conv.kind.kernel, conv.d_in, conv.d_out, conv.rank) == ((3, 3), 27, 4, 2)
    merged = ConcatMerger().fit(adapters).merged_
    path = save_adapter(merged, tmp_path / "merged.safetensors")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(control())
        assert file.get_slice("lora_controlnet").get_shape() == [0]
        assert torch.equal(file.get_tensor("zero_convs.0.0.weight"), control(1)["zero_convs.0.0.weight"])
    with pytest.warns(UserWarning, match="left out"):
        again = load_adapter(path, modules_to_save="drop")
    for module in merged:
        torch.testing.assert_close(again[module].delta(), merged[module].delta())
        assert again.infos[module].kind == merged.infos[module].kind
