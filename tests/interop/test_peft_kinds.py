"""LoHa, LoKr and AdaLoRA as PEFT saves them: the updates are those of PEFT's own get_delta_weight."""

import warnings

import pytest
import torch
from tiny_models import build

from lorakit import SVDPruner, from_peft, load_adapter, save_adapter
from lorakit.adapters import ModuleKind
from lorakit.exceptions import UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.interop

CONV = ["stem", "body.0", "body.2", "line", "head"]
CASES = {
    "LoHa": ("llama", "LoHaConfig", {"r": 3, "alpha": 5, "target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "LoHa with patterns": ("bert", "LoHaConfig", {
        "r": 2, "target_modules": ["query", "dense"], "rank_pattern": {"query": 3}, "alpha_pattern": {"0.*dense": 3},
    }),
    "LoHa of convolutions": ("convnet", "LoHaConfig", {"r": 2, "target_modules": CONV}),
    "LoHa with kernels": ("convnet", "LoHaConfig", {"r": 2, "target_modules": CONV, "use_effective_conv2d": True}),
    "LoKr": ("llama", "LoKrConfig", {"r": 2, "alpha": 5, "target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "LoKr of both": ("llama", "LoKrConfig", {
        "r": 1, "target_modules": ["q_proj", "down_proj"], "decompose_both": True, "decompose_factor": 4,
    }),
    "LoKr of whole matrices": ("bert", "LoKrConfig", {"r": 16, "alpha": 4, "target_modules": ["query"]}),
    "LoKr of convolutions": ("convnet", "LoKrConfig", {"r": 2, "target_modules": CONV, "decompose_factor": 1}),
    "LoKr with kernels": ("convnet", "LoKrConfig", {
        "r": 2, "target_modules": CONV, "decompose_factor": 1, "use_effective_conv2d": True,
    }),
    "AdaLoRA": ("llama", "AdaLoraConfig", {"init_r": 5, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"]}),
    "AdaLoRA of gpt2": ("gpt2", "AdaLoraConfig", {"init_r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
}  # fmt: skip


def saved(path, model, config, options):
    """A model with random factors of a kind, saved; and its layers by name."""
    options = {"total_step": 10, "tinit": 0, "tfinal": 1, **options} if config == "AdaLoraConfig" else options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(build(model)[0], getattr(peft, config)(**options))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if any(part in name for part in ("hada_", "lokr_", "lora_")):
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / 2)
    tuned.save_pretrained(path)
    return tuned, {
        name.removeprefix("base_model.model."): layer
        for name, layer in tuned.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def delta_of(layer):
    delta = layer.get_delta_weight("default").detach()
    return (delta.T if getattr(layer, "fan_in_fan_out", False) else delta).flatten(1)


def same(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_peft(tmp_path, case):
    _, layers = saved(tmp_path / "task", *CASES[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no field of the config is unknown
        adapter = load_adapter(tmp_path / "task")
    assert set(adapter) == set(layers)
    assert adapter.provenance.stored_as == (case.split()[0],)
    for module, factors in adapter.items():
        same(factors.delta(), delta_of(layers[module]))
        assert factors.rank == adapter.infos[module].rank <= min(factors.d_in, factors.d_out)
    if "kernels" in case:
        assert adapter.infos["body.0"].kind == ModuleKind("conv", (3, 1))


@pytest.mark.parametrize("case", ["LoHa", "LoKr", "AdaLoRA"])
def test_written_as_plain_lora_peft_loads_it(tmp_path, case):
    _, layers = saved(tmp_path / "task", *CASES[case])
    path = save_adapter(load_adapter(tmp_path / "task"), tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        again = peft.PeftModel.from_pretrained(build(CASES[case][0])[0], path)
    for name, layer in again.named_modules():
        if isinstance(layer, peft.tuners.lora.Linear):
            delta = layer.get_delta_weight("default").detach()
            same(delta, delta_of(layers[name.removeprefix("base_model.model.")]), 1e-5)


def test_ranks_that_adalora_cut_away(tmp_path):
    """After the last allocation some ranks are gone, of one module all; PEFT still divides alpha by the first rank."""
    tuned, layers = saved(tmp_path / "whole", *CASES["AdaLoRA"])
    pattern = {
        f"{module}.lora_E.default": [i < keep for i in range(5)]
        for keep, module in zip((2, 0, 5, 3), layers, strict=True)
    }
    tuned.base_model.resize_modules_by_rank_pattern(pattern, "default")
    tuned.peft_config["default"].rank_pattern = pattern
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty tensor
        tuned.save_pretrained(tmp_path / "task")
    adapter = load_adapter(tmp_path / "task")
    assert [adapter.infos[m].rank for m in layers if m in adapter] == [2, 5, 3]
    for module, factors in adapter.items():
        same(factors.delta(), delta_of(layers[module]))


@pytest.mark.parametrize("case", ["LoHa", "LoKr", "AdaLoRA"])
def test_the_cut_has_the_error_of_the_dense_svd(tmp_path, case):
    _, layers = saved(tmp_path / "task", *CASES[case])
    (cut,) = SVDPruner(k=2).fit_transform([load_adapter(tmp_path / "task")])
    for module, factors in cut.items():
        dense = delta_of(layers[module]).double()
        error = float((factors.delta().double() - dense).norm())
        assert error == pytest.approx(float(torch.linalg.svdvals(dense)[2:].norm()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_live_models(tmp_path, case):
    """The same updates as of the directory, whatever becomes of the model afterwards."""
    tuned, layers = saved(tmp_path / "x", *CASES[case])
    adapter = from_peft(tuned, name="live")
    deltas = {module: delta_of(layer) for module, layer in layers.items()}
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.zero_()
    of_file = load_adapter(tmp_path / "x")
    assert adapter.infos == of_file.infos
    assert (adapter.name, adapter.provenance.stored_as) == ("live", of_file.provenance.stored_as)
    for module, factors in adapter.items():
        torch.testing.assert_close(factors.delta(), deltas[module], rtol=1e-5, atol=1e-5)
        assert torch.equal(factors.A, of_file[module].A)
    path = save_adapter(adapter, tmp_path / "out")
    assert load_adapter(path).provenance.stored_as == ("LoRA",)


def test_live_models_that_are_refused(tmp_path):
    options = {"r": 2, "target_modules": ["query"], "modules_to_save": ["pooler"]}
    tuned, _ = saved(tmp_path / "x", "bert", "LoHaConfig", options)
    says = r"^adapter 'default' of the model: was trained with extra weights"
    with pytest.raises(UnsupportedAdapterError, match=says):
        from_peft(tuned)
    first = from_peft(tuned, modules_to_save="first").provenance.extra_weights
    assert first.path is None
    assert any("pooler" in name and first.read(name).isfinite().all() for name in first.names)
