"""Files whose adapters also add to biases and norms, and what is read of them."""

import torch
from single_files import lora_ab

from lorakit import (
    load_adapter,
)

P = "diffusion_model.blocks.0."
ADDED = {"q.bias": 3, "norm.weight": 5, "norm.bias": 5, "scale.weight": 4}
KEYS = {"q.bias": "q.diff_b", "norm.weight": "norm.w_norm", "norm.bias": "norm.b_norm", "scale.weight": "scale.diff"}


def vectors(seed):
    rng = torch.Generator().manual_seed(100 + seed)
    return {name: torch.randn(size, generator=rng) for name, size in ADDED.items()}


def contents(seed=0, dtype=torch.float32):
    added = {P + KEYS[name]: vector.to(dtype) for name, vector in vectors(seed).items()}
    return lora_ab(f"{P}q", seed=seed, dtype=dtype) | added


def kept(path, **options):
    return load_adapter(path, differences="keep", **options)


def read(adapter):
    return {name.removeprefix(P): adapter.differences.read(name) for name in adapter.differences.infos}


def assert_added(adapter, expected, **tolerance):
    seen = read(adapter)
    assert set(seen) == set(expected)
    for name, vector in expected.items():
        torch.testing.assert_close(seen[name].double(), vector.double(), **(tolerance or {"rtol": 1e-6, "atol": 1e-6}))
