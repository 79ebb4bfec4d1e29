"""Biases that are trained beside B (``lora_bias``): in live models of PEFT, and in the files of diffusers."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, output_of, randomise

from lorakit import (
    ConcatMerger,
    convert_adapter,
    from_peft,
    load_adapter,
    load_adapters,
    save_adapter,
    to_peft,
)
from lorakit.differences import MemoryDifferences
from lorakit.exceptions import CorruptFileError, OutputError, UnsupportedAdapterError

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("quiet_peft")]
CONFIG = {"r": 2, "lora_alpha": 6, "target_modules": ["query", "attention.output.dense"], "lora_bias": True}


def tuned(seed=1, model=None, **config):
    wrapped = peft.get_peft_model(build("bert")[0] if model is None else model, peft.LoraConfig(**{**CONFIG, **config}))
    randomise(wrapped, seed=seed)
    return wrapped.eval()


def merged_by_peft(model):
    return {name: t.clone() for name, t in copy.deepcopy(model).merge_and_unload().state_dict().items()}


def assert_adds(adapter, before, after):
    """Of every parameter that an adapter changes, PEFT's own merge is the truth."""
    for name, tensor in after.items():
        layer, _, part = name.rpartition(".")
        update = torch.zeros_like(tensor)
        if part == "weight" and layer in adapter:
            update = adapter[layer].delta()
        if name in adapter.differences.infos:
            update = adapter.differences.read(name)
        torch.testing.assert_close(before[name] + update, tensor, rtol=1e-5, atol=1e-6)


def test_out_of_a_model_and_into_one(tmp_path):
    state = {name: t.clone() for name, t in build("bert")[0].state_dict().items()}
    model = tuned()
    adapter = from_peft(model, differences="keep")
    assert set(adapter.differences.infos) == {f"{module}.bias" for module in adapter}
    assert_adds(adapter, state, merged_by_peft(model))
    fresh, inputs = build("bert")
    fresh = peft.get_peft_model(fresh, peft.LoraConfig(target_modules=["value"]), adapter_name="other")
    to_peft(fresh, adapter, "again")
    fresh.set_adapter("again")
    torch.testing.assert_close(output_of(fresh, inputs), output_of(model, inputs), rtol=1e-5, atol=1e-6)
    again = from_peft(fresh, "again", differences="keep")
    for name in adapter.differences.infos:
        torch.testing.assert_close(again.differences.read(name), adapter.differences.read(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT takes the biases for shards of factors
        model.save_pretrained(tmp_path / "theirs")
    saved = load_adapter(tmp_path / "theirs", differences="keep")
    for name in adapter.differences.infos:
        assert torch.equal(saved.differences.read(name), adapter.differences.read(name))


def test_layers_without_a_bias_of_their_own_get_zeros():
    adapter = from_peft(tuned(), differences="keep")
    kept = next(iter(adapter.differences.infos))
    some = MemoryDifferences({kept: adapter.differences.read(kept)})
    adapter = adapter.with_provenance(differences=some)
    model = peft.get_peft_model(build("bert")[0], peft.LoraConfig(target_modules=["value"]), adapter_name="other")
    to_peft(model, adapter, "one")
    found = from_peft(model, "one", differences="keep").differences
    assert [name for name in found.infos if found.read(name).any()] == [kept]


def test_refused_dropped_and_without_a_place():
    model = tuned()
    with pytest.raises(UnsupportedAdapterError, match=r"lora_bias is set.*differences='keep'.*differences='drop'"):
        from_peft(model)
    with pytest.warns(UserWarning, match=r"left out, because of differences='drop': .*query\.bias' and 1 more"):
        assert from_peft(model, differences="drop").differences is None
    with pytest.raises(ValueError, match="differences must be"):
        from_peft(model, differences="first")
    adapter = from_peft(model, differences="keep")
    norm = MemoryDifferences({"encoder.layer.0.output.LayerNorm.weight": torch.ones(16)})
    with pytest.raises(
        OutputError, match=r"LayerNorm\.weight', and a model with PEFT's layers holds biases of adapted"
    ):
        to_peft(build("bert")[0], adapter.with_provenance(differences=norm))


def test_merged_in_memory():
    models = [tuned(seed) for seed in (1, 2)]
    adapters = [from_peft(model, name=str(i), differences="keep") for i, model in enumerate(models)]
    merged = ConcatMerger(scale=2).fit(adapters).merged_
    state = {name: t.clone() for name, t in build("bert")[0].state_dict().items()}
    after = [merged_by_peft(model) for model in models]
    assert_adds(merged, state, {name: after[0][name] + after[1][name] - t for name, t in state.items()})


@pytest.fixture
def unet():
    tiny = pytest.importorskip("tiny_diffusion")
    torch.manual_seed(0)
    return tiny.sd1_unet()


def written_by_diffusers(unet, path):
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_out.0", "conv1"], lora_bias=True))
    randomise(unet, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet.save_lora_adapter(path)
    biases = {
        f"{name}.bias": 3 * layer.lora_B["default"].bias.detach().clone()
        for name, layer in unet.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    return path / "pytorch_lora_weights.safetensors", biases


def test_files_of_diffusers(unet, tmp_path):
    fresh = copy.deepcopy(unet)
    path, biases = written_by_diffusers(unet, tmp_path / "theirs")
    assert any(key.endswith("lora_B.bias") for key in load_file(path))
    with pytest.raises(UnsupportedAdapterError, match=r"lora_B\.bias' belongs to lora_bias.*differences='keep'"):
        load_adapter(path)
    with pytest.warns(UserWarning, match=r"left out, because of differences='drop'"):
        assert load_adapter(path, differences="drop").differences is None
    adapter = load_adapter(path, differences="keep")
    assert set(adapter.differences.infos) == {f"unet.{name}" for name in biases}
    for name, bias in biases.items():
        torch.testing.assert_close(adapter.differences.read(f"unet.{name}"), bias)
    out = save_adapter(adapter, tmp_path / "ours.safetensors")
    again = load_adapter(out, differences="keep")
    assert set(again.differences.infos) == set(adapter.differences.infos)
    fresh.load_lora_adapter(out, prefix="unet")
    for name, layer in fresh.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            (loaded,) = layer.lora_B
            scaled = layer.scaling[loaded] * layer.lora_B[loaded].bias.detach()
            torch.testing.assert_close(scaled, biases[f"{name}.bias"], rtol=1e-5, atol=1e-6)
    # a PEFT directory holds them as well
    directory = convert_adapter(adapter, "peft", component="unet")
    assert set(directory.differences.infos) == set(biases)
    read = load_adapter(save_adapter(directory, tmp_path / "peft"), differences="keep").differences
    assert all(torch.allclose(read.read(name), bias, rtol=1e-5, atol=1e-6) for name, bias in biases.items())


def test_bad_files_of_diffusers(unet, tmp_path):
    from safetensors import safe_open

    path, _ = written_by_diffusers(unet, tmp_path / "theirs")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    key = next(key for key in tensors if key.endswith("lora_B.bias"))

    def written(tensors, metadata=metadata):
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        return tmp_path / "x.safetensors"

    wrong = {
        "each of": ({**tensors, key: torch.ones(3)}, metadata, CorruptFileError),
        "no factors": ({**tensors, "unet.mid_block.q.lora_B.bias": torch.ones(3)}, metadata, CorruptFileError),
        "holds no bias": ({k: t for k, t in tensors.items() if "bias" not in k}, metadata, CorruptFileError),
        "does not say lora_bias": (
            tensors,
            {k: v.replace('lora_bias": true', 'lora_bias": false') for k, v in metadata.items()},
            UnsupportedAdapterError,
        ),
    }
    for says, (contents, header, error) in wrong.items():
        with pytest.raises(error, match=says):
            load_adapter(written(contents, header), differences="keep")
    norm = MemoryDifferences({"mid_block.norm.weight": torch.ones(8)})
    adapter = load_adapter(path, differences="keep").with_provenance(differences=norm)
    with pytest.raises(OutputError, match=r"norm\.weight', and a diffusers file holds biases of adapted layers only"):
        save_adapter(adapter, tmp_path / "y.safetensors")


def test_merged_files_of_diffusers(unet, tmp_path):
    first, biases = written_by_diffusers(copy.deepcopy(unet), tmp_path / "a")
    second, _ = written_by_diffusers(copy.deepcopy(unet), tmp_path / "b")
    adapters = load_adapters([first, second], names=["a", "b"], differences="keep")
    out = save_adapter(ConcatMerger(scale=2).fit(adapters).merged_, tmp_path / "out.safetensors")
    found = load_adapter(out, differences="keep").differences
    for name, bias in biases.items():
        torch.testing.assert_close(found.read(f"unet.{name}"), 2 * bias)


def test_lycoris_names_in_files_of_diffusers(tmp_path):
    """Differences beside plain factors, as LyCORIS calls them, are read under the names of today."""
    a, b = torch.ones(2, 5), torch.ones(3, 2)
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, f"{module}.diff_b": torch.arange(3.0)}
    tensors["unet.mid_block.attentions.0.norm.w_norm"] = torch.arange(4.0)
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = load_adapter(tmp_path / "x.safetensors", differences="keep")
    assert adapter.provenance.format == "diffusers"
    assert set(adapter.differences.infos) == {f"{module}.bias", "unet.mid_block.attentions.0.norm.weight"}
    assert torch.equal(adapter.differences.read(f"{module}.bias"), torch.arange(3.0))
