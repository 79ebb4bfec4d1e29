"""PEFT writes, we read; we write, PEFT reads: the same updates, the same outputs, and no other module touched."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import build, output_of, randomise

from lorakit import applied, load_adapter, load_adapters, save_adapter
from lorakit.exceptions import CorruptFileError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_peft")]

BERT_PATTERNS = {
    "rank_pattern": {"attention.output.dense": 2, r"layer.1.*query": 6, "query": 3},
    "alpha_pattern": {"query": 5, r"layer.1.*query": 50, "1.output.dense": 9},
}
LLAMA_PATTERNS = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"0.mlp.up_proj": 3}}
CASES = {
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 7}),
    "llama rslora": ("llama", {"target_modules": "all-linear", "use_rslora": True, **LLAMA_PATTERNS}),
    "llama embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj", "lm_head"], "lora_alpha": 9}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "gpt2 embedding": ("gpt2", {"target_modules": ["wte", "wpe"], "rank_pattern": {"wpe": 3}}),
    "bert": ("bert", {"target_modules": ["query", "attention.output.dense", r"1.output.dense"], **BERT_PATTERNS}),
    "bert regex": ("bert", {"target_modules": r"encoder\.layer\.1\..*(key|dense)", "use_rslora": True}),
    "convnet": ("convnet", {"target_modules": ["stem", "0", "2", "line", "head"], "rank_pattern": {"line": 2}}),
}  # fmt: skip


def updates(model):
    """PEFT's own answer: module path -> update of its weight."""
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def with_random_factors(model, **config):
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **config}))
    randomise(wrapped, seed=1)
    return wrapped.eval()


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Return the model's name, the directory that PEFT saved it to, and PEFT's model loaded from it.

    Loaded, because PEFT sorts the keys of its patterns on saving, and their order can change the scale: BERT_PATTERNS
    give layer 1's query alpha 5 before and 50 after.
    """
    name, config = CASES[request.param]
    path = tmp_path / "theirs"
    with_random_factors(build(name)[0], **config).save_pretrained(path, save_embedding_layers=False)
    return name, peft.PeftModel.from_pretrained(build(name)[0], path).eval(), path


def test_peft_to_lorakit(case):
    name, wrapped, path = case
    adapter = load_adapter(path)
    expected = updates(wrapped)
    assert set(adapter) == set(expected)
    for module, update in expected.items():
        delta = adapter[module].delta()
        # PEFT shows the update of the weight as it lies in the module: (in, out) for embeddings and GPT-2's Conv1D
        turned = delta.T if delta.shape != update.flatten(1).shape or _is_transposed(wrapped, module) else delta
        torch.testing.assert_close(turned.reshape(update.shape), update, rtol=1e-5, atol=1e-6)
    model, inputs = build(name)
    with applied(model, adapter):
        torch.testing.assert_close(output_of(model, inputs), output_of(wrapped, inputs), rtol=1e-5, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


def _is_transposed(wrapped, module):
    layer = wrapped.base_model.model.get_submodule(module)
    return isinstance(layer.get_base_layer(), torch.nn.Embedding) or getattr(layer, "fan_in_fan_out", False)


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_lorakit_to_peft(case, layout, tmp_path):
    name, _, path = case
    adapter = load_adapter(path)
    ours = save_adapter(adapter, tmp_path / "ours", layout=layout)
    model, inputs = build(name)
    with applied(model, adapter):
        expected = output_of(model, inputs)
    unadapted = output_of(model, inputs)
    loaded = peft.PeftModel.from_pretrained(model, ours)  # a missing or unexpected key is a warning, and so an error
    assert set(updates(loaded)) == set(adapter)
    found = output_of(loaded.eval(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, unadapted, atol=1e-3)
    loaded.save_pretrained(tmp_path / "resaved", save_embedding_layers=False)  # PEFT reorders its patterns here
    resaved = load_adapter(tmp_path / "resaved")
    for module in adapter:
        torch.testing.assert_close(resaved[module].delta(), adapter[module].delta(), rtol=1e-5, atol=1e-6)


def test_short_names_capture_no_other_module(tmp_path):
    """In a list, '0' would take in '1.0' too."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Linear(3, 3)))
    with_random_factors(model, target_modules=r"0").save_pretrained(tmp_path / "theirs")
    ours = save_adapter(load_adapter(tmp_path / "theirs"), tmp_path / "ours")
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Linear(3, 3)))
    assert set(updates(peft.PeftModel.from_pretrained(fresh, ours))) == {"0"}


def test_many_targets_survive_pefts_shortening(tmp_path):
    """From 400 targets on PEFT shortens the list; the pooler must not slip in."""

    def build():
        *layers, pooler = (torch.nn.ModuleDict({"dense": torch.nn.Linear(2, 2)}) for _ in range(402))
        return torch.nn.ModuleDict({"layer": torch.nn.ModuleList(layers), "pooler": pooler})

    wrapped = with_random_factors(build(), r=1, target_modules=r"layer\..*dense")
    wrapped.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert len(adapter) >= 400
    loaded = peft.PeftModel.from_pretrained(build(), save_adapter(adapter, tmp_path / "ours"))
    assert set(updates(loaded)) == set(adapter)


def test_half_precision_files_lose_nothing(tmp_path):
    wrapped = with_random_factors(build("bert")[0], target_modules=["query"], lora_alpha=3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    wrapped.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert adapter.dtype == torch.bfloat16
    base, _ = build("bert")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "theirs")  # PEFT widens to float32 as well
    for module, update in updates(loaded).items():
        torch.testing.assert_close(adapter[module].delta(), update, rtol=1e-5, atol=1e-6)


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
        {"layer_replication": [[0, 2], [0, 2]]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_is_not_plain_lora_is_refused(tmp_path, config):
    wrapped = peft.get_peft_model(build("bert")[0], peft.LoraConfig(target_modules=["query"], r=4, **config))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*invalid shape")  # PEFT's, of its own lora_bias
        wrapped.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UnsupportedAdapterError, match=f"theirs.*{next(iter(config))}"):
        load_adapter(tmp_path / "theirs")


def test_grouped_convolutions_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups > 1"):
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))
    wrapped.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UnsupportedAdapterError, match=r"module '0'.*grouped"):
        load_adapter(tmp_path / "theirs")


def test_embeddings_saved_beside_are_explained(tmp_path):
    wrapped = with_random_factors(build("llama")[0], target_modules=["embed_tokens", "q_proj"])
    wrapped.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    with pytest.raises(UnsupportedAdapterError, match="save_embedding_layers=False"):
        load_adapter(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="embed_tokens"):
        adapter = load_adapter(tmp_path / "theirs", modules_to_save="drop")
    assert "model.embed_tokens" in adapter


def test_a_merge_made_by_peft_that_contradicts_its_config(tmp_path):
    """PEFT cannot reload such a file; that its config and its tensors disagree is said at once."""
    wrapped = with_random_factors(build("bert")[0], target_modules=["query"])
    wrapped.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rank_pattern": {"query": 9}}))
    with pytest.raises(CorruptFileError, match=r"has rank 4, adapter_config.json says 9"):
        load_adapter(tmp_path / "theirs")


def test_model_card_is_valid(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    with_random_factors(build("bert")[0], target_modules=["query"]).save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs").with_provenance(base_model="org/base")
    card = hub.ModelCard.load(save_adapter(adapter, tmp_path / "ours") / "README.md")
    assert card.data.to_dict() == {"base_model": "org/base", "library_name": "peft", "tags": ["lora", "lorakit"]}
    assert re.search(r"\| theirs \| `[0-9a-f]{64}` \|", card.text)


EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the example adapters are not here")
def test_example_adapters_round_trip(tmp_path):
    paths = sorted(file.parent for file in EXAMPLES.glob("*/adapter_config.json"))
    adapters = load_adapters(paths)
    assert adapters.names == tuple(path.name for path in paths)
    again = load_adapter(save_adapter(adapters[0], tmp_path / "out"))
    for module in adapters[0]:
        assert torch.equal(again[module].delta(), adapters[0][module].delta())
