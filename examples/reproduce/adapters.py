"""
Adapters for the experiments: trained ones, and ones made from them
===================================================================
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from backbones import MINILM, Backbone
from cache import cache_folder, content_key, written
from evaluation import Evaluator, update_hash
from training import Training, folder_of, trained

from lorakit import Adapter, AdapterSet, LoraFactors, load_adapter, save_adapter

SHIPPED = Path(__file__).resolve().parents[2] / "tests" / "reproduce" / "data" / "nine"
SCALES = (0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 1.8, 2.2)  # norms of merges, in mean norms of the adapters


def load(training: Training, backbone: Backbone = MINILM) -> Adapter:
    """Read a trained adapter into memory, called after its task.

    One that is not in the cache is that of the tests, if they have it (rounded to float16), and is trained otherwise.
    """
    shipped = SHIPPED / training.task
    if folder_of(training, backbone).exists():
        adapter = load_adapter(trained(training, backbone))
    elif backbone is MINILM and training == Training(training.task) and shipped.exists():
        adapter = load_adapter(shipped)
    else:
        print(f"training {training}; train_all.py does that for all", flush=True)
        adapter = load_adapter(trained(training, backbone))
    modules = {module: factors.to(torch.float32) for module, factors in adapter.items()}
    return Adapter(modules, name=training.task, provenance=adapter.provenance)


def load_tasks(
    tasks: Iterable[str],
    *,
    seed: int = 0,
    ranks: Mapping[str, int] | int = 8,
    shared_start: bool = False,
    backbone: Backbone = MINILM,
) -> AdapterSet:
    """Read one adapter a task; ``ranks`` is a rank for all, or by task where it is not 8.

    ``shared_start`` is as in :class:`training.Training`.
    """
    rank_of = (lambda task: ranks) if isinstance(ranks, int) else (lambda task: ranks.get(task, 8))
    trainings = (Training(task, rank=rank_of(task), seed=seed, shared_start=shared_start) for task in tasks)
    return AdapterSet(load(training, backbone) for training in trainings)


def changed(adapter: Adapter, change: Callable[[LoraFactors], LoraFactors], name: str | None = None) -> Adapter:
    """Return an adapter with each module's factors changed."""
    modules = {module: change(factors) for module, factors in adapter.items()}
    return Adapter(modules, name=name or adapter.name, provenance=adapter.provenance)


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """Return the adapter with its update multiplied."""
    return changed(adapter, lambda factors: factors.scaled(scale))


def permuted(adapter: Adapter, rng: np.random.RandomState) -> Adapter:
    """Return the same update with its units in another order, drawn for each module."""

    def change(factors: LoraFactors) -> LoraFactors:
        order = torch.from_numpy(rng.permutation(factors.rank))
        return LoraFactors(factors.A[order], factors.B[:, order])

    return changed(adapter, change, f"{adapter.name}, permuted")


def joined(first: Adapter, *others: Adapter, name: str) -> Adapter:
    """Return the sum of the updates: the units of all, side by side. The adapters have the same modules."""
    parts = {module: [adapter[module] for adapter in (first, *others)] for module in first}
    modules = {
        module: LoraFactors(torch.cat([f.A for f in found]), torch.cat([f.B for f in found], dim=1))
        for module, found in parts.items()
    }
    return Adapter(modules, name=name, provenance=first.provenance)


def norm(adapter: Adapter) -> float:
    """Frobenius norm of the update over the whole model."""
    squares = [(f.A @ f.A.T * (f.B.T @ f.B)).sum().item() for f in adapter.values()]
    return float(np.sqrt(max(0.0, sum(squares))))


def mean_norm(adapters: Iterable[Adapter]) -> float:
    """Mean of the adapters' norms: what the norms of merges are counted in."""
    return float(np.mean([norm(adapter) for adapter in adapters]))


def at_norm(adapter: Adapter, adapters: Iterable[Adapter], target: float) -> Adapter:
    """Scale a merge, by one factor for the model, to ``target`` times the mean norm of the adapters."""
    own = norm(adapter)
    return scaled(adapter, target * mean_norm(adapters) / own) if own else adapter


def best_scale(
    merged: Adapter, adapters: AdapterSet, validation: Evaluator, tasks: Iterable[str], scales: Iterable[float] = SCALES
) -> float:
    """Choose the ``target`` of :func:`at_norm` by the mean accuracy on texts that are not reported; least of equals."""
    names = list(tasks)
    if validation.split == "test":
        raise ValueError("a scale is chosen on the validation split; got an Evaluator of the test split")
    found = {scale: validation.mean(at_norm(merged, adapters, scale), names) for scale in sorted(scales)}
    return max(found, key=lambda scale: found[scale])


def saved(adapter: Adapter) -> Path:
    """Write an adapter as a PEFT directory in the cache, once, and return its folder: what PEFT's own merges need."""
    folder = cache_folder("saved") / f"{content_key(adapter.name)[:6]}-{update_hash(adapter)[:16]}"
    if not folder.exists():
        with written(folder) as beside:
            save_adapter(adapter, beside)
    return folder
