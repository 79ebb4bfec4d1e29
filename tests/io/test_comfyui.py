"""ComfyUI's and ai-toolkit's files: spellings, alpha, metadata, what is refused, what is written."""

import json

import pytest
import torch
from safetensors import safe_open
from single_files import factors, lora_ab, write_file

from lorakit import Adapter, LoraFactors, SVDMerger, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.exceptions import CorruptFileError, OutputError, UnsupportedAdapterError

BLOCK = "diffusion_model.double_blocks.0.img_attn.proj"
ENDS = {
    "ai-toolkit": ("lora_A.weight", "lora_B.weight"),
    "with an adapter's name": ("lora_A.default.weight", "lora_B.default.weight"),
    "kohya's": ("lora_down.weight", "lora_up.weight"),
    "2023": ("lora.down.weight", "lora.up.weight"),
    "text encoder": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "no weight": ("lora_A", "lora_B"),
}


@pytest.mark.parametrize(("end_a", "end_b"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("module", [BLOCK, "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"])
def test_spellings(tmp_path, end_a, end_b, module):
    a, b = factors()
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", {f"{module}.{end_a}": a, f"{module}.{end_b}": b}))
    assert list(adapter) == [module]
    assert adapter.provenance.format == "comfyui"
    torch.testing.assert_close(adapter[module].delta(), b @ a)


@pytest.mark.parametrize(
    ("alpha", "options", "scale"),
    [(None, {}, 1), (None, {"assume_alpha": 6}, 3), (5.0, {}, 2.5), (5.0, {"assume_alpha": 6}, 2.5), (0.0, {}, 0)],
)
def test_alpha(tmp_path, alpha, options, scale):
    tensors = lora_ab(BLOCK)
    if alpha is not None:
        tensors[f"{BLOCK}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
    adapter = load_adapter(write_file(tmp_path / "x.safetensors", tensors), **options)
    assert adapter.scale(BLOCK) == scale
    a, b = factors()
    torch.testing.assert_close(adapter[BLOCK].delta(), scale * b @ a)


def test_convolution_whose_up_is_flat(tmp_path):
    """ComfyUI flattens both, so that (out, r) beside a kernel of four axes is right."""
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 5, 3, 3, generator=rng), torch.randn(4, 2, generator=rng)
    path = write_file(tmp_path / "x.safetensors", {f"{BLOCK}.lora_down.weight": down, f"{BLOCK}.lora_up.weight": up})
    adapter = load_adapter(path)
    assert adapter.infos[BLOCK].kind == ModuleKind("conv", (3, 3))
    torch.testing.assert_close(adapter[BLOCK].delta(), up @ down.flatten(1))
    again = load_adapter(save_adapter(adapter, tmp_path / "y.safetensors"))
    torch.testing.assert_close(again[BLOCK].delta(), adapter[BLOCK].delta())


BAD = {
    "oft": ({f"{BLOCK}.oft_blocks": torch.ones(2, 2)}, UnsupportedAdapterError, "oft_blocks' belongs to OFT"),
    "diff": ({"diffusion_model.norm.diff": torch.ones(2)}, UnsupportedAdapterError, "whole differences"),
    "reshape": ({f"{BLOCK}.reshape_weight": torch.ones(2)}, UnsupportedAdapterError, "enlarges"),
    "dora": ({f"{BLOCK}.dora_scale": torch.ones(3, 1)}, UnsupportedAdapterError, "DoRA"),
    "mid": ({f"{BLOCK}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, UnsupportedAdapterError, "lora_mid.*not known here"),
    "kohya in it": ({"lora_te1_q.alpha": torch.tensor(1.0)}, UnsupportedAdapterError, "no part of a LoRA"),
    "lonely": ({"diffusion_model.k.lora_A.weight": torch.ones(2, 5)}, CorruptFileError, "'diffusion_model.k'.*lacks"),
}


@pytest.mark.parametrize(("tensors", "error", "message"), BAD.values(), ids=BAD)
def test_refusals(tmp_path, tensors, error, message):
    with pytest.raises(error, match=message) as caught:
        load_adapter(write_file(tmp_path / "x.safetensors", {**lora_ab(BLOCK), **tensors}))
    assert "x.safetensors" in str(caught.value)


def test_dropping_never_drops_a_part_of_a_lora(tmp_path):
    path = write_file(
        tmp_path / "x.safetensors", {**lora_ab(BLOCK), f"{BLOCK}.lora_mid.weight": torch.ones(2, 2, 3, 3)}
    )
    with pytest.raises(UnsupportedAdapterError, match="lora_mid"):
        load_adapter(path, modules_to_save="drop")


def test_metadata_of_trainers_is_kept_where_all_agree(tmp_path):
    shared = {"software": json.dumps({"name": "ai-toolkit"}), "ss_base_model_version": "flux1"}
    paths = [
        write_file(
            tmp_path / f"{i}.safetensors",
            lora_ab(BLOCK, seed=i),
            {**shared, "training_info": json.dumps({"step": i}), "sshs_model_hash": "0"},
        )
        for i in range(2)
    ]
    merged = SVDMerger(k=2).fit(load_adapters(paths)).merged_
    path = save_adapter(merged, tmp_path / "merged.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert shared.items() <= metadata.items()
    assert {"training_info", "sshs_model_hash"}.isdisjoint(metadata)
    assert load_adapter(path).provenance.base_model == "flux1"


def made(**kinds):
    rng = torch.Generator().manual_seed(1)
    modules = {
        f"diffusion_model.{name}": LoraFactors(torch.randn(r, 6, generator=rng), torch.randn(4, r, generator=rng))
        for name, r in (("b", 3), ("a", 2))
    }
    return Adapter(modules, kinds=kinds, provenance=Provenance(format="comfyui"))


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_round_trip(tmp_path, layout):
    path = save_adapter(made(), tmp_path / "x.safetensors", layout=layout)
    back = load_adapter(path)
    for module, factors_ in made().items():
        torch.testing.assert_close(back[module].delta(), factors_.delta())
        assert back[module].rank == (3 if layout == "portable" else factors_.rank)
        assert back.scale(module) == 1
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == sorted(f"{m}.lora_{s}.weight" for m in made() for s in "AB")
    assert path.read_bytes() == save_adapter(made(), tmp_path / "y.safetensors", layout=layout).read_bytes()


def test_embeddings_cannot_be_written(tmp_path):
    adapter = made(**{"diffusion_model.a": ModuleKind("embedding")})
    with pytest.raises(OutputError, match=r"'diffusion_model.a' is an embedding"):
        save_adapter(adapter, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []
