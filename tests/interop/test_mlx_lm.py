"""mlx-lm writes, we read; we write, mlx-lm reads: the same updates, the same outputs. Runs on a CPU too."""

import json

import pytest
import torch

from lorakit import LegoMerger, load_adapter, load_adapters, save_adapter

mx = pytest.importorskip("mlx.core", exc_type=ImportError)
pytest.importorskip("mlx_lm")
nn = pytest.importorskip("mlx.nn")
tree = pytest.importorskip("mlx.utils")
llama = pytest.importorskip("mlx_lm.models.llama")
qwen_moe = pytest.importorskip("mlx_lm.models.qwen3_moe")
tuner = pytest.importorskip("mlx_lm.tuner.utils")
pytestmark = pytest.mark.interop

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24, "num_attention_heads": 2, "rms_norm_eps": 1e-5,
    "vocab_size": 50, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": lambda: llama.Model(llama.ModelArgs(model_type="llama", **SIZES)),
    "moe": lambda: qwen_moe.Model(
        qwen_moe.ModelArgs(
            model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[],
            moe_intermediate_size=12, rope_theta=1e4, max_position_embeddings=64, norm_topk_prob=True, **SIZES)),
}  # fmt: skip
# As mlx-lm's config has them: keys within the last layers, or paths of the whole model
PARAMETERS = {
    "layers": ("llama", 2, {"rank": 3, "scale": 2.5, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}),
    "whole": ("llama", 1, {"rank": 2, "scale": 10.0, "dropout": 0.0, "keys": ["model.embed_tokens", "lm_head"]}),
    "all": ("llama", -1, {"rank": 2, "scale": 0.3, "dropout": 0.0}),
    "experts": (
        "moe", 2, {"rank": 2, "scale": 3.0, "dropout": 0.0, "keys": ["mlp.switch_mlp.up_proj", "self_attn.v_proj"]}),
}  # fmt: skip
TOKENS = [[1, 7, 3, 49]]


@pytest.fixture(params=PARAMETERS)
def case(request):
    return request.param


def model_of(name):
    mx.random.seed(0)
    model = MODELS[name]()
    mx.eval(model.parameters())
    model.eval()
    return model


def trained(case, folder, seed=1):
    """Adapters as mlx-lm's trainer writes them, with random factors; returns the model with them in it."""
    name, num_layers, parameters = PARAMETERS[case]
    model = model_of(name)
    model.freeze()
    tuner.linear_to_lora_layers(model, num_layers, dict(parameters))
    rng = torch.Generator().manual_seed(seed)
    weights = {
        key: mx.array(torch.randn(tuple(value.shape), generator=rng).numpy())
        for key, value in tree.tree_flatten(model.trainable_parameters())
    }
    model.load_weights(list(weights.items()), strict=False)
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": num_layers, "lora_parameters": parameters, "model": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model


def updates_of(model):
    """mlx-lm's own answer: what fusing adds to each weight, by our names."""
    found = {}
    for path, layer in model.named_modules():
        if not hasattr(layer, "fuse"):
            continue
        base = layer["embedding"] if "embedding" in layer else layer["linear"]
        base.weight = mx.zeros_like(base.weight)
        update = torch.tensor(layer.fuse().weight.tolist())
        if update.ndim == 3:
            found |= {f"{path}.{i}": matrix for i, matrix in enumerate(update)}
        else:
            found[path] = update.T if "embedding" in layer else update
    return found


def outputs(model):
    return torch.tensor(model(mx.array(TOKENS)).tolist())


def assert_same(adapter, updates):
    """mlx-lm also makes layers that it was not asked for; they do nothing."""
    assert set(adapter) <= set(updates)
    for module, update in updates.items():
        if module not in adapter:
            assert not update.any()
            continue
        assert (adapter[module].delta() - update).norm() <= 1e-5 * update.norm(), module


def test_what_mlx_lm_writes(case, tmp_path):
    model = trained(case, tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert adapter.provenance.format == "mlx"
    updates = updates_of(model)
    assert set(adapter) == set(updates)
    assert_same(adapter, updates)
    kinds = {module: info.kind.name for module, info in adapter.infos.items()}
    assert {m for m, kind in kinds.items() if kind == "embedding"} == {m for m in kinds if "embed_tokens" in m}


def test_what_we_write(case, tmp_path):
    model = trained(case, tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    path = save_adapter(adapter, tmp_path / "ours")
    loaded = tuner.load_adapters(model_of(PARAMETERS[case][0]), str(path))
    loaded.eval()
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)
    assert (outputs(loaded) - outputs(model_of(PARAMETERS[case][0]))).abs().max() > 0.01  # the adapter does something
    assert_same(adapter, updates_of(loaded))


def test_a_merge_of_different_ranks(tmp_path):
    """Every module is written with one rank, and modules that only one adapter has are there too."""
    trained("layers", tmp_path / "a", seed=1)
    trained("layers", tmp_path / "b", seed=2)
    merged = LegoMerger(k=0.9, random_state=0).fit(load_adapters([tmp_path / "a", tmp_path / "b"])).merged_
    assert len(merged.ranks) > 1
    part = merged.select(list(merged)[:3])
    loaded = tuner.load_adapters(model_of("llama"), str(save_adapter(part, tmp_path / "merged", pad_to=8)))
    assert_same(part, updates_of(loaded))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, dtype):
    trained("layers", tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    path = save_adapter(adapter, tmp_path / "half", dtype=dtype)
    updates = updates_of(tuner.load_adapters(model_of("llama"), str(path)))
    for module, factors in load_adapter(path).items():
        # mlx multiplies in half precision what we multiply in single
        assert (factors.delta() - updates[module]).norm() <= 0.02 * factors.delta().norm()
        assert (factors.delta() - adapter[module].delta()).norm() <= 0.01 * factors.delta().norm()
