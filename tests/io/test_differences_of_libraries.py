"""Differences in the files of PEFT and LyCORIS: biases of adapted layers, norms, whole matrices."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from difference_files import kept
from peft_files import pair, write_directory
from single_files import write_file

from lorakit import (
    ConcatMerger,
    SVDMerger,
    bake,
    load_adapter,
    save_adapter,
)
from lorakit.exceptions import (
    CorruptFileError,
    UnsupportedAdapterError,
)


@pytest.fixture
def write_peft(tmp_path):
    return partial(write_directory, tmp_path)


def test_peft_bias(write_peft, tmp_path):
    bias = {"base_model.model.enc.0.q.lora_B.bias": torch.arange(3.0)}
    path = write_peft(pair() | bias, lora_bias=True)
    with pytest.raises(UnsupportedAdapterError, match=r"lora_bias is set.*differences='keep'.*differences='drop'"):
        load_adapter(path)
    adapter = kept(path)
    assert list(adapter.differences.infos) == ["enc.0.q.bias"]
    torch.testing.assert_close(adapter.differences.read("enc.0.q.bias"), 2 * torch.arange(3.0))  # alpha / r is 2
    with pytest.warns(UserWarning, match="left out"):
        assert load_adapter(path, differences="drop").differences is None
    again = kept(save_adapter(adapter, tmp_path / "out"))
    torch.testing.assert_close(again.differences.read("enc.0.q.bias"), 2 * torch.arange(3.0))
    for name, changes, error, says in (
        ("alone", {"base_model.model.k.lora_B.bias": torch.ones(3)}, CorruptFileError, "no factors"),
        ("long", {"base_model.model.enc.0.q.lora_B.bias": torch.ones(4)}, CorruptFileError, "each of 3 outputs"),
    ):
        with pytest.raises(error, match=says):
            kept(write_peft(pair() | changes, folder=name, lora_bias=True))
    norm = adapter.rename_modules(lambda m: m)
    with pytest.raises(UnsupportedAdapterError, match="lora_bias"):
        kept(write_peft(pair() | bias, folder="unsaid"))  # PEFT would leave it out without a word
    assert norm.differences is not None


@pytest.mark.interop
def test_peft_writes_and_reads_it(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"], lora_bias=True, init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B.default.bias" in name:
            torch.nn.init.normal_(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes the biases for shards of factors
        model.save_pretrained(tmp_path / "x")
    merged = model.merge_and_unload().state_dict()
    adapter = kept(tmp_path / "x")
    baked = bake(state, adapter)
    for name, tensor in merged.items():
        torch.testing.assert_close(baked[name], tensor, rtol=1e-6, atol=1e-6)
    # and PEFT reads what is written
    path = save_adapter(ConcatMerger(strengths=[1.0]).fit([adapter]).merged_, tmp_path / "out")
    fresh = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    fresh.load_state_dict(state)
    theirs = peft.PeftModel.from_pretrained(fresh, path).merge_and_unload().state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.interop
def test_lycoris_writes_it(tmp_path):
    pytest.importorskip("lycoris")
    from lycoris.modules.full import FullModule
    from lycoris.modules.norms import NormModule

    torch.manual_seed(0)
    linear, conv, norm = torch.nn.Linear(5, 3), torch.nn.Conv2d(2, 4, 3), torch.nn.LayerNorm(5)
    state = {
        f"lora_unet_{name}.{key}".removeprefix("lora_unet_"): tensor.clone()
        for name, layer in {"l": linear, "c": conv, "n": norm}.items()
        for key, tensor in layer.state_dict().items()
    }
    tensors, expected = {}, dict(state)
    for name, module in {
        "l": FullModule("lora_unet_l", linear),
        "c": FullModule("lora_unet_c", conv),
        "n": NormModule("lora_unet_n", norm),
    }.items():
        if name != "n":
            module.apply_to()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        norms = {key: tensor for key, tensor in module.state_dict().items() if "norm" in key}
        named = module.custom_state_dict() if name != "n" else norms
        tensors |= {f"lora_unet_{name}.{key}": tensor.detach().clone() for key, tensor in named.items()}
        if name == "n":
            weight, bias = module.get_merged_weight(1.0)
        else:
            weight, bias = module.make_weight()
        expected |= {f"{name}.weight": weight.detach(), f"{name}.bias": bias.detach()}
    adapter = kept(write_file(tmp_path / "x.safetensors", tensors))
    assert adapter.provenance.stored_as == ("Full",)
    assert {m: info.kind.name for m, info in adapter.infos.items()} == {"lora_unet_l": "linear", "lora_unet_c": "conv"}
    baked = bake(state, adapter)
    for name, tensor in expected.items():
        torch.testing.assert_close(baked[name], tensor, rtol=1e-6, atol=1e-6)


def test_whole_differences_are_updates(tmp_path):
    """Of matrices and kernels: modules of full rank, for every method."""
    rng = torch.Generator().manual_seed(0)
    diffs = {"lora_unet_a": torch.randn(4, 6, generator=rng), "lora_unet_b": torch.randn(5, 2, 3, 3, generator=rng)}
    path = write_file(tmp_path / "full.safetensors", {f"{m}.diff": d for m, d in diffs.items()})
    adapter = load_adapter(path)
    assert adapter.differences is None
    assert {m: info.rank for m, info in adapter.infos.items()} == {"lora_unet_a": 4, "lora_unet_b": 5}
    for module, diff in diffs.items():
        torch.testing.assert_close(adapter[module].delta(), diff.flatten(1))
    again = load_adapter(save_adapter(adapter, tmp_path / "plain.safetensors"))
    assert again.provenance.stored_as == ("LoRA",)
    torch.testing.assert_close(again["lora_unet_b"].delta(), diffs["lora_unet_b"].flatten(1), rtol=1e-5, atol=1e-5)
    cut = SVDMerger(k=2).fit([adapter]).merged_
    s = torch.linalg.svdvals(diffs["lora_unet_a"].double())
    error = (cut["lora_unet_a"].delta().double() - diffs["lora_unet_a"]).norm()
    np.testing.assert_allclose(error.item(), s[2:].norm().item(), rtol=1e-5)
    both = {"lora_unet_a.diff": diffs["lora_unet_a"], "lora_unet_a.lora_down.weight": torch.ones(1, 6),
            "lora_unet_a.lora_up.weight": torch.ones(4, 1)}  # fmt: skip
    with pytest.raises(CorruptFileError, match="expected one kind"):
        load_adapter(write_file(tmp_path / "both.safetensors", both))
    with pytest.raises(CorruptFileError, match=r"expected \(out, in\)"):
        load_adapter(write_file(tmp_path / "deep.safetensors", {"lora_unet_a.diff": torch.ones(1, 1, 1, 1, 1, 1)}))
