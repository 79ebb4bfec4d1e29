"""diffusers' single files: names of all versions, the scale by metadata or alpha, what is refused, what is written."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from single_files import configs, factors, lora_ab, pair, write_file

from lorakit import Adapter, LegoMerger, LoraFactors, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import CorruptFileError, IncompatibleAdaptersError, UnsafeFileError, UnsupportedAdapterError

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CLIP = "text_encoder.text_model.encoder.layers.0"
# Names of A and B in files, and of the module in today's diffusers.
SPELLINGS = {
    "today": (f"{UNET}.to_q.lora_A.weight", f"{UNET}.to_q.lora_B.weight", f"{UNET}.to_q"),
    "adapter name": (f"{UNET}.to_q.lora_A.default.weight", f"{UNET}.to_q.lora_B.default.weight", f"{UNET}.to_q"),
    "2023": (f"{UNET}.to_q.lora.down.weight", f"{UNET}.to_q.lora.up.weight", f"{UNET}.to_q"),
    "kohya's ends": (f"{UNET}.to_q.lora_down.weight", f"{UNET}.to_q.lora_up.weight", f"{UNET}.to_q"),
    "processor": (
        f"{UNET}.processor.to_out_lora.down.weight", f"{UNET}.processor.to_out_lora.up.weight", f"{UNET}.to_out.0"),
    "processor, added": (
        f"{UNET}.processor.add_k_proj_lora.down.weight", f"{UNET}.processor.add_k_proj_lora.up.weight",
        f"{UNET}.add_k_proj"),
    "unet alone": (
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
    "text encoder, processor": (
        f"{CLIP}.self_attn.to_out_lora.down.weight", f"{CLIP}.self_attn.to_out_lora.up.weight",
        f"{CLIP}.self_attn.out_proj"),
    "text encoder, 2023": (
        f"{CLIP}.self_attn.q_proj.lora_linear_layer.down.weight",
        f"{CLIP}.self_attn.q_proj.lora_linear_layer.up.weight", f"{CLIP}.self_attn.q_proj"),
    "text encoder of transformers 5": (
        "text_encoder_2.encoder.layers.3.mlp.fc1.lora_A.weight",
        "text_encoder_2.encoder.layers.3.mlp.fc1.lora_B.weight",
        "text_encoder_2.text_model.encoder.layers.3.mlp.fc1"),
    "T5": (
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"),
    "second transformer": (
        "transformer_2.blocks.0.attn1.to_q.lora_A.weight", "transformer_2.blocks.0.attn1.to_q.lora_B.weight",
        "transformer_2.blocks.0.attn1.to_q"),
}  # fmt: skip


@pytest.mark.parametrize(("key_a", "key_b", "module"), SPELLINGS.values(), ids=SPELLINGS)
def test_names_of_all_versions(tmp_path, key_a, key_b, module):
    a, b = factors()
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", {key_a: a, key_b: b}))
    assert list(adapter) == [module]
    assert adapter.provenance.format == "diffusers"
    torch.testing.assert_close(adapter[module].delta(), b @ a)


def test_spellings_may_be_mixed_in_one_file(tmp_path):
    """diffusers' own converter renames attention only, so that one file has two spellings."""
    tensors = {**pair("unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight"), **lora_ab("unet.a.proj_in")}
    assert list(load_adapter(write_file(tmp_path / "x.safetensors", tensors))) == ["unet.a.proj_in", "unet.a.to_q"]


def test_each_model_has_a_config_of_its_own(tmp_path):
    tensors = {
        **lora_ab("unet.mid.to_q", r=4),
        **lora_ab("unet.mid.to_k", r=2),
        **lora_ab("unet.mid.conv", r=2),
        **lora_ab(f"{CLIP}.mlp.fc1", r=3),
    }
    unet = {"r": 2, "lora_alpha": 5, "use_rslora": True, "rank_pattern": {"to_q": 4}, "alpha_pattern": {"mid.conv": 7}}
    text = {"r": 3, "lora_alpha": 6, "base_model_name_or_path": "org/base"}
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", tensors, configs(unet=unet, text_encoder=text)))
    scales = {module: adapter.scale(module) for module in adapter}
    assert scales == pytest.approx(
        {"unet.mid.to_q": 5 / 2, "unet.mid.to_k": 5 / 2**0.5, "unet.mid.conv": 7 / 2**0.5, f"{CLIP}.mlp.fc1": 2}
    )
    a, b = factors(r=2)
    torch.testing.assert_close(adapter["unet.mid.conv"].delta(), 7 / 2**0.5 * b @ a)
    assert adapter.provenance.base_model == "org/base"


def test_patterns_see_the_names_in_the_file(tmp_path):
    """transformers 5 has no text_model in a CLIP encoder, and a pattern may begin where it would stand."""
    config = {"r": 2, "lora_alpha": 2, "alpha_pattern": {"^encoder.layers.0.mlp.fc1": 8}}
    tensors = lora_ab("text_encoder.encoder.layers.0.mlp.fc1")
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", tensors, configs(text_encoder=config)))
    assert adapter.scale(f"{CLIP}.mlp.fc1") == 4


@pytest.mark.parametrize(
    ("alpha", "options", "scale"),
    [(None, {}, 1), (None, {"assume_alpha": 6}, 3), (5.0, {}, 2.5), (5.0, {"assume_alpha": 6}, 2.5), (0.0, {}, 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_metadata_alpha_counts_and_else_the_rank(tmp_path, alpha, options, scale, dtype):
    tensors = lora_ab("transformer.blocks.0.to_q")
    if alpha is not None:
        tensors["transformer.blocks.0.to_q.alpha"] = torch.tensor(alpha, dtype=dtype)
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", tensors), **options)
    assert adapter.scale("transformer.blocks.0.to_q") == scale
    a, b = factors()
    torch.testing.assert_close(adapter["transformer.blocks.0.to_q"].delta(), scale * b @ a)


def test_alpha_beside_metadata_must_agree(tmp_path):
    tensors = {**lora_ab("unet.q"), "unet.q.alpha": torch.tensor(4.0)}
    agreeing = write_file(tmp_path / "same.safetensors", tensors, configs(unet={"r": 2, "lora_alpha": 4}))
    assert load_adapter(agreeing).scale("unet.q") == 2
    other = write_file(tmp_path / "other.safetensors", tensors, configs(unet={"r": 2, "lora_alpha": 8}))
    with pytest.raises(
        CorruptFileError, match=r"other.safetensors: module 'unet.q': its alpha gives the scale 2.*gives 4"
    ):
        load_adapter(other)


BAD = {
    "lokr": ({"transformer.q.lokr_w1": torch.ones(2, 2)}, {}, CorruptFileError, "lacks lokr_w2_a"),
    "dora": ({"unet.q.lora_magnitude_vector": torch.ones(3)}, {}, UnsupportedAdapterError, "belongs to DoRA"),
    "bias": ({"unet.q.lora_B.bias": torch.ones(3)}, {}, UnsupportedAdapterError, "lora_bias"),
    "unknown": ({"unet.q.lora_C.weight": torch.ones(2, 2)}, {}, UnsupportedAdapterError, "not known here"),
    "beside": ({"transformer.norm_q.weight": torch.ones(3)}, {}, UnsupportedAdapterError, "modules_to_save='drop'"),
    "config": ({}, {"use_dora": True}, UnsupportedAdapterError, "of unet.*use_dora"),
    "to save": ({}, {"modules_to_save": ["conv_in"]}, UnsupportedAdapterError, "conv_in"),
    "parameters": ({}, {"target_parameters": ["w"]}, UnsupportedAdapterError, "target_parameters"),
    "rank": ({}, {"r": 7}, CorruptFileError, "has rank 2.*says 7"),
    "lonely": ({"unet.k.lora_A.weight": torch.ones(2, 5)}, {}, CorruptFileError, "'unet.k'.*lacks its B"),
    "twice": (
        pair("unet.q.lora.down.weight", "unet.q.lora.up.weight"), {}, CorruptFileError, "'unet.q'.*both its [AB]"),
    "inner": (pair("unet.k.lora_A.weight", "unet.k.lora_B.weight") | {"unet.k.lora_B.weight": torch.ones(3, 4)}, {},
              CorruptFileError, "should be one rank"),
    "axes": ({"unet.k.lora_A.weight": torch.ones(2), "unet.k.lora_B.weight": torch.ones(3, 2)}, {}, CorruptFileError,
             "expected .r, in. and .out, r."),
    "int": (lora_ab("unet.k") | {"unet.k.lora_B.weight": torch.ones(3, 2, dtype=torch.int8)}, {},
            UnsupportedAdapterError, "stored as I8"),
    "empty": ({"unet.k.lora_A.weight": torch.ones(0, 5), "unet.k.lora_B.weight": torch.ones(3, 0)}, {},
              CorruptFileError, "is empty"),
    "alpha": ({"unet.q.alpha": torch.ones(3)}, {}, CorruptFileError, "expected one number"),
    "nan": ({"unet.q.alpha": torch.tensor(float("nan"))}, {}, CorruptFileError, "finite"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "error", "message"), BAD.values(), ids=BAD)
def test_refusals(tmp_path, tensors, config, error, message):
    metadata = configs(unet={"r": 2, "lora_alpha": 2, **config}) if config else {}
    path = write_file(tmp_path / "x.safetensors", {**lora_ab("unet.q"), **tensors}, metadata)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"unet.r": 1, "unet.r": 2}', "[" * 100_000])
def test_metadata_that_is_no_object(tmp_path, text):
    path = write_file(tmp_path / "x.safetensors", lora_ab("unet.q"), {"lora_adapter_metadata": text})
    with pytest.raises(CorruptFileError, match="lora_adapter_metadata is"):
        load_adapter(path)


def test_weights_beside_can_be_dropped(tmp_path):
    path = write_file(tmp_path / "x.safetensors", {**lora_ab("unet.q"), "unet.norm.weight": torch.ones(3)})
    with pytest.warns(UserWarning, match="left out.*unet.norm.weight"):
        assert list(load_adapter(path, modules_to_save="drop")) == ["unet.q"]


def test_a_directory_is_named_by_itself(tmp_path):
    write_file(tmp_path / "style" / "pytorch_lora_weights.safetensors", lora_ab("unet.q"))
    assert load_adapter(tmp_path / "style").name == "style"
    assert load_adapter(tmp_path / "style" / "pytorch_lora_weights.safetensors").name == "style"


def made():
    rng = torch.Generator().manual_seed(5)
    shapes = {"unet.mid.to_q": (2, 6, 4), "unet.mid.conv": (3, 27, 4), f"{CLIP}.mlp.fc1": (4, 5, 7)}
    modules = {
        m: LoraFactors(torch.randn(r, i, generator=rng), torch.randn(o, r, generator=rng))
        for m, (r, i, o) in shapes.items()
    }
    known = Provenance(format="diffusers", base_model="org/base", metadata={"author": "x", "about": "é"})
    return Adapter(modules, name="made", kinds={"unet.mid.conv": ModuleKind("conv", (3, 3))}, provenance=known)


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_round_trip(tmp_path, layout):
    adapter = made()
    back = load_adapter(save_adapter(adapter, tmp_path / "x.safetensors", layout=layout))
    assert set(back) == set(adapter)
    for module, factors_ in adapter.items():
        torch.testing.assert_close(back[module].delta(), factors_.delta())
        assert back.infos[module].kind == adapter.infos[module].kind
        assert back.infos[module].rank == (4 if layout == "portable" and "unet" in module else factors_.rank)
    assert back.provenance.base_model == "org/base"
    assert {"author": "x", "about": "é"}.items() <= back.provenance.metadata.items()


def test_what_is_written(tmp_path):
    path = save_adapter(made(), tmp_path / "x.safetensors", layout="compact")
    assert path.read_bytes() == save_adapter(made(), tmp_path / "y.safetensors", layout="compact").read_bytes()
    with safe_open(path, framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
        assert file.get_tensor("unet.mid.conv.lora_A.weight").shape == (3, 3, 3, 3)
        assert file.get_tensor("unet.mid.conv.lora_B.weight").shape == (4, 3, 1, 1)
    assert keys == sorted(keys)
    assert f"{CLIP}.mlp.fc1.lora_B.weight" in keys
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["text_encoder.r"], config["text_encoder.lora_alpha"]) == (4, 4)
    assert config["text_encoder.target_modules"] == ["encoder.layers.0.mlp.fc1"]  # found in all versions
    assert (config["unet.r"], config["unet.lora_alpha"]) == (3, 3)
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == {"mid.to_q": 2}


def test_one_models_own_file_has_no_prefix(tmp_path):
    """What a model's save_lora_adapter makes: bare names, and a bare config."""
    metadata = {"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 6})}
    path = write_file(tmp_path / "x.safetensors", lora_ab("transformer_blocks.0.attn.to_q"), metadata)
    adapter = load_adapter(path)
    assert adapter.scale("transformer_blocks.0.attn.to_q") == 3
    again = load_adapter(save_adapter(adapter, tmp_path / "y.safetensors"))
    assert list(again) == list(adapter)
    with safe_open(tmp_path / "y.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["r"] == 2


def test_merging_files_of_two_versions(tmp_path):
    old = {
        f"{CLIP}.mlp.fc1.lora_linear_layer.{end}.weight": t for end, t in zip(("down", "up"), factors(), strict=True)
    }
    new = lora_ab("text_encoder.encoder.layers.0.mlp.fc1", seed=1)
    paths = [write_file(tmp_path / f"{n}.safetensors", tensors) for n, tensors in (("old", old), ("new", new))]
    merged = LegoMerger(k=2, random_state=0).fit(load_adapters(paths)).merged_
    path = save_adapter(merged, tmp_path / "merged.safetensors")
    back = load_adapter(path)
    assert list(back) == [f"{CLIP}.mlp.fc1"]
    torch.testing.assert_close(back[f"{CLIP}.mlp.fc1"].delta(), merged[f"{CLIP}.mlp.fc1"].delta())


def test_other_families_do_not_mix(tmp_path):
    ours = write_file(tmp_path / "a.safetensors", lora_ab("unet.q"))
    comfy = write_file(tmp_path / "b.safetensors", lora_ab("diffusion_model.q"))
    with pytest.raises(IncompatibleAdaptersError):
        LegoMerger(k=2).fit(load_adapters([ours, comfy]))


def test_pickles_by_path(tmp_path):
    path = write_file(
        tmp_path / "x.safetensors", {**lora_ab("unet.q", r=40, d_in=90), "unet.q.alpha": torch.tensor(4.0)}
    )
    adapter = load_adapter(path)
    text = pickle.dumps(adapter)
    assert len(text) < 2000
    torch.testing.assert_close(pickle.loads(text)["unet.q"].delta(), adapter["unet.q"].delta())
    one = pickle.loads(pickle.dumps(adapter.select(["unet.q"])))
    assert one.scale("unet.q") == 0.1


def test_a_bare_file_of_gpt2_is_not_taken_for_a_pipeline(tmp_path):
    with pytest.raises(UnsupportedAdapterError, match="no LoRA factors of a known format"):
        load_adapter(write_file(tmp_path / "x.safetensors", lora_ab("transformer.h.0.attn.c_attn")))


def test_pickles_are_read_where_they_are_allowed(tmp_path):
    torch.save({**lora_ab("unet.q"), "unet.q.alpha": torch.tensor(4.0)}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(UnsafeFileError, match=r"pytorch_lora_weights.bin, are a pickle"):
        load_adapter(tmp_path)
    adapter = load_adapter(tmp_path, allow_pickle=True)
    a, b = factors()
    torch.testing.assert_close(adapter["unet.q"].delta(), 2 * b @ a)
