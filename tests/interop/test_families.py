"""Names of diffusion transformers: the updates are those of diffusers' own converters, and its models load them."""

import re
import warnings

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file, save_file

from lorakit import Adapter, LoraFactors, convert_adapter, load_adapter, save_adapter
from lorakit.adapters import Provenance
from lorakit.io.names.families import FAMILIES

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
loras = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
checkpoints = pytest.importorskip("diffusers.loaders.single_file_utils")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_libraries")]

BY_NAME = {family.name: family for family in FAMILIES}
MODELS = {  # what a trainer's metadata say, by family
    "flux": "flux1",
    "flux2": "flux2_dev",
    "sd3": "sd3.5-large",
    "hunyuan-video": "hunyuan_video",
    "wan": "wan2.1",
    "qwen-image": "qwen_image",
    "z-image": "z_image",
    "ltx": "ltx2",
    "lumina2": "lumina2",
    "mochi": "mochi",
}
D_IN = 4


def outputs(row):
    """Outputs that the converters expect: they have the widths of the published models in them."""
    shares = sum(part.share for part in row.parts)
    return {3: 3 * 768, 5: 3840, 7: 7 * 3072}.get(shares, 24)


def modules_of(family, code="original"):
    """Every layer of the table, in blocks 0 and 1, by name: outputs and inputs."""
    sizes = {}
    for row in family.rows[code]:
        d_out = outputs(row)
        alike = [other for other in family.rows[code] if other.name == row.name]
        d_in = int(d_out / row.ratio) if row.ratio and len(alike) > 1 else D_IN
        blocks = ("0", "1") if len(alike) == 1 else ("01"[alike.index(row)],)
        for block in blocks if "#" in row.name else ("",):
            sizes[row.name.replace("#", block)] = (d_out, d_in)
    return sizes


def written(path, sizes, spell, *, alpha, parts=("lora_down.weight", "lora_up.weight"), model):
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (d_out, d_in) in sizes.items():
        tensors[f"{spell(module)}.{parts[0]}"] = torch.randn(2, d_in, generator=rng)
        tensors[f"{spell(module)}.{parts[1]}"] = torch.randn(d_out, 2, generator=rng)
        if alpha:
            tensors[f"{spell(module)}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path, {"ss_base_model_version": model})
    return path


def kohya(name):
    return f"lora_unet_{name.replace('.', '_')}"


def comfyui(name):
    return f"diffusion_model.{name}"


class Checkpoint(dict):
    """A checkpoint that gives zeros for the tensors that are none of the test's."""

    def pop(self, key, *default):
        return super().pop(key, *(default or (torch.zeros(21504 if "linear1" in key else 24),)))


def dense(adapter):
    return {module: factors.delta() for module, factors in adapter.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for module, update in expected.items():
        assert (found[module] - update).abs().max() <= 1e-6 * max(1.0, update.abs().max()), module


CHECKPOINTS = {
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "hunyuan-video": "convert_hunyuan_video_transformer_to_diffusers",
    "wan": "convert_wan_transformer_to_diffusers",
    "z-image": "convert_z_image_transformer_checkpoint_to_diffusers",
    "ltx": "convert_ltx2_transformer_to_diffusers",
    "lumina2": "convert_lumina2_to_diffusers",
    "mochi": "convert_mochi_transformer_checkpoint_to_diffusers",
}


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_updates_move_as_weights_of_checkpoints_do(tmp_path, family):
    """An update belongs where the converter of checkpoints puts the weight that it is added to."""
    sizes = modules_of(BY_NAME[family])
    if family == "mochi":  # the last of 48 blocks is the one whose layers differ
        sizes = {name.replace("blocks.1.", "blocks.47."): size for name, size in sizes.items()}
        del sizes["blocks.47.attn.proj_y"], sizes["blocks.47.mlp_y.w1"], sizes["blocks.47.mlp_y.w2"]
    if family == "sd3":
        del sizes["joint_blocks.1.context_block.attn.proj"]
        del sizes["joint_blocks.1.context_block.mlp.fc1"], sizes["joint_blocks.1.context_block.mlp.fc2"]
    if family == "ltx":  # of LTX-2.3, which this converter does not know
        sizes = {name: size for name, size in sizes.items() if "prompt_adaln" not in name}
    path = written(tmp_path / "x.safetensors", sizes, comfyui, alpha=3, model=MODELS[family])
    adapter = load_adapter(path)
    converted = convert_adapter(adapter, "diffusers")
    weights = Checkpoint({f"{name}.weight": adapter[comfyui(name)].delta() for name in sizes})
    moved = getattr(checkpoints, CHECKPOINTS[family])(weights, config={})
    expected = {
        f"transformer.{key.removesuffix('.weight')}": weight
        for key, weight in moved.items()
        if key.endswith(".weight") and weight.any()
    }
    assert_same(dense(converted), expected)
    assert all(info.rank == 2 for info in converted.infos.values())
    back = convert_adapter(converted, "comfyui")
    assert list(back) == list(adapter)
    assert all(info.rank == 2 for info in back.infos.values())
    assert_same(dense(back), dense(adapter))


LORAS = {
    "flux, kohya": ("flux", kohya, "_convert_kohya_flux_lora_to_diffusers"),
    "flux, comfyui": ("flux", comfyui, "_convert_kohya_flux_lora_to_diffusers"),
    "flux2, kohya": ("flux2", kohya, "_convert_kohya_flux2_lora_to_diffusers"),
    "flux2, comfyui": ("flux2", comfyui, "_convert_non_diffusers_flux2_lora_to_diffusers"),
    "hunyuan-video, comfyui": ("hunyuan-video", comfyui, "_convert_hunyuan_video_lora_to_diffusers"),
    "wan, kohya": ("wan", kohya, "_convert_musubi_wan_lora_to_diffusers"),
    "wan, comfyui": ("wan", comfyui, "_convert_non_diffusers_wan_lora_to_diffusers"),
    "qwen-image, kohya": ("qwen-image", kohya, "_convert_non_diffusers_qwen_lora_to_diffusers"),
    "qwen-image, comfyui": ("qwen-image", comfyui, "_convert_non_diffusers_qwen_lora_to_diffusers"),
    "z-image, comfyui": ("z-image", comfyui, "_convert_non_diffusers_z_image_lora_to_diffusers"),
    "ltx, comfyui": ("ltx", comfyui, "_convert_non_diffusers_ltx2_lora_to_diffusers"),
    "lumina2, comfyui": ("lumina2", comfyui, "_convert_non_diffusers_lumina2_lora_to_diffusers"),
}
# Layers that these converters (diffusers 0.42.1) refuse or lose, or treat in another way than those of checkpoints do
LEFT_OUT = {
    "flux, kohya": "final_layer",  # without its alpha
    "flux, comfyui": "final_layer",
    "flux2, kohya": "modulation|guidance_in",  # it knows none of these
    "flux2, comfyui": r"final_layer\.adaLN",  # scale and shift are not swapped, which they are in a checkpoint
    "hunyuan-video, comfyui": r"self_attn_qkv|final_layer\.adaLN",  # A is split and swapped as well as B
    "wan, kohya": r"^(?!blocks)",
    "wan, comfyui": "^patch_embedding",
    "lumina2, comfyui": r"^(?!layers|noise_refiner|context_refiner)",
    "z-image, comfyui": r"qkv|^x_embedder|^final_layer",  # it takes these names from the dotted spelling alone
}


@pytest.mark.parametrize("case", LORAS)
def test_updates_are_those_of_the_converters_of_adapters(tmp_path, case):
    family, spell, converter = LORAS[case]
    left_out = LEFT_OUT.get(case, "^$")
    sizes = {name: size for name, size in modules_of(BY_NAME[family]).items() if not re.search(left_out, name)}
    if "flux" in case or family in ("wan", "qwen-image", "z-image"):
        parts, alpha = ("lora_down.weight", "lora_up.weight"), 1 if spell is kohya or family == "flux" else None
    else:
        parts, alpha = ("lora_A.weight", "lora_B.weight"), None
    path = written(tmp_path / "x.safetensors", sizes, spell, alpha=alpha, parts=parts, model=MODELS[family])
    state = getattr(loras, converter)(load_file(path))
    expected = {}
    for key, down in state.items():
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            up = state[f"{module}.lora_B.weight"]
            expected[f"transformer.{module.removeprefix('transformer.')}"] = up @ down
    assert_same(dense(convert_adapter(load_adapter(path), "diffusers")), expected)


def hunyuan_video():
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=12, pooled_projection_dim=10,
        rope_axes_dim=(2, 2, 4),
    )  # fmt: skip


def wan():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=40, num_layers=2, image_dim=12, added_kv_proj_dim=24,
    )  # fmt: skip


def qwen_image():
    return diffusers.QwenImageTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def flux2():
    return diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2),
    )  # fmt: skip


def z_image():
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[2, 2, 4], axes_lens=[8, 8, 8],
    )  # fmt: skip


def ltx():
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=12,
    )  # fmt: skip


def lumina2():
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, cap_feat_dim=12, axes_dim_rope=(4, 2, 2), axes_lens=(8, 8, 8),
    )  # fmt: skip


def mochi():
    return diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=8, in_channels=4,
        text_embed_dim=12, time_embed_dim=16,
    )  # fmt: skip


TINY = {
    "flux": tiny.flux_transformer,
    "flux2": flux2,
    "sd3": tiny.sd3_transformer,
    "hunyuan-video": hunyuan_video,
    "wan": wan,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "ltx": ltx,
    "lumina2": lumina2,
    "mochi": mochi,
}


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
@pytest.mark.parametrize("family", TINY)
def test_a_model_of_diffusers_loads_what_came_back(tmp_path, family, target):
    """Every layer of a model, in the names of another format, written, read, converted back: no key is left over."""
    torch.manual_seed(0)
    model = TINY[family]()
    rng = torch.Generator().manual_seed(0)
    modules = {
        f"transformer.{path}": LoraFactors(*tiny.random_factors(layer, 2, rng))
        for path, layer in tiny.layers(model).items()
        if isinstance(layer, torch.nn.Linear)
    }
    trained = Adapter(modules, provenance=Provenance(format="diffusers"))
    named = convert_adapter(trained, target, family=family)
    there = save_adapter(named, tmp_path / "there.safetensors", layout="compact")
    metadata = {"ss_base_model_version": MODELS[family]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*split_qkv")
        read = load_adapter(there, format=target)
    back = convert_adapter(read.with_provenance(metadata=metadata), "diffusers")
    file = save_adapter(back, tmp_path / "back.safetensors", layout="compact")
    state = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    assert {info.rank for info in back.infos.values()} == {2}
    targets = [module.removeprefix("transformer.") for module in modules]
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    outcome = peft.set_peft_model_state_dict(model, state)
    assert not outcome.unexpected_keys
    assert not [key for key in outcome.missing_keys if "lora_" in key]
    updates = {
        f"transformer.{path}": layer.get_delta_weight("default").detach()
        for path, layer in model.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert_same(updates, dense(trained))
