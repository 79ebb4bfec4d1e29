"""Adapters of fused experts: read expert by expert from PEFT's files and models, merged, loaded by PEFT again."""

import json

import pytest
import torch
from tiny_models import output_of, randomise
from tiny_moe import EXPERTS, INPUTS, MODELS, build_moe

from lorakit import (
    AverageMerger,
    SVDMerger,
    SVDPruner,
    applied,
    from_peft,
    load_adapter,
    load_adapters,
    save_adapter,
    to_peft,
)
from lorakit.exceptions import IncompatibleAdaptersError, OutputError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.interop,
    pytest.mark.usefixtures("quiet_peft"),
    # wrong: it looks for them among modules, and uses them for parameters all the same
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match"),
]
if not hasattr(peft.tuners.lora.layer, "ParamWrapper"):
    pytest.skip("this PEFT knows no target_parameters", allow_module_level=True)


def targets(name, *parameters):
    return [f"{EXPERTS[name]}.{parameter}" for parameter in parameters or ("gate_up_proj", "down_proj")]


def tuned(name, seed=1, adapter_name="default", **config):
    model = build_moe(name)
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": targets(name), **config}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config), adapter_name=adapter_name)
    randomise(wrapped, seed=seed, size=0.3)
    return wrapped.eval()


def updates(model, adapter_name="default"):
    """PEFT's own answer: the update of every adapted weight, by the name of its layer."""
    layers = dict(model.base_model.model.named_modules())
    found = {key: layer for key, layer in layers.items() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    return {key: layer.get_delta_weight(adapter_name).detach() for key, layer in found.items()}


def assert_same_updates(adapter, expected):
    seen = set()
    for layer, update in expected.items():
        experts = list(update) if update.ndim == 3 else [update]
        names = [f"{layer}.{i}" for i in range(len(experts))] if update.ndim == 3 else [layer]
        for module, dense in zip(names, experts, strict=True):
            delta = adapter[module].delta()
            turned = delta if delta.shape == dense.shape else delta.T
            torch.testing.assert_close(turned, dense, rtol=1e-5, atol=1e-6)
        seen.update(names)
    assert set(adapter) == seen


@pytest.mark.parametrize("name", MODELS)
def test_read_written_and_live(name, tmp_path):
    wrapped = tuned(name)
    wrapped.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert_same_updates(adapter, updates(wrapped))
    info = adapter.infos[f"model.layers.0.{EXPERTS[name]}.base_layer.3"]
    assert (info.rank, info.kind.experts, info.kind.parameters) == (2, 4, ("down_proj", "gate_up_proj"))

    live = from_peft(wrapped)
    assert dict(live.infos) == dict(adapter.infos)
    assert all(torch.equal(live[m].A, adapter[m].A) and torch.equal(live[m].B, adapter[m].B) for m in adapter)

    for layout in ("portable", "compact"):
        ours = save_adapter(adapter, tmp_path / layout, layout=layout)
        assert sorted(json.loads((ours / "adapter_config.json").read_text())["target_parameters"]) == sorted(
            targets(name)
        )
        loaded = peft.PeftModel.from_pretrained(build_moe(name), ours).eval()  # missing keys would warn, an error here
        torch.testing.assert_close(output_of(loaded, INPUTS), output_of(wrapped, INPUTS), rtol=1e-5, atol=1e-6)
        again = load_adapter(ours)
        assert all(torch.allclose(again[m].delta(), adapter[m].delta(), atol=1e-6) for m in adapter)
    assert not torch.allclose(output_of(build_moe(name), INPUTS), output_of(wrapped, INPUTS), atol=1e-3)


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
def test_merged_per_expert(name, tmp_path):
    """The mean of two adapters' updates, expert by expert, is what PEFT then adds to the weights."""
    models = [tuned(name, seed, r=rank) for seed, rank in ((1, 2), (2, 3))]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
    adapters = load_adapters([tmp_path / "0", tmp_path / "1"])
    merged = SVDMerger(k=5).fit(adapters).merged_
    path = save_adapter(merged, tmp_path / "merged")
    loaded = peft.PeftModel.from_pretrained(build_moe(name), path).eval()
    first, second = (updates(model) for model in models)
    for layer, update in updates(loaded).items():
        torch.testing.assert_close(update, (first[layer] + second[layer]) / 2, rtol=1e-4, atol=1e-5)

    to_peft(models[0], merged)
    models[0].set_adapter("merged")
    torch.testing.assert_close(output_of(models[0], INPUTS), output_of(loaded, INPUTS), rtol=1e-5, atol=1e-6)
    models[0].set_adapter("default")
    torch.testing.assert_close(updates(models[0]), first)


def test_pruned_experts_keep_their_scale(tmp_path):
    wrapped = tuned("qwen3_moe", r=4, use_rslora=True)
    wrapped.save_pretrained(tmp_path / "theirs")
    (pruned,) = SVDPruner(k=2).fit_transform([load_adapter(tmp_path / "theirs")])
    loaded = peft.PeftModel.from_pretrained(build_moe("qwen3_moe"), save_adapter(pruned, tmp_path / "ours"))
    for layer, update in updates(wrapped).items():
        u, s, v = torch.linalg.svd(update, full_matrices=False)
        best = u[..., :2] @ torch.diag_embed(s[..., :2]) @ v[..., :2, :]
        torch.testing.assert_close(updates(loaded)[layer], best, rtol=1e-4, atol=1e-5)


def test_one_parameter_and_a_router(tmp_path):
    """A parameter of two dimensions is one expert; it is no module that target_modules could name."""
    wrapped = tuned("mixtral", target_modules=[], target_parameters=["mlp.gate.weight", "mlp.experts.down_proj"])
    wrapped.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert adapter.infos["model.layers.1.mlp.gate.0"].kind.experts == 1
    loaded = peft.PeftModel.from_pretrained(build_moe("mixtral"), save_adapter(adapter, tmp_path / "ours"))
    torch.testing.assert_close(updates(loaded), updates(wrapped))
    torch.testing.assert_close(output_of(loaded.eval(), INPUTS), output_of(wrapped, INPUTS))


def test_patterns_reach_parameters(tmp_path):
    """Where the ranks differ the shapes tell which parameter is which, and then their alphas too."""
    patterns = {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"down_proj": 5, r".*\.gate_up_proj": 7}}
    wrapped = tuned("qwen3_moe", **patterns)
    wrapped.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    assert_same_updates(adapter, updates(wrapped))
    for layout in ("portable", "compact"):
        loaded = peft.PeftModel.from_pretrained(
            build_moe("qwen3_moe"), save_adapter(adapter, tmp_path / layout, layout=layout)
        )
        torch.testing.assert_close(updates(loaded), updates(wrapped), rtol=1e-5, atol=1e-6)


def test_an_alpha_for_one_of_two_parameters_needs_the_live_model(tmp_path):
    wrapped = tuned("qwen3_moe", alpha_pattern={"down_proj": 5})
    wrapped.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"mlp\.experts'.*does not say which is which.*from_peft"):
        load_adapter(tmp_path / "theirs")
    adapter = from_peft(wrapped)
    assert_same_updates(adapter, updates(wrapped))
    loaded = peft.PeftModel.from_pretrained(build_moe("qwen3_moe"), save_adapter(adapter, tmp_path / "ours"))
    torch.testing.assert_close(updates(loaded), updates(wrapped), rtol=1e-5, atol=1e-6)


def test_a_selection_of_layers_names_its_parameters_in_full(tmp_path):
    tuned("mixtral").save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs")
    one = adapter.select([m for m in adapter if ".layers.1." in m and not m.endswith(".experts.2")])
    path = save_adapter(one, tmp_path / "ours")
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["target_parameters"] == [f"model.layers.1.mlp.experts.{p}" for p in ("down_proj", "gate_up_proj")]
    loaded = peft.PeftModel.from_pretrained(build_moe("mixtral"), path)
    found = updates(loaded)
    assert set(found) == {f"model.layers.1.{m}" for m in ("mlp.experts", "mlp.experts.base_layer", "self_attn.q_proj")}
    assert not found["model.layers.1.mlp.experts"][2].any()  # what was left out is a zero update
    with pytest.raises(OutputError, match=r"only some of them are left"):
        save_adapter(adapter.select([m for m in adapter if "base_layer" not in m]), tmp_path / "half")


def test_experts_are_not_applied_by_hooks():
    adapter = from_peft(tuned("mixtral"))
    with pytest.raises(UnsupportedAdapterError, match=r"experts\.0' is one of several experts.*lorakit\.to_peft"):
        applied(build_moe("mixtral"), adapter).__enter__()


def test_other_parameters_are_incompatible(tmp_path):
    tuned("mixtral").save_pretrained(tmp_path / "both")
    tuned("mixtral", target_parameters=targets("mixtral", "down_proj")).save_pretrained(tmp_path / "down")
    adapters = [load_adapter(tmp_path / name) for name in ("both", "down")]  # load_adapters brings them together
    with pytest.raises(IncompatibleAdaptersError, match=r"experts\.0'.*one of 4 of down_proj and gate_up_proj.*'down'"):
        AverageMerger().fit(adapters)


def test_to_peft_beside_other_experts():
    """PEFT wants all adapters of a model to spell target_parameters alike; full names mean the same."""
    model = tuned("mixtral")
    adapter = from_peft(model)
    named_in_full = adapter.with_provenance(target_parameters={})
    to_peft(model, named_in_full, "again")
    torch.testing.assert_close(updates(model, "again"), updates(model), rtol=1e-5, atol=1e-6)
    other = from_peft(tuned("mixtral", target_parameters=targets("mixtral", "down_proj")))
    with pytest.raises(IncompatibleAdaptersError):
        to_peft(model, other, "other")
    assert set(model.peft_config) == {"default", "again"}
