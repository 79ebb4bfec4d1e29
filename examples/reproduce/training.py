"""
Training adapters: seeded, cached, resumable
============================================

``trained(Training("icd10", rank=8, seed=0))`` returns the folder of an adapter in PEFT's format, and trains it first if
the cache lacks it. An adapter is known by what it was trained on and how, so that changing either trains a new one.
"""

import math
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import MINILM, Backbone, by_length
from cache import cache_folder, content_key, read_json, write_json, written
from tasks import Task, load_task
from torch import nn

VERSION = 1  # of how adapters are trained: raise it when that changes
WINDOW = 8  # batches that are sorted by length together
WARM_UP = 0.06  # share of the steps


@dataclass(frozen=True)
class Training:
    """What to train.

    Parameters
    ----------
    task : str
        The task.
    rank : int, default=8
        Rank of every module.
    seed : int, default=0
        Of the adapter's first values and of the order of the texts.
    shared_start : bool, default=False
        Whether the adapters of a seed begin with the same values, whatever their task, as those do that one script
        trains one after the other; their A then stay alike. Those that different people train do not.
    alpha : float or None, default=None
        None: twice the rank.
    on : Training or None, default=None
        An adapter that is added to the base model first and stays as it is, for LEGO's knowledge conflict: what is
        trained, of rank 1, are the units that one task adds to it.
    steps, batch_size, learning_rate : int, int, float
        189 steps of 32 texts are three times through 2,000 texts.
    targets : tuple of str or None, default=None
        Modules to adapt. None: those of the backbone.
    """

    task: str
    rank: int = 8
    seed: int = 0
    alpha: float | None = None
    on: "Training | None" = None
    shared_start: bool = False
    steps: int = 189
    batch_size: int = 32
    learning_rate: float = 1e-3
    targets: tuple[str, ...] | None = None

    def __str__(self) -> str:
        on = f" on {self.on.task}" if self.on else ""
        start = ", shared start" if self.shared_start else ""
        return f"{self.task}, rank {self.rank}, seed {self.seed}{on}{start}"


def trained(training: Training, backbone: Backbone = MINILM) -> Path:
    """Return the folder of a trained adapter, PEFT's files and metrics.json; train it first if it is not there."""
    folder = folder_of(training, backbone)
    if not folder.exists():
        with written(folder) as beside:
            train(training, backbone, beside)
    return folder


def folder_of(training: Training, backbone: Backbone = MINILM) -> Path:
    """Where the adapter is, or will be."""
    on = f"-on-{training.on.task}" if training.on else ""
    start = "-shared" if training.shared_start else ""
    name = f"{training.task}-r{training.rank}-s{training.seed}{on}{start}-{key_of(training, backbone)[:8]}"
    return cache_folder("adapters", backbone.name) / name


def key_of(training: Training, backbone: Backbone = MINILM) -> str:
    """Identify an adapter by the texts that it is trained on and its settings."""
    task, settings = load_task(training.task), asdict(replace(training, on=None))
    on = key_of(training.on, backbone) if training.on else None
    targets = settings.pop("targets") or backbone.targets
    return content_key(VERSION, backbone.name, targets, task.anchors, task.splits["train"], settings, on)


def train(training: Training, backbone: Backbone, folder: Path) -> dict[str, Any]:
    """Train one adapter and save it.

    Returns
    -------
    dict
        What metrics.json holds: settings, accuracies on the validation split, seconds, source and licence.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    task = load_task(training.task)
    base = backbone.load()
    head = backbone.head(base, task)
    before = accuracy(base, backbone, head, task, "validation")
    if training.on is not None:
        base = PeftModel.from_pretrained(base, trained(training.on, backbone)).merge_and_unload().eval()
    torch.manual_seed(_start(training))
    config = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha or 2 * training.rank,
        lora_dropout=0.0,  # drawing masks takes a third of a step, for three times through the texts
        target_modules=list(training.targets or backbone.targets),
        task_type=backbone.task_type,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT uses
        model = get_peft_model(base, config)
    config.base_model_name_or_path = backbone.base_model  # not a folder of this machine
    start = time.perf_counter()
    loss = _optimise(model.base_model.model.eval(), backbone, head, task, training)
    metrics = {
        "training": asdict(training),
        "task": task.name,
        "labels": len(task.anchors),
        "base_validation": before,
        "validation": accuracy(model.base_model.model, backbone, head, task, "validation"),
        "loss": loss,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {name: version(name) for name in ("torch", "peft", "transformers")},
        "source": task.source,
        "licence": task.licence,
        "task_key": task.key,
    }
    model.save_pretrained(folder, save_embedding_layers=False)
    write_json(folder / "metrics.json", metrics, indent=1)
    return metrics


def _start(training: Training) -> int:
    """Seed of the first values of an adapter."""
    return training.seed if training.shared_start else zlib.crc32(f"{training.task}, {training.seed}".encode())


def metrics_of(training: Training, backbone: Backbone = MINILM) -> dict[str, Any] | None:
    """Read an adapter's metrics.json; None if it is not trained yet."""
    return read_json(folder_of(training, backbone) / "metrics.json")


def _optimise(model: nn.Module, backbone: Backbone, head: Any, task: Task, training: Training) -> float:
    """Run AdamW; returns the mean loss of the last tenth of the steps."""
    texts, labels = zip(*task.splits["train"], strict=True)
    tokens, y = backbone.encode(task, texts), torch.tensor(labels)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.01)
    losses = []
    for step, rows in zip(range(training.steps), _batches(tokens, training), strict=False):
        rate = min(1.0, (step + 1) / (WARM_UP * training.steps)) * (1 - step / training.steps)
        optimiser.param_groups[0]["lr"] = training.learning_rate * rate
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backbone.autocast):
            loss = backbone.loss(model, head, [tokens[i] for i in rows], y[torch.from_numpy(rows)])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
    return float(np.mean(losses[-math.ceil(len(losses) / 10) :]))


def _batches(tokens: list[list[int]], training: Training) -> Iterator[np.ndarray]:
    """Positions of the texts of each batch, for ever; texts of one window of batches are sorted by length."""
    rng = np.random.default_rng(training.seed)
    size = training.batch_size
    while True:
        order = rng.permutation(len(tokens))
        for start in range(0, len(order), size * WINDOW):
            window = order[start : start + size * WINDOW]
            parts = [window[part] for part in by_length([tokens[i] for i in window], size)]
            yield from (parts[i] for i in rng.permutation(len(parts)))


@torch.no_grad()
def accuracy(model: nn.Module, backbone: Backbone, head: Any, task: Task, split: str) -> float:
    """Share of a split's first texts that get their true label."""
    texts, labels = zip(*task.splits[split][: backbone.n_checked], strict=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=backbone.autocast):
        scores = backbone.scores_of(model, head, backbone.encode(task, texts))
    return float((scores.argmax(dim=1) == torch.tensor(labels)).double().mean())
