#!/usr/bin/env python
"""Write made-up adapters of a real model's shapes, to measure time and memory with.

All linear layers of Llama-2-7B at rank 16 are 224 modules, 40 million numbers, 80 MB an adapter in bfloat16::

    python tests/benchmarks/model_scale.py OUT --adapters 8

The units of an adapter have decaying norms, and all adapters share a part, so that truncation and clustering have
something to find. The numbers depend on the module and the position of the adapter alone: 32 layers begin with the
same ones as 4, and 8 adapters with the same ones as 2.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {  # (d_out, d_in) of the linear layers of one decoder layer of Llama-2-7B
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
LAYERS = 32


def make(folder: Path, *, adapters: int, rank: int = 16, layers: int = LAYERS) -> list[Path]:
    """Write the adapters that are not there yet, as PEFT directories in bfloat16, and return their paths."""
    paths = [folder / f"layers{layers}-rank{rank}" / f"task{t}" for t in range(adapters)]
    for t, path in enumerate(paths):
        if not (path / "adapter_config.json").exists():  # written last, so what has it is whole
            _write(path, t, rank, layers)
    return paths


def _write(path: Path, t: int, rank: int, layers: int) -> None:
    tensors = {}
    for layer in range(layers):
        for name, shape in SHAPES.items():
            module = f"model.layers.{layer}.{name}"
            shared, own = (_units(f"{whose} {module}", rank, shape) for whose in ("shared", f"task{t}"))
            a, b = (0.5 * common + private for common, private in zip(shared, own, strict=True))
            b *= 0.1 * torch.linspace(1, 0.1, rank)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.bfloat16()
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.bfloat16()
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": "llama-2-7b",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": 2 * rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": [name.rpartition(".")[2] for name in SHAPES],
        "task_type": "CAUSAL_LM",
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _units(stream: str, rank: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(stream.encode()))
    d_out, d_in = shape
    a = torch.randn(rank, d_in, generator=generator) / d_in**0.5
    return a, torch.randn(d_out, rank, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    for path in make(options.out, adapters=options.adapters, rank=options.rank, layers=options.layers):
        print(path)


if __name__ == "__main__":
    main()
