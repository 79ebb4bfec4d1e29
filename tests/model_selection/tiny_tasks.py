"""A model of one layer, adapters of it, and tasks at which each adapter is right by construction; merges that count."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lorakit import AdapterSet, SVDMerger, SVDPruner
from lorakit.testing import make_adapters

WIDTH, CLASSES, INPUTS = 12, 4, 120


class TinyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.layer = nn.Sequential(nn.Linear(WIDTH, CLASSES))

    def forward(self, x):
        return self.layer(self.drop(x))


def load_tiny():
    generator = torch.Generator().manual_seed(0)
    model = TinyModel().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def forward(model, x):
    return model(torch.as_tensor(np.asarray(x)))


def slow_forward(model, x):
    time.sleep(0.002)  # long enough for another thread to put its adapter on the model
    return forward(model, x)


def tiny_adapters():
    return AdapterSet(
        make_adapters(ranks=(2, 3, 2), d_in=WIDTH, d_out=CLASSES, n_modules=1, dtype=torch.float64, random_state=0)
    )


def class_scores(x, adapter=None):
    """What the model says, from dense weights."""
    linear = load_tiny().layer[0]
    weight = linear.weight.detach() + (0 if adapter is None else adapter["layer.0"].delta())
    return (torch.as_tensor(x) @ weight.T + linear.bias.detach()).numpy()


def tiny_tasks():
    rng = np.random.default_rng(0)
    inputs = {adapter.name: rng.normal(size=(INPUTS, WIDTH)) for adapter in tiny_adapters()}
    return {a.name: (inputs[a.name], class_scores(inputs[a.name], a).argmax(axis=1)) for a in tiny_adapters()}


def lines(path):
    """How often something was done, by whatever process."""
    return len(Path(path).read_text(encoding="utf-8").splitlines()) if Path(path).exists() else 0


def note(path):
    """Append a line; one small write to a file in append mode is never mixed with another's."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


class CountedLoader:
    def __init__(self, path):
        self.path = path

    def __call__(self):
        note(self.path)
        return load_tiny()


@dataclass
class UnhashableLoader:
    path: Path

    def __call__(self):
        note(self.path)
        return load_tiny()


class CountedMerger(SVDMerger):
    """Notes every merge in a file."""

    def __init__(self, k=None, *, log=None):
        super().__init__(k=k)
        self.log = log

    def fit(self, X, y=None):
        time.sleep(0.05)  # as long as another process takes to come to the same merge
        note(self.log)
        return super().fit(X, y)


class CountedPruner(SVDPruner):
    """Notes every pruning in a file."""

    def __init__(self, k=None, *, log=None):
        super().__init__(k=k)
        self.log = log

    def transform(self, X):
        note(self.log)
        return super().transform(X)
