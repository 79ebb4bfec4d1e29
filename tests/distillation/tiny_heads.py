"""Small models with heads, of the modules that ``make_adapters`` and the contract's checks make."""

import torch
from torch import nn

from lorakit import DistillMerger

D_IN, D_OUT = 24, 16


def toy_model(dtype=torch.float64):
    """Two layers one after the other, each of 24 inputs and 16 outputs."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(D_IN, D_OUT, dtype=dtype) for _ in range(2)]
    with torch.no_grad():
        for parameter in (p for layer in layers for p in layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return nn.ModuleDict({"layer": nn.ModuleList(layers)})


def encode(model, x):
    """Both layers, with something between them that is not linear: (n, 16)."""
    hidden = torch.tanh(model["layer"][0](x))
    return model["layer"][1](torch.cat([hidden, x[:, : D_IN - D_OUT]], dim=1))


def toy_forward(model, x):
    """Every adapter's head: five classes, each of some directions of its own."""
    encoded = encode(model, x)
    return {name: encoded.roll(3 * i, 1)[:, :5] / 4 for i, name in enumerate(("task0", "task1", "task2", "lacking"))}


def toy_inputs(n=60, dtype=torch.float64, seed=0):
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def merger(**options):
    defaults = {
        "k": 6,
        "model": toy_model(),
        "inputs": toy_inputs(),
        "forwards": toy_forward,
        "epochs": 3,
        "batch_size": 20,
        "learning_rate": 0.02,
        "random_state": 0,
    }
    return DistillMerger(**defaults | options)


def same_bits(x, y):
    return all(torch.equal(a, b) for m in x for a, b in zip(x[m], y[m], strict=True))
