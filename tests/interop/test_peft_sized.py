"""VeRA and MiSS as PEFT saves them, with the base that says how wide their modules are: the updates are PEFT's own."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

from lorakit import bake, load_adapter, save_adapter
from lorakit.exceptions import UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.interop

LLAMA = ["q_proj", "k_proj", "down_proj"]  # of three shapes
VERA = {
    "VeRA": ("llama", {"r": 3, "target_modules": LLAMA}),
    "VeRA that leaves A and B out": ("llama", {
        "r": 3, "target_modules": LLAMA, "save_projection": False, "projection_prng_key": 7,
    }),
    "VeRA of gpt2": ("gpt2", {"r": 3, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}  # fmt: skip
MISS = {
    "MiSS": ("llama", {"r": 4, "target_modules": LLAMA}),
    "MiSS with a part of a block": ("llama", {"r": 5, "target_modules": LLAMA}),
    "MiSS mini": ("llama", {"r": 4, "mini_r": 4, "init_weights": "mini", "target_modules": LLAMA}),
    "MiSS bat": ("llama", {"r": 4, "init_weights": "bat", "target_modules": LLAMA}),
}


def saved(path, case):
    """An adapter of random values, saved; the base's tensors, and those of the base with the adapter merged by PEFT."""
    model, options = (VERA | MISS)[case]
    base = build(model)[0]
    config = peft.VeraConfig if case in VERA else peft.MissConfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(copy.deepcopy(base), config(**options))
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "vera_lambda" in name or "miss_block" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=rng) / 2)
        tuned.save_pretrained(path)
        merged = tuned.merge_and_unload().state_dict()
    turned = {n for n, module in base.named_modules() if type(module).__name__ == "Conv1D"}
    return {n: t.clone() for n, t in base.state_dict().items()}, merged, turned


@pytest.mark.parametrize("case", [*VERA, *MISS])
@pytest.mark.parametrize("form", ["state dict", "file", "shapes"])
def test_updates_are_those_of_peft(tmp_path, case, form):
    state, merged, turned = saved(tmp_path / "task", case)
    base = state
    if form == "file":
        base = tmp_path / "base.safetensors"
        save_file({n: t.contiguous() for n, t in state.items() if "lm_head" not in n}, base)
    if form == "shapes":
        base = {n: torch.empty_like(t, device="meta") for n, t in state.items()}
        if "bat" in case:
            with pytest.raises(UnsupportedAdapterError, match="on the meta device"):
                load_adapter(tmp_path / "task", base=base)
            return
    adapter = load_adapter(tmp_path / "task", base=base)
    assert adapter.provenance.stored_as == (case.split()[0],)
    assert adapter
    for module, factors in adapter.items():
        expected = merged[f"{module}.weight"] - state[f"{module}.weight"]
        expected = expected.T if module in turned else expected
        # the reference is a difference of float32 sums
        torch.testing.assert_close(factors.delta(), expected, rtol=1e-6, atol=2e-6)
        info = adapter.infos[module]
        assert (factors.rank, factors.d_in, factors.d_out) == info[:3]
        if "bat" not in case:
            assert info.rank == (VERA | MISS)[case][1]["r"]
    changed = {n.removesuffix(".weight") for n in merged if n in state and not torch.equal(merged[n], state[n])}
    assert changed == set(adapter)


@pytest.mark.parametrize("case", [*VERA, *MISS])
def test_written_as_plain_lora_it_is_the_same(tmp_path, case):
    state, merged, _ = saved(tmp_path / "task", case)
    adapter = load_adapter(save_adapter(load_adapter(tmp_path / "task", base=state), tmp_path / "plain"))
    baked = bake(state, adapter)
    for module in adapter:
        torch.testing.assert_close(baked[f"{module}.weight"], merged[f"{module}.weight"], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("case", [*VERA, *MISS])
def test_without_the_base_the_error_names_it(tmp_path, case):
    saved(tmp_path / "task", case)
    with pytest.raises(UnsupportedAdapterError, match=r"how wide the inputs .* pass base=, the model"):
        load_adapter(tmp_path / "task")


def test_bone_is_what_miss_was_called(tmp_path):
    state, _, _ = saved(tmp_path / "task", "MiSS with a part of a block")
    expected = {module: factors.delta() for module, factors in load_adapter(tmp_path / "task", base=state).items()}
    weights, config = tmp_path / "task" / "adapter_model.safetensors", tmp_path / "task" / "adapter_config.json"
    save_file({key.replace("miss_block", "bone_block"): t for key, t in load_file(weights).items()}, weights)
    text = config.read_text().replace('"MISS"', '"BONE"')
    config.write_text("\n".join(line for line in text.splitlines() if "mini_r" not in line and "miss_d" not in line))
    adapter = load_adapter(tmp_path / "task", base=state)
    assert adapter.provenance.stored_as == ("Bone",)
    for module, factors in adapter.items():
        assert torch.equal(factors.delta(), expected[module])
