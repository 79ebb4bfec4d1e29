"""Small checkpoints on disk, and adapters that fit them."""

import json

import torch
from safetensors.torch import save_file

from lorakit import Adapter, LoraFactors

SHAPES = {"model.layers.0.q_proj": (12, 8), "model.layers.0.k_proj": (8, 8), "model.layers.1.q_proj": (12, 8)}


def tensors(dtype=torch.float32, seed=0, shapes=SHAPES):
    """Weights of a model: linear layers, an embedding, a norm, and positions, which are whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    made = {f"{name}.weight": torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    made["model.embed_tokens.weight"] = torch.randn(20, 8, generator=generator).to(dtype)
    made["model.norm.weight"] = torch.ones(8, dtype=dtype)
    return made | {"model.positions": torch.arange(5)}


def adapter(names=SHAPES, rank=2, seed=1, name="law", size=0.1, drop="model."):
    """An adapter whose names lack the beginning of the model's."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for module in names:
        d_out, d_in = SHAPES[module]
        a, b = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        modules[module.removeprefix(drop)] = LoraFactors(a, b * size)
    return Adapter(modules, name=name)


def write_shards(folder, content, n_shards=3, config=None):
    """Write a folder as transformers does: shards, an index, a config and a tokenizer."""
    folder.mkdir(parents=True)
    names = list(content)
    placed = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = {name: content[name] for name in names[i::n_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in content.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "made-up"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
