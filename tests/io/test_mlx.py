"""mlx-lm's directories: one scale, factors the other way round, experts; what is refused, what is written."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from single_files import factors, write_file, write_mlx

from lorakit import Adapter, LegoMerger, LoraFactors, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import CorruptFileError, OutputError, UnsupportedAdapterError

Q = "model.layers.0.q"


def test_reading(tmp_path):
    adapter = load_adapter(write_mlx(tmp_path / "task"))
    a, b = factors()
    assert (adapter.name, adapter.provenance.format, adapter.provenance.base_model) == ("task", "mlx", "org/base")
    torch.testing.assert_close(adapter[Q].delta(), 20 * b @ a)
    assert adapter.scale(Q) == 20
    assert load_adapter(tmp_path / "task" / "adapters.safetensors").scale(Q) == 20


def test_checkpoints_are_read_by_their_own_names(tmp_path):
    write_mlx(tmp_path / "task", weights="0000100_adapters.safetensors")
    assert list(load_adapter(tmp_path / "task" / "0000100_adapters.safetensors")) == [Q]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened_before_it_is_scaled(tmp_path, dtype):
    a, b = (t.to(dtype) for t in factors())
    adapter = load_adapter(write_mlx(tmp_path / "x", {f"{Q}.lora_a": a.T, f"{Q}.lora_b": b.T}, scale=0.3))
    assert adapter.dtype == dtype
    torch.testing.assert_close(adapter[Q].delta(), 0.3 * b.float() @ a.float())


def test_embeddings_are_known_by_name(tmp_path):
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "model.embed_tokens.lora_a": torch.randn(50, 2, generator=rng),
        "model.embed_tokens.lora_b": torch.randn(2, 6, generator=rng),
    }
    adapter = load_adapter(write_mlx(tmp_path / "x", tensors, scale=2.0))
    info = adapter.infos["model.embed_tokens"]
    assert (info.kind.name, info.rank, info.d_in, info.d_out) == ("embedding", 2, 50, 6)
    expected = 2 * tensors["model.embed_tokens.lora_a"] @ tensors["model.embed_tokens.lora_b"]  # of the weight (50, 6)
    torch.testing.assert_close(adapter["model.embed_tokens"].delta().T, expected)


def test_experts_are_modules_of_their_own(tmp_path):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 2, 6, generator=rng), torch.randn(3, 4, 2, generator=rng)
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    path = write_mlx(tmp_path / "x", {f"{name}.lora_a": a, f"{name}.lora_b": b}, scale=2.0)
    adapter = load_adapter(path)
    assert list(adapter) == [f"{name}.{i}" for i in range(3)]
    for i in range(3):
        torch.testing.assert_close(adapter[f"{name}.{i}"].delta(), 2 * b[i] @ a[i])
    torch.testing.assert_close(pickle.loads(pickle.dumps(adapter))[f"{name}.2"].delta(), 2 * b[2] @ a[2])
    merged = LegoMerger(k=2, random_state=0).fit(load_adapters([path])).merged_
    written = load_file(save_adapter(merged, tmp_path / "y") / "adapters.safetensors")
    assert written[f"{name}.lora_a"].shape == (3, 2, 6)
    for i in range(3):  # one source, and a rank that it fits in: the same update
        torch.testing.assert_close(written[f"{name}.lora_b"][i] @ written[f"{name}.lora_a"][i], 2 * b[i] @ a[i])
    one = save_adapter(adapter.select([f"{name}.1"]), tmp_path / "one")
    found = load_file(one / "adapters.safetensors")
    torch.testing.assert_close(found[f"{name}.lora_b"][1] @ found[f"{name}.lora_a"][1], 2 * b[1] @ a[1])
    assert not found[f"{name}.lora_b"][[0, 2]].any()


A, B = factors()
BAD = {
    "dora": ({"fine_tune_type": "dora"}, None, UnsupportedAdapterError, "fine_tune_type is 'dora'.*DoRA"),
    "full": ({"fine_tune_type": "full"}, {"model.norm.weight": torch.ones(2)}, UnsupportedAdapterError, "'full'"),
    "magnitude": ({}, {f"{Q}.lora_a": A.T, f"{Q}.lora_b": B.T, f"{Q}.m": torch.ones(3)}, UnsupportedAdapterError,
                  f"'{Q}.m' belongs to DoRA"),
    "no scale": ({"scale": ...}, None, UnsupportedAdapterError, "no scale.*assume_alpha"),
    "no parameters": ({"lora_parameters": ...}, None, UnsupportedAdapterError, "no lora_parameters"),
    "no config": ({"config": False}, None, UnsupportedAdapterError, "is missing.*assume_alpha"),
    "text": ({"scale": "20"}, None, CorruptFileError, "scale is '20', expected a number"),
    "rank": ({"rank": 8}, None, CorruptFileError, "'model.layers.0.q' has rank 2, adapter_config.json says 8"),
    "lonely": ({}, {f"{Q}.lora_a": A.T}, CorruptFileError, "expected the pair"),
    "inner": ({}, {f"{Q}.lora_a": A.T, f"{Q}.lora_b": torch.ones(3, 3)}, CorruptFileError, r"expected \(in, r\)"),
    "empty": ({}, {f"{Q}.lora_a": torch.ones(5, 0), f"{Q}.lora_b": torch.ones(0, 3)}, CorruptFileError, "is empty"),
    "int": ({}, {f"{Q}.lora_a": A.T.to(torch.int8), f"{Q}.lora_b": B.T}, UnsupportedAdapterError, "stored as I8"),
    "beside": ({}, {f"{Q}.lora_a": A.T, f"{Q}.lora_b": B.T, "model.norm.weight": torch.ones(3)},
               UnsupportedAdapterError, "modules_to_save='drop'"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "tensors", "error", "message"), BAD.values(), ids=BAD)
def test_refusals(tmp_path, changes, tensors, error, message):
    path = write_mlx(tmp_path / "task", tensors, **changes)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)
    assert "task" in str(caught.value)


def test_without_a_scale_alpha_can_be_given(tmp_path):
    assert load_adapter(write_mlx(tmp_path / "x", scale=...), assume_alpha=6).scale(Q) == 3
    assert load_adapter(write_mlx(tmp_path / "y", config=False), assume_alpha=6).scale(Q) == 3


def test_an_old_configs_alpha_is_ignored_aloud(tmp_path):
    with pytest.warns(UserWarning, match="set scale to 160"):
        assert load_adapter(write_mlx(tmp_path / "x", alpha=16)).scale(Q) == 20


def made(dtype=torch.float32, **kinds):
    rng = torch.Generator().manual_seed(1)
    modules = {
        f"model.layers.{i}.q": LoraFactors(
            torch.randn(r, 6, generator=rng, dtype=dtype), torch.randn(4, r, generator=rng, dtype=dtype)
        )
        for i, r in ((11, 3), (2, 2))
    }
    return Adapter(modules, kinds=kinds, provenance=Provenance(format="mlx", base_model="org/base"))


def test_round_trip(tmp_path):
    path = save_adapter(made(), tmp_path / "x")
    back = load_adapter(path)
    assert back.provenance.base_model == "org/base"
    for module, factors_ in made().items():
        torch.testing.assert_close(back[module].delta(), factors_.delta())
        assert back[module].rank == 3
    assert json.loads((path / "adapter_config.json").read_text()) == {
        "fine_tune_type": "lora",
        "lora_parameters": {
            "dropout": 0.0,
            "keys": ["model.layers.11.q", "model.layers.2.q"],
            "rank": 3,
            "scale": 1.0,
        },
        "model": "org/base",
        "num_layers": -1,
    }
    again = save_adapter(made(), tmp_path / "y")
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (path / name).read_bytes() == (again / name).read_bytes()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"^[^/]*: dtype is float64.*torch.float32"):
        save_adapter(made(torch.float64), tmp_path / "x")
    with pytest.raises(OutputError, match=r"'model.layers.2.q' is a convolution"):
        save_adapter(made(**{"model.layers.2.q": ModuleKind("conv", (3,))}), tmp_path / "x")
    with pytest.raises(ValueError, match="layout must be 'portable' for mlx"):
        save_adapter(made(), tmp_path / "x", layout="compact")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_model_beside_no_config_is_no_adapter(tmp_path):
    path = write_file(tmp_path / "x" / "adapters.safetensors", {"model.norm.weight": torch.ones(2)})
    with pytest.raises(UnsupportedAdapterError, match="no LoRA factors of a known format"):
        load_adapter(path)
