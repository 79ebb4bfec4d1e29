"""PiSSA, OLoRA, CorDA and LoRA-GA: the update on the published base is that of PEFT's own conversion."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import build

from lorakit import ConcatMerger, bake, load_adapter, load_adapters
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.interop
TARGETS = {"llama": ["q_proj", "k_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


class Trained:
    """An adapter saved before and after training, beside PEFT's conversion of it and the base model."""

    def __init__(self, folder, model, init, **options):
        self.base = build(model)[0]
        self.state = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}
        config = peft.LoraConfig(init_lora_weights=init, target_modules=TARGETS[model], lora_alpha=5,
                                 **{"r": 3, "fan_in_fan_out": model == "gpt2", **options})  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = peft.get_peft_model(copy.deepcopy(self.base), config)
            tuned.peft_config["default"].init_lora_weights = True
            tuned.save_pretrained(folder / "before")
            tuned.peft_config["default"].init_lora_weights = init
            rng = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for name, parameter in tuned.named_parameters():
                    if ".lora_" in name:
                        parameter += torch.randn(parameter.shape, generator=rng) / 10
            tuned.save_pretrained(folder / "after")
            tuned.save_pretrained(folder / "converted", path_initial_model_for_weight_conversion=folder / "before")
            self.merged = tuned.merge_and_unload().state_dict()
        self.after, self.before, self.converted = (folder / name for name in ("after", "before", "converted"))

    def delta(self, module):
        tensor = f"{module}.weight"
        found = (self.merged[tensor] - self.state[tensor]).double()
        return found.T if type(self.base.get_submodule(module)).__name__ == "Conv1D" else found


def same(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


CASES = [
    ("llama", "pissa", {}),
    ("gpt2", "pissa", {}),
    ("llama", "olora", {}),
    ("llama", "pissa", {"use_rslora": True}),
    ("llama", "pissa", {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {"q_proj": 2}}),
]


@pytest.mark.parametrize(("model", "init", "options"), [*CASES, ("llama", "pissa_niter_4", {})], ids=str)
def test_given_the_initial_adapter(tmp_path, model, init, options):
    """The update is that of PEFT's conversion, and W + update is what the trained model computes with."""
    one = Trained(tmp_path, model, init, **options)
    adapter = load_adapter(one.after, initial=one.before)
    converted = load_adapter(one.converted)
    assert adapter.provenance.stored_as == ("OLoRA" if init == "olora" else "PiSSA",)
    assert set(adapter) == set(converted)
    for module, factors in adapter.items():
        assert factors.rank == adapter.infos[module].rank == converted.infos[module].rank
        same(factors.delta(), converted[module].delta())
        torch.testing.assert_close(factors.delta().double(), one.delta(module), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "init", "options"), CASES, ids=str)
@pytest.mark.parametrize("form", ["state dict", "file"])
def test_given_the_base(tmp_path, model, init, options, form):
    """What training began with is computed again."""
    one = Trained(tmp_path, model, init, **options)
    base = one.state
    if form == "file":
        base = tmp_path / "base.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in one.state.items() if "lm_head" not in name}, base)
    adapter, known = load_adapter(one.after, base=base), load_adapter(one.after, initial=one.before)
    for module, factors in adapter.items():
        same(factors.delta(), known[module].delta(), 2e-5)
        same(adapter.read_in(module, torch.float64).delta(), known[module].delta().double(), 2e-5)
        assert factors.rank == adapter.infos[module].rank
    baked = bake(one.state, adapter)
    for module in adapter:
        torch.testing.assert_close(baked[f"{module}.weight"], one.merged[f"{module}.weight"], rtol=0, atol=2e-5)


def test_nothing_is_read_in_silence(tmp_path):
    one = Trained(tmp_path, "llama", "pissa_niter_4")
    with pytest.raises(UnsupportedAdapterError, match=r"base model was changed .* pass initial=, the adapter that"):
        load_adapter(one.after)
    with pytest.raises(UnsupportedAdapterError, match="the base alone does not say how; pass initial="):
        load_adapter(one.after, base=one.state)
    with pytest.raises(IncompatibleAdaptersError, match="is the adapter itself"):
        load_adapter(one.after, initial=one.after)


def test_a_merge_with_plain_lora_is_the_sum(tmp_path):
    one, other = Trained(tmp_path / "one", "llama", "pissa"), Trained(tmp_path / "other", "llama", True)
    given = load_adapters([one.after, other.after], names=["one", "other"], initial={"one": one.before})
    merged = ConcatMerger(weights=[0.25, 0.75]).fit(given).merged_
    for module, factors in merged.items():
        expected = 0.25 * one.delta(module) + 0.75 * other.delta(module)
        torch.testing.assert_close(factors.delta().double(), expected, rtol=0, atol=1e-5)


def test_an_initial_adapter_of_another_training(tmp_path):
    one, other = Trained(tmp_path / "one", "llama", "pissa"), Trained(tmp_path / "other", "gpt2", "pissa")
    with pytest.raises(IncompatibleAdaptersError, match="is in only one of the adapter and"):
        load_adapter(one.after, initial=other.before)
    with pytest.raises(IncompatibleAdaptersError, match="has no tensor"):
        load_adapter(one.after, base=other.state)
