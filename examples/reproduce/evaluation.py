"""
Evaluation: any adapter on any task, measured once
==================================================

::

    test = Evaluator("test", n=200)
    test.accuracy(adapter, "icd10")           # or None: the base model
    test.mean(adapter, ["icd10", "langid"])
    test.scores(adapter, "icd10")             # class scores, for ensembles and the like
    test.routed([a, b], choice, "icd10")      # choice[i]: which adapter text i gets

Class scores are kept in the cache under a hash of the update's numbers, the task's content and the texts that were
asked for: an experiment that is run again, or that shares a merge with another, does not measure it again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import MINILM, Backbone, Tokens
from cache import cache_folder, content_key, written
from tasks import SPLITS, load_task
from torch import Tensor, nn

from lorakit import Adapter

VERSION = 1  # of how scores are computed: raise it when that changes


class Evaluator:
    """Measures adapters on the first texts of a split.

    Parameters
    ----------
    split : {'test', 'validation', 'train'}, default='test'
        Choose on 'validation', report on 'test'.
    n : int, default=200
        Texts of each task, or all that there are.
    backbone : Backbone, default=MINILM
        The base model.

    Attributes
    ----------
    measured, remembered : int
        How often scores were computed, and how often they were in the cache.
    """

    def __init__(self, split: str = "test", n: int = 200, backbone: Backbone = MINILM) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}; got {split!r}")
        if n < 1:
            raise ValueError(f"n must be 1 or more; got {n}")
        self.split = split
        self.n = n
        self.backbone = backbone
        self.measured = self.remembered = 0

    def labels(self, task: str) -> np.ndarray:
        """True labels, shape (n,)."""
        return np.array([label for _, label in self._items(task)])

    def texts(self, task: str) -> list[str]:
        """The texts."""
        return [text for text, _ in self._items(task)]

    def scores(self, adapter: Adapter | None, task: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Class scores by the base model with the adapter on it.

        Parameters
        ----------
        adapter : Adapter or None
            None is the base model itself.
        task : str
            Name of the task.
        rows : sequence of int or None, default=None
            Positions of the texts wanted, in the order wanted. None: all.

        Returns
        -------
        ndarray of shape (texts, labels), float32
        """
        return self.scores_by_task(adapter, {task: rows})[task]

    def scores_by_task(
        self, adapter: Adapter | None, rows: Mapping[str, Sequence[int] | np.ndarray | None]
    ) -> dict[str, np.ndarray]:
        """Class scores of several tasks, for which the update is put into the model once.

        Parameters
        ----------
        adapter : Adapter or None
            None is the base model itself.
        rows : mapping of str to sequence of int or None
            For each task what :meth:`scores` takes.

        Returns
        -------
        dict of str to ndarray of shape (texts, labels), float32
        """
        update, found, missing = update_hash(adapter), {}, {}
        for task, asked in rows.items():
            wanted = np.arange(len(self._items(task))) if asked is None else np.asarray(asked, dtype=int)
            key = content_key(VERSION, self.backbone.name, load_task(task).key, self.split, wanted.tolist(), update)
            path = cache_folder("scores", key[:2]) / f"{key}.npy"
            if path.exists():
                found[task] = np.load(path)
            else:
                missing[task] = (wanted, path)
        self.remembered += len(found)
        self.measured += len(missing)
        if missing:
            found |= self._compute(adapter, missing)
        return {task: found[task] for task in rows}

    def accuracy(self, adapter: Adapter | None, task: str) -> float:
        """Share of the task's texts that get their true label."""
        return float((self.scores(adapter, task).argmax(axis=1) == self.labels(task)).mean())

    def accuracies(self, adapter: Adapter | None, tasks: Iterable[str]) -> dict[str, float]:
        """Accuracy by task."""
        scores = self.scores_by_task(adapter, dict.fromkeys(tasks))
        return {task: float((found.argmax(axis=1) == self.labels(task)).mean()) for task, found in scores.items()}

    def mean(self, adapter: Adapter | None, tasks: Iterable[str]) -> float:
        """Mean accuracy over tasks."""
        return float(np.mean(list(self.accuracies(adapter, tasks).values())))

    def routed(self, adapters: Sequence[Adapter | None], choice: Sequence[int] | np.ndarray, task: str) -> float:
        """Accuracy if text i gets ``adapters[choice[i]]``; each adapter sees its own texts only."""
        labels, choice = self.labels(task), np.asarray(choice)
        if choice.shape != labels.shape:
            raise ValueError(f"{task}: choice must name an adapter for each of {len(labels)} texts; got {choice.shape}")
        right = 0
        for i in np.unique(choice):
            rows = np.flatnonzero(choice == i)
            right += int((self.scores(adapters[i], task, rows).argmax(axis=1) == labels[rows]).sum())
        return right / len(labels)

    def scorer(self, tasks: Iterable[str]) -> Any:
        """Return a ``scoring`` for searches over mergers with ``cv=AllAdapters()``: the mean accuracy on tasks."""
        names = list(tasks)

        def score(merger: Any, X: Any, y: object = None) -> float:
            return self.mean(merger.transform(X)[0], names)

        return score

    def _items(self, task: str) -> list[tuple[str, int]]:
        return load_task(task).splits[self.split][: self.n]

    @torch.no_grad()
    def _compute(
        self, adapter: Adapter | None, missing: Mapping[str, tuple[np.ndarray, Path]]
    ) -> dict[str, np.ndarray]:
        """Measure, and write to the paths task by task."""
        heads = {task: _head(self.backbone, task) for task in missing}  # the base model's: before the update is in
        found = {}
        with updated(_base(self.backbone), adapter) as model:
            for task, (rows, path) in missing.items():
                found[task] = self._forward(model, heads[task], task, rows)
                with written(path) as beside:
                    np.save(beside, found[task])
        return found

    def _forward(self, model: nn.Module, head: Any, task: str, rows: np.ndarray) -> np.ndarray:
        tokens = _tokens(self.backbone, task, self.split)
        if not len(rows):
            return np.zeros((0, len(load_task(task).anchors)), dtype=np.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.backbone.autocast):
            scores = self.backbone.scores_of(model, head, [tokens[i] for i in rows])
        return scores.float().numpy()


@contextmanager
def updated(model: nn.Module, adapter: Adapter | None) -> Iterator[nn.Module]:
    """Have the adapter's update in the model's weights inside a ``with`` block, and the old weights after it.

    For linear layers. Unlike :func:`lorakit.applied` it costs the same at any rank: some merges are of full rank.
    """
    before: dict[nn.Module, Tensor] = {}
    try:
        for name, factors in (adapter or {}).items():
            module = model.get_submodule(name)
            before[module] = module.weight.data
            factors = factors.to(module.weight.dtype)
            module.weight.data = torch.addmm(module.weight.data, factors.B, factors.A)
        yield model
    finally:
        for module, weight in before.items():
            module.weight.data = weight


def update_hash(adapter: Adapter | None) -> str:
    """SHA-256 of the numbers of an adapter's factors; 'base' for none."""
    if adapter is None:
        return "base"
    digest = hashlib.sha256()
    for name in sorted(adapter):
        for half in adapter[name]:
            digest.update(f"{name}{tuple(half.shape)}".encode())
            digest.update(half.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@cache
def _base(backbone: Backbone) -> nn.Module:
    return backbone.load()


@cache
def _head(backbone: Backbone, task: str) -> Any:
    return backbone.head(_base(backbone), load_task(task))


@cache
def _tokens(backbone: Backbone, task: str, split: str) -> Tokens:
    return backbone.encode(load_task(task), [text for text, _ in load_task(task).splits[split]])
