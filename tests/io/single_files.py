"""Files of every format written by hand, so that any part of them can be made wrong."""

import json

import torch
from safetensors.torch import save_file


def factors(r=2, d_in=5, d_out=3, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(r, d_in, generator=rng).to(dtype), torch.randn(d_out, r, generator=rng).to(dtype)


def pair(name_a, name_b, **sizes):
    return dict(zip((name_a, name_b), factors(**sizes), strict=True))


def lora_ab(module, **sizes):
    return pair(f"{module}.lora_A.weight", f"{module}.lora_B.weight", **sizes)


def write_file(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"format": "pt", **(metadata or {})})
    return path


def configs(**by_component):
    """The metadata of diffusers: fields of each model's config, after its name."""
    flat = {f"{name}.{key}": value for name, config in by_component.items() for key, value in config.items()}
    return {"lora_adapter_metadata": json.dumps(flat)}


def write_mlx(folder, tensors=None, config=True, weights="adapters.safetensors", **changes):
    """Write an mlx-lm directory; a value of ... removes a field of ``lora_parameters`` or of the config."""
    a, b = factors()
    write_file(
        folder / weights,
        {"model.layers.0.q.lora_a": a.T, "model.layers.0.q.lora_b": b.T} if tensors is None else tensors,
    )
    parameters = {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["q"]}
    fields = {"fine_tune_type": "lora", "num_layers": 4, "model": "org/base", "lora_parameters": parameters}
    for key, value in changes.items():
        (parameters if key in ("rank", "scale", "alpha") else fields)[key] = value
    if config:
        kept = {key: value for key, value in fields.items() if value is not ...}
        if "lora_parameters" in kept:
            kept["lora_parameters"] = {key: value for key, value in parameters.items() if value is not ...}
        (folder / "adapter_config.json").write_text(json.dumps(kept))
    return folder
