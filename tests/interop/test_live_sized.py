"""VeRA and MiSS of live models, which hold the shared matrices and the widths of their base: PEFT's own updates."""

import copy
import warnings

import pytest
import torch
from tiny_models import build, output_of

from lorakit import applied, from_peft, load_adapter, save_adapter
from lorakit.exceptions import UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_peft")]

LLAMA = ["q_proj", "k_proj", "down_proj"]  # of three shapes
VERA = {
    "VeRA": ("llama", {"r": 3}),
    "VeRA that leaves A and B out": ("llama", {"r": 3, "save_projection": False}),
    "VeRA of gpt2": ("gpt2", {"r": 3, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}
MISS = {
    "MiSS": ("llama", {"r": 4}),
    "MiSS with a part of a block": ("llama", {"r": 5}),
    "MiSS mini": ("llama", {"r": 4, "mini_r": 4, "init_weights": "mini"}),
    "MiSS bat": ("llama", {"r": 4, "init_weights": "bat"}),
}


def tuned(case, adapter_name="default"):
    model, options = (VERA | MISS)[case]
    config = peft.VeraConfig if case in VERA else peft.MissConfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            build(model)[0], config(**{"target_modules": LLAMA, **options}), adapter_name=adapter_name
        )
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "vera_lambda" in name or "miss_block" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / 2)
    return wrapped.eval()


def updates(model, case, adapter_name="default"):
    """PEFT's own answer, with the weights of the base in float64, which a difference of float32 sums would round."""
    held_by, found = ("vera_lambda_d" if case in VERA else "miss_block"), {}
    for path, layer in model.base_model.model.named_modules():
        if adapter_name not in (getattr(layer, held_by, None) or ()):
            continue
        weight = layer.get_base_layer().weight.detach()
        if case in VERA:
            update = layer.get_delta_weight(adapter_name)
            found[path] = (update.T if layer.fan_in_fan_out else update).detach()
        elif "bat" in case:
            found[path] = layer.get_delta_weight(adapter_name, weight).detach()
        else:
            exact = weight.double()
            found[path] = (layer.get_delta_weight_miss(adapter_name, exact.clone()) - exact).detach()
    return found


@pytest.mark.parametrize("case", [*VERA, *MISS])
def test_updates_are_those_of_peft(case, tmp_path):
    model = tuned(case, "mine")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = from_peft(model, "mine")
    assert adapter.provenance.stored_as == (case.split()[0],)
    expected = updates(model, case, "mine")
    assert set(adapter) == set(expected)
    for module, update in expected.items():
        torch.testing.assert_close(adapter[module].delta().to(update.dtype), update, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # what is written is a plain LoRA of the same updates
    again = load_adapter(save_adapter(adapter, tmp_path / "plain"))
    assert all(torch.allclose(again[m].delta(), adapter[m].delta(), rtol=1e-5, atol=1e-5) for m in expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vera_lambda" in name or "miss_block" in name:
                parameter.zero_()  # the adapter is a copy
    module = next(iter(expected))
    torch.testing.assert_close(
        adapter[module].delta().to(expected[module].dtype), expected[module], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("case", ["VeRA", "MiSS"])
def test_the_model_computes_the_same(case):
    model, (base, inputs) = tuned(case), build("llama")
    with applied(base, from_peft(model)):
        torch.testing.assert_close(output_of(base, inputs), output_of(model, inputs), rtol=1e-4, atol=1e-5)


def test_a_merged_base_has_lost_the_weights_that_bat_needs():
    model = tuned("MiSS bat")
    model.merge_adapter()
    with pytest.raises(UnsupportedAdapterError, match=r"q_proj'.*unmerge_adapter|unmerge_adapter"):
        from_peft(model)
    model.unmerge_adapter()
    assert from_peft(model)


def test_merged_vera_is_read_all_the_same():
    model = tuned("VeRA")
    expected = updates(model, "VeRA")
    model.merge_adapter()
    adapter = from_peft(copy.deepcopy(model))
    for module, update in expected.items():
        torch.testing.assert_close(adapter[module].delta(), update, rtol=1e-6, atol=1e-6)
