"""Adapters taken out of live models and put into them: PEFT's own updates and outputs, and nothing else changed."""

import copy
import re

import pytest
import torch
from tiny_models import build, output_of, randomise

from lorakit import Adapter, LoraFactors, SVDMerger, applied, from_peft, load_adapter, save_adapter, to_peft
from lorakit.exceptions import IncompatibleAdaptersError, OutputError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_peft")]

FEWER = {"rank_pattern": {"k_proj|wpe": 2}}
CASES = {
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 7}),
    "llama rslora": ("llama", {"target_modules": ["k_proj", "up_proj"], "use_rslora": True, **FEWER}),
    "llama embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj", "lm_head"], "lora_alpha": 9}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "gpt2 embedding": ("gpt2", {"target_modules": ["wte", "wpe", "c_fc"], **FEWER, "fan_in_fan_out": True}),
    "bert": ("bert", {"target_modules": ["query", "attention.output.dense"], "alpha_pattern": {r"layer.1.*query": 50}}),
    "convnet": ("convnet", {"target_modules": ["stem", "0", "2", "line", "head"], "rank_pattern": {"line": 2}}),
}  # fmt: skip


def tuned(name, seed=1, **config):
    wrapped = peft.get_peft_model(build(name)[0], peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))
    randomise(wrapped, seed=seed)
    return wrapped.eval()


def updates(model, adapter_name="default"):
    base = model.base_model.model if isinstance(model, peft.PeftModel) else model
    layers = {name: m for name, m in base.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    return {
        name: layer.get_delta_weight(adapter_name).detach()
        for name, layer in layers.items()
        if adapter_name in layer.scaling
    }


def state_of(model):
    """All that must stay as it is when an adapter is added, but the adapter."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    weights = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    return weights, {name: list(layer.active_adapters) for name, layer in layers.items()}


def assert_kept(model, before, but="merged"):
    weights, active = before
    after, active_after = state_of(model)
    renamed = {
        re.sub(r"\.base_layer(?=\.)", "", name): value for name, value in after.items() if f".{but}." not in name
    }
    for name, (weight, trainable) in weights.items():
        found, still = renamed[re.sub(r"\.base_layer(?=\.)", "", name)]
        assert torch.equal(found, weight), name
        assert still == trainable, name
    assert {name: active_after[name] for name in active} == active


@pytest.mark.parametrize("case", CASES)
def test_taken_as_from_the_file(case, tmp_path):
    name, config = CASES[case]
    wrapped = tuned(name, **config)
    live = from_peft(wrapped)
    wrapped.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    if "alpha_pattern" not in config:  # PEFT sorts patterns when it saves them
        saved = load_adapter(tmp_path / "saved")
        assert dict(live.infos) == dict(saved.infos)
        for module in saved:
            assert torch.equal(live[module].A, saved[module].A)
            assert torch.equal(live[module].B, saved[module].B)
        assert (live.dtype, live.provenance.task_type) == (saved.dtype, saved.provenance.task_type)
    model, inputs = build(name)
    with applied(model, live):
        torch.testing.assert_close(output_of(model, inputs), output_of(wrapped, inputs), rtol=1e-5, atol=1e-5)
    before = live["head" if name == "convnet" else next(iter(live))].A.clone()
    randomise(wrapped, seed=5)  # a copy: training on does not change it
    assert torch.equal(live["head" if name == "convnet" else next(iter(live))].A, before)


@pytest.mark.parametrize("case", CASES)
def test_put_beside_another(case):
    """The merged adapter's output is that of the base model with the dense sum of the updates."""
    name, config = CASES[case]
    model = tuned(name, **config)
    other = tuned(name, seed=2, **config | {"r": 3, "rank_pattern": {}})
    merged = SVDMerger(k=7, scale=2.0).fit([from_peft(model, name="a"), from_peft(other, name="b")]).merged_
    before, expected = state_of(model), {m: u + updates(other)[m] for m, u in updates(model).items()}
    to_peft(model, merged)
    assert_kept(model, before)
    assert [*model.peft_config] == ["default", "merged"]
    torch.testing.assert_close(updates(model, "merged"), expected, rtol=1e-4, atol=1e-5)
    assert from_peft(model, "merged").ranks == merged.ranks

    model.set_adapter("merged")
    plain, inputs = build(name)
    with torch.no_grad():
        for module, update in expected.items():
            plain.get_submodule(module).weight += update
    if "embedding" not in case or name != "gpt2":  # GPT-2's head shares the embedding's weight, PEFT adapts one of them
        torch.testing.assert_close(output_of(model, inputs), output_of(plain, inputs), rtol=1e-4, atol=1e-4)


def test_other_modules_than_the_models_adapter():
    """What was not adapted before gets layers; the active adapter does not act there."""
    model = tuned("bert", target_modules=["query"])
    inputs = build("bert")[1]
    output, before = output_of(model, inputs), state_of(model)
    to_peft(model, from_peft(tuned("bert", seed=2, target_modules=["key", "query"])), "wider")
    assert_kept(model, before, but="wider")
    torch.testing.assert_close(output_of(model, inputs), output)
    model.set_adapter("wider")
    assert not torch.allclose(output_of(model, inputs), output, atol=1e-3)


def test_models_with_peft_layers_of_their_own():
    """As transformers and diffusers do it: no PeftModel around the model."""
    model, inputs = build("llama")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"]), adapter_name="one")
    randomise(model, seed=1)
    adapter = from_peft(model, "one")
    assert [*adapter] == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    output, before = output_of(model, inputs), state_of(model)
    to_peft(model, Adapter({m: f.scaled(3.0) for m, f in adapter.items()}), "three")
    assert_kept(model, before, but="three")
    torch.testing.assert_close(output_of(model, inputs), output)
    torch.testing.assert_close(updates(model, "three"), {m: 3 * u for m, u in updates(model, "one").items()})
    fresh, _ = build("llama")
    to_peft(fresh, adapter, "only")  # with no other adapter there, it is active at once
    torch.testing.assert_close(output_of(fresh, inputs), output, rtol=1e-5, atol=1e-6)


def test_a_model_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 4}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **sizes,
    ).eval()
    inputs = {"sample": torch.randn(1, 4, 8, 8), "timestep": 3, "encoder_hidden_states": torch.randn(1, 5, 8)}
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_out.0", "conv1", "time_emb_proj"])
    unet.add_adapter(config, adapter_name="style")
    randomise(unet, seed=1)
    with torch.no_grad():
        styled = unet(**inputs).sample
    adapter = from_peft(unet, "style")
    assert {info.kind.name for info in adapter.infos.values()} == {"linear", "conv"}
    before = state_of(unet)
    to_peft(unet, adapter, "again")
    assert_kept(unet, before, but="again")
    unet.set_adapter("again")
    with torch.no_grad():
        torch.testing.assert_close(unet(**inputs).sample, styled, rtol=1e-5, atol=1e-5)


def test_a_model_that_was_only_injected_into():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), model, "one")
    randomise(model, seed=1)
    to_peft(model, from_peft(model, "one"), "two")
    torch.testing.assert_close(updates(model, "two"), updates(model, "one"))


def test_half_precision_layers():
    base, _ = build("llama")
    model = peft.get_peft_model(base.to(torch.bfloat16), peft.LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj"]),
                                autocast_adapter_dtype=False)  # fmt: skip
    randomise(model, seed=1)
    adapter = from_peft(model)
    assert adapter.dtype == torch.bfloat16
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = (getattr(layer, f"lora_{slot}")["default"].weight.float() for slot in "AB")
    torch.testing.assert_close(adapter["model.layers.0.self_attn.q_proj"].delta(), 0.75 * b @ a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["pooler"]},
        {"trainable_token_indices": {"word_embeddings": [1, 2]}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_is_not_plain_lora_is_refused(config):
    model = tuned("bert", target_modules=["query"], **config)
    with pytest.raises(UnsupportedAdapterError, match=r"adapter 'default' of the model.*(beside|base|bias|DoRA)"):
        from_peft(model)


def test_other_methods_and_layers_are_refused():
    ia3 = peft.get_peft_model(build("bert")[0], peft.IA3Config(target_modules=["query"], feedforward_modules=[]))
    with pytest.raises(UnsupportedAdapterError, match="peft_type is 'IA3'"):
        from_peft(ia3)
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    attention = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"]))
    with pytest.raises(UnsupportedAdapterError, match=r"module '0': is nn\.MultiheadAttention"):
        from_peft(attention)
    with pytest.warns(UserWarning, match="groups > 1"):
        grouped = peft.get_peft_model(
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2)), peft.LoraConfig(r=4, target_modules=["0"])
        )
    with pytest.raises(UnsupportedAdapterError, match=r"module '0'.*grouped"):
        from_peft(grouped)


def classifier():
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertForSequenceClassification(config).eval()


def test_a_head_comes_along_if_asked(tmp_path):
    model = peft.get_peft_model(classifier(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    randomise(model, seed=1)
    torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
    inputs = {"input_ids": torch.tensor([[1, 7, 3]])}
    expected = output_of(model.eval(), inputs)
    with pytest.raises(UnsupportedAdapterError, match=r"classifier\.weight.*'drop'.*'first'"):
        from_peft(model)
    with pytest.warns(UserWarning, match=r"left out.*classifier\.weight"):
        assert from_peft(model, modules_to_save="drop").provenance.extra_weights is None
    with pytest.warns(UserWarning, match=r"carried along.*classifier\.weight"):
        adapter = from_peft(model, modules_to_save="first")
    loaded = peft.PeftModel.from_pretrained(classifier(), save_adapter(adapter, tmp_path / "out")).eval()
    torch.testing.assert_close(output_of(loaded, inputs), expected, rtol=1e-5, atol=1e-6)

    other = peft.get_peft_model(classifier(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).eval()
    before, untouched = state_of(other), output_of(other, inputs)
    to_peft(other, adapter)
    assert_kept(other, before)
    torch.testing.assert_close(output_of(other, inputs), untouched)
    other.set_adapter("merged")
    torch.testing.assert_close(output_of(other, inputs), expected, rtol=1e-5, atol=1e-6)


def test_trained_tokens_come_along(tmp_path):
    def fresh():
        return build("llama")[0]

    config = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 7]}}
    model = tuned("llama", **config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1.0)
    inputs = build("llama")[1]
    expected = output_of(model, inputs)
    model.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="carried along"):
        adapter = load_adapter(tmp_path / "theirs", modules_to_save="first")
    loaded = peft.PeftModel.from_pretrained(fresh(), save_adapter(adapter, tmp_path / "out")).eval()
    torch.testing.assert_close(output_of(loaded, inputs), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output_of(fresh(), inputs), expected, atol=1e-3)


def test_whole_embeddings_would_touch_the_base(tmp_path):
    tuned("llama", target_modules=["embed_tokens", "q_proj"]).save_pretrained(
        tmp_path / "theirs", save_embedding_layers=True
    )
    with pytest.warns(UserWarning, match="carried along"):
        adapter = load_adapter(tmp_path / "theirs", modules_to_save="first")
    model = tuned("llama", target_modules=["q_proj"])
    with pytest.raises(UnsupportedAdapterError, match=r"embed_tokens.*would replace weights of the base model.*'drop'"):
        to_peft(model, adapter)
    loaded = peft.PeftModel.from_pretrained(build("llama")[0], save_adapter(adapter, tmp_path / "ours"))
    torch.testing.assert_close(from_peft(loaded)["model.embed_tokens"].delta(), adapter["model.embed_tokens"].delta())


LACKS = r"2 modules that the model lacks, such as 'bert\.encoder.*the model has 'encoder.*rename_modules"


def wrong_shape(adapter):
    return Adapter({m: LoraFactors(f.A[:, 1:], f.B) for m, f in adapter.items()})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.rename_modules(lambda m: f"bert.{m}"), IncompatibleAdaptersError, LACKS),
        (wrong_shape, IncompatibleAdaptersError, r"query': is linear of d_in 15, d_out 16; .* takes A \(4, 16\)"),
        (lambda a: Adapter({m: f.scaled(1e300) for m, f in a.items()}), OutputError, "NaN or infinite|holds at most"),
    ],
    ids=["names", "shapes", "overflow"],
)  # fmt: skip
def test_what_does_not_fit_leaves_the_model_as_it_was(change, error, message):
    model = tuned("bert", target_modules=["query"])
    inputs = build("bert")[1]
    output, before = output_of(model, inputs), state_of(model)
    adapter = change(Adapter({m: f.to(torch.float64) for m, f in from_peft(model).items()}))
    with pytest.raises(error, match=message):
        to_peft(model, adapter)
    assert [*model.peft_config] == ["default"]
    assert_kept(model, before)
    assert not [name for name, _ in model.named_parameters() if ".merged." in name]
    torch.testing.assert_close(output_of(model, inputs), output)
    to_peft(model, from_peft(model))  # the name is free


def test_wrong_arguments():
    model = tuned("bert", target_modules=["query"])
    with pytest.raises(ValueError, match=r"no adapter 'x'; its adapters are default"):
        from_peft(model, "x")
    with pytest.raises(ValueError, match="a BertModel has no adapters"):
        from_peft(build("bert")[0])
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        to_peft(model, from_peft(model), "default")
    with pytest.raises(ValueError, match=r"a Sequential takes no adapters.*get_peft_model"):
        to_peft(torch.nn.Sequential(torch.nn.Linear(2, 2)), from_peft(model))
    with pytest.raises(ValueError, match="'refuse', 'drop' or 'first'"):
        from_peft(model, modules_to_save="keep")
    assert copy.deepcopy(from_peft(model, name="mine")).name == "mine"
