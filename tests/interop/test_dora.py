"""DoRA, with its base: the update is the change that PEFT and LyCORIS make to the weights when they merge it."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build
from torch import nn

from lorakit import SVDPruner, bake, load_adapter
from lorakit.exceptions import CorruptFileError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.interop

CONV = ["stem", "body.0", "head"]
CASES = {
    "linear": ("llama", {"target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": ["q_proj"], "use_rslora": True}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolutions": ("convnet", {"target_modules": CONV}),
    "embedding": ("bert", {"target_modules": ["word_embeddings", "query"]}),
    "PiSSA too": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
}  # fmt: skip


def saved(path, case):
    """A DoRA of random values, saved; the base's tensors, those after PEFT merged it, and what lies as (in, out)."""
    model, options = CASES[case]
    base = build(model)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, **options)
        tuned = peft.get_peft_model(copy.deepcopy(base), config)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_magnitude" in name:
                    parameter.mul_(1 + torch.randn(parameter.shape, generator=rng) / 5)
                elif "lora_" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=rng) / 5)
        tuned.save_pretrained(path, save_embedding_layers=False)
        merged = tuned.merge_and_unload().state_dict()
    turned = {
        n for n, module in base.named_modules() if type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding)
    }
    return {n: t.clone() for n, t in base.state_dict().items()}, merged, turned


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_peft(tmp_path, case):
    state, merged, turned = saved(tmp_path / "task", case)
    adapter = load_adapter(tmp_path / "task", base=state)
    assert adapter.provenance.stored_as == ("DoRA of PiSSA" if "PiSSA" in case else "DoRA",)
    assert adapter
    for module, factors in adapter.items():
        weight = state[f"{module}.weight"]
        expected = (merged[f"{module}.weight"] - weight).flatten(1)
        expected = expected.T if module in turned else expected
        # the reference is a difference of float32 weights
        torch.testing.assert_close(factors.delta(), expected, rtol=1e-6, atol=float(2e-6 * weight.abs().max()))
        assert factors.rank == adapter.infos[module].rank == min(factors.d_in, factors.d_out)
    if case != "embedding":  # bert's embedding is also its head
        baked = bake(state, adapter)
        for module in adapter:
            torch.testing.assert_close(baked[f"{module}.weight"], merged[f"{module}.weight"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["linear", "convolutions"])
def test_the_cut_has_the_error_of_the_dense_svd(tmp_path, case):
    state, merged, _ = saved(tmp_path / "task", case)
    (cut,) = SVDPruner(k=2).fit_transform([load_adapter(tmp_path / "task", base=state)])
    for module, factors in cut.items():
        dense = (merged[f"{module}.weight"] - state[f"{module}.weight"]).double().flatten(1)
        least = float(torch.linalg.svdvals(dense)[2:].norm())
        assert float((factors.delta().double() - dense).norm()) == pytest.approx(least, rel=1e-4, abs=1e-5)


def test_without_the_base_it_is_refused(tmp_path):
    saved(tmp_path / "task", "linear")
    with pytest.raises(UnsupportedAdapterError, match=r"use_dora is set: DoRA .* pass base=, the model"):
        load_adapter(tmp_path / "task")
    config = tmp_path / "task" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": False}))
    with pytest.raises(UnsupportedAdapterError, match=r"lora_magnitude_vector' belongs to DoRA.* pass base="):
        load_adapter(tmp_path / "task")


def test_a_magnitude_that_is_missing_or_wrong(tmp_path):
    state, _, _ = saved(tmp_path / "task", "linear")
    file = tmp_path / "task" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "magnitude" in key)
    save_file({**tensors, key: torch.ones(3)}, file)
    with pytest.raises(CorruptFileError, match=r"has the shape \(3,\), expected a length for each of"):
        load_adapter(tmp_path / "task", base=state)
    del tensors[key]
    save_file(tensors, file)
    with pytest.raises(CorruptFileError, match="lacks lora_magnitude_vector"):
        load_adapter(tmp_path / "task", base=state)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lycoris")
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

LAYERS = {"linear": lambda: nn.Linear(12, 18), "conv": lambda: nn.Conv2d(8, 12, 3), "square": lambda: nn.Linear(12, 12)}
KINDS = {
    "DoRA": (LoConModule, {}),
    "DoRA with kernels": (LoConModule, {"use_tucker": True}),
    "DoRA of LoHa": (LohaModule, {}),
    "DoRA of LoKr": (LokrModule, {"factor": 2}),
}


@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["kohya", "comfyui"])
def test_updates_are_those_of_lycoris(tmp_path, kind, layer, on_output, names):
    if kind == "DoRA with kernels" and (layer, names) != ("conv", "kohya"):
        pytest.skip("only kohya's files have three factors, of convolutions")
    torch.manual_seed(0)
    base = LAYERS[layer]()
    make, options = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make("x", base, lora_dim=2, alpha=3, weight_decompose=True, wd_on_out=on_output, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "dora_scale" in name:
                parameter.mul_(1 + torch.randn_like(parameter) / 5)
            elif parameter is not base.weight and parameter is not base.bias:
                parameter.copy_(torch.randn_like(parameter) / 2)
    tensors = {part: t.detach().clone().contiguous() for part, t in module.custom_state_dict().items()}
    if make is LoConModule:
        whole = module.get_merged_weight()[0]
    else:  # get_merged_weight of LoHa and LoKr (lycoris-lora 4.1.3) takes alpha / r twice, the forward pass once
        whole = module.apply_weight_decompose(base.weight + module.get_weight(base.weight.shape))
    expected = (whole - base.weight).detach().flatten(1)
    start = "lora_unet_mid_x" if names == "kohya" else "diffusion_model.mid.x"
    save_file({f"{start}.{part}": t for part, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedAdapterError, match="belongs to DoRA"):
        load_adapter(tmp_path / "x.safetensors")
    adapter = load_adapter(
        tmp_path / "x.safetensors", base={"model.diffusion_model.mid.x.weight": base.weight.detach()}
    )
    ((_, factors),) = adapter.items()
    assert adapter.provenance.stored_as == (kind.removesuffix(" with kernels"),)
    torch.testing.assert_close(factors.delta(), expected, rtol=1e-5, atol=float(2e-6 * expected.abs().max()))


def test_updates_are_those_of_mlx(tmp_path):
    """mlx-lm's own layer gives the update, and its fuse() the weight."""
    mx = pytest.importorskip("mlx.core")
    from mlx.nn import Linear
    from mlx_lm.tuner.dora import DoRALinear

    mx.random.seed(0)
    base = Linear(12, 18, bias=False)
    layer = DoRALinear.from_base(base, r=3, scale=2.5)
    layer.lora_b = mx.random.normal(layer.lora_b.shape) / 4
    layer.m = layer.m * (1 + mx.random.normal(layer.m.shape) / 5)
    tensors = {name: torch.tensor(getattr(layer, name).tolist()) for name in ("lora_a", "lora_b", "m")}
    weight = torch.tensor(base.weight.tolist())
    expected = torch.tensor(layer.fuse().weight.tolist()) - weight
    save_file({f"model.q_proj.{name}": t for name, t in tensors.items()}, tmp_path / "adapters.safetensors")
    config = {"fine_tune_type": "dora", "lora_parameters": {"rank": 3, "scale": 2.5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedAdapterError, match=r"fine_tune_type is 'dora'.*pass base="):
        load_adapter(tmp_path)
    state = {"model.q_proj.weight": weight}
    adapter = load_adapter(tmp_path, base=state)
    assert adapter.provenance.stored_as == ("DoRA",)
    torch.testing.assert_close(adapter["model.q_proj"].delta(), expected, rtol=1e-5, atol=2e-6)
    save_file(
        {f"model.q_proj.{name}": t for name, t in tensors.items() if name != "m"}, tmp_path / "adapters.safetensors"
    )
    with pytest.raises(CorruptFileError, match="lacks m, its lengths"):
        load_adapter(tmp_path, base=state)


def test_updates_are_those_of_diffusers(tmp_path):
    """A UNet with DoRA layers of PEFT, saved by diffusers, of two components under its names."""
    diffusers = pytest.importorskip("diffusers")
    from tiny_diffusion import sd1_unet

    model = sd1_unet()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k", "to_out.0"], use_dora=True)
    model.add_adapter(config)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + torch.randn(parameter.shape, generator=rng) / 5)
            elif "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / 5)
    layers = peft.utils.get_peft_model_state_dict(model)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=_plain(config)
    )
    with pytest.raises(UnsupportedAdapterError, match=r"DoRA.*pass base="):
        load_adapter(tmp_path)
    adapter = load_adapter(tmp_path, base={f"unet.{name}": tensor for name, tensor in state.items()})
    assert (adapter.provenance.format, adapter.provenance.stored_as) == ("diffusers", ("DoRA",))
    model.fuse_lora()
    merged = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    for module, factors in adapter.items():
        name = f"{module.removeprefix('unet.')}.weight"
        scale = float(state[name].abs().max())
        torch.testing.assert_close(factors.delta(), merged[name] - state[name], rtol=1e-5, atol=2e-6 * scale)


def _plain(config):
    """The config as diffusers stores it: sets are lists."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
