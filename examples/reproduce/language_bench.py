"""
The bench: adapters of a language model, and the texts that merges of them are judged by
=======================================================================================

What ``language_model.py`` and ``language_papers.py`` share. A measurement says which texts are right, as '0110' by
task, and is kept in the cache under its name, its settings, the adapters' numbers and the texts.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adapters import at_norm, load, mean_norm, norm
from backbones import Backbone
from cache import cache_folder, content_key, read_json, write_json
from entrants import Entrant
from evaluation import Evaluator, update_hash
from leaderboard import walk
from measured import marks
from report import progress
from smollm2 import UNSEEN, SmolLM2, training
from standings import right_of, right_of_own
from tasks import available, load_task

from lorakit import Adapter, AdapterSet

VERSION = 1  # of how merges are measured: raise it when that changes
SCALES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
K = 16
N_TEST, N_VALIDATION = 40, 16
LONG = 20  # seconds that a merge takes if it is kept in memory: PEFT's
FRESH = 3  # how many times the test texts there are with those of the final, which come after them
Units = Iterator[tuple[str, Callable[[], dict[str, Any]], tuple[Any, ...]]]


class Bench:
    """The adapters of a seed, with the texts that merges are judged by.

    Parameters
    ----------
    adapters : AdapterSet
        One a task.
    backbone : Backbone
        Their base model.
    unseen : sequence of str
        Tasks without an adapter.
    n_test, n_validation : int
        Texts of each task.
    seed : int
        For methods that draw.
    """

    def __init__(
        self,
        adapters: AdapterSet,
        backbone: Backbone,
        unseen: Sequence[str],
        n_test: int,
        n_validation: int,
        seed: int = 0,
    ) -> None:
        self.adapters, self.backbone, self.seed = adapters, backbone, seed
        self.tasks, self.unseen = list(adapters.names), list(unseen)
        self.test = Evaluator("test", n_test, backbone)
        self.fresh = Evaluator("test", FRESH * n_test, backbone)
        self.validation = Evaluator("validation", n_validation, backbone)
        self._kept: dict[tuple[str, int], tuple[Adapter, float]] = {}

    def references(self) -> dict[str, Any]:
        """Which texts the base model and the tasks' own adapters get right."""
        return {
            "base": marks(right_of(None, [*self.tasks, *self.unseen], self.test)),
            "own": marks(right_of_own(self.adapters, self.test)),
        }

    def untuned(self, entrant: Entrant, k: int) -> dict[str, Any]:
        """Merge by a method at a rank, and judge it as published and matched; that also on the tasks left out."""
        merged, found = self._merged(entrant, k)
        found["published"] = marks(right_of(merged, self.tasks, self.test))
        found["matched"] = marks(right_of(matched(merged, self.adapters), [*self.tasks, *self.unseen], self.test))
        return found

    def chosen(self, entrant: Entrant, k: int) -> dict[str, Any]:
        """Merge by a method at a rank, and judge it at the norm that the validation texts choose."""
        merged, found = self._merged(entrant, k)
        walked: dict[str, dict[str, float]] = {}

        def score(scale: float) -> float:
            walked[f"{scale:g}"] = self.validation.accuracies(at_norm(merged, self.adapters, scale), self.tasks)
            return float(np.mean(list(walked[f"{scale:g}"].values())))

        scale, _ = walk(score, 1.0, SCALES)
        found |= {"validation": walked, "scale": scale}
        found["chosen"] = marks(right_of(at_norm(merged, self.adapters, scale), self.tasks, self.test))
        return found

    def merge(self, entrant: Entrant, k: int) -> tuple[Adapter, float]:
        """Merge by a method at a rank; also the seconds of processor time. What took long is kept."""
        if (entrant.name, k) in self._kept:
            return self._kept[entrant.name, k]
        start = time.process_time()
        merged = entrant.merge(self.adapters, [k], self.seed)[k]
        seconds = time.process_time() - start
        if seconds > LONG:
            self._kept[entrant.name, k] = merged, seconds
        return merged, seconds

    def _merged(self, entrant: Entrant, k: int) -> tuple[Adapter, dict[str, Any]]:
        merged, seconds = self.merge(entrant, k)
        size = norm(merged) / mean_norm(self.adapters)
        return merged, {"rank": max(merged.ranks), "norm": size, "seconds": seconds}

    def both(self, merged: Adapter, adapters: AdapterSet, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        """Judge a merge of some adapters as it is, and matched."""
        names = list(tasks)
        return {
            "published": marks(right_of(merged, names, self.test)),
            "matched": marks(right_of(matched(merged, adapters), names, self.test)),
        }

    def some(self, names: Iterable[str]) -> AdapterSet:
        """Return the adapters of some tasks."""
        return AdapterSet(self.adapters[name] for name in names)

    def once(self, name: str, make: Callable[[], dict[str, Any]], *settings: Any) -> dict[str, Any]:
        """Return what was measured under a name, adapters, texts and settings, or measure it."""
        path = self.path(name, *settings)
        if (found := read_json(path)) is None:
            start = time.perf_counter()
            found = make() | {"measured_in": round(time.perf_counter() - start, 1)}
            write_json(path, found)
            progress(f"seed {self.seed}, {name}: {summary(found)}")
        return found

    def path(self, name: str, *settings: Any) -> Path:
        """Where that is kept."""
        hashes = [(adapter.name, update_hash(adapter)) for adapter in self.adapters]
        keys = [load_task(task).key for task in self.unseen]
        sizes = (self.test.n, self.validation.n, self.seed)
        key = content_key(VERSION, self.backbone.name, name, settings, hashes, keys, sizes, SCALES)
        return cache_folder("language_model") / f"{key}.json"


def bench_of(tasks: Iterable[str], seed: int, n_test: int, n_validation: int) -> Bench:
    """The bench of SmolLM2's adapters of one seed, trained if they are not there."""
    backbone = SmolLM2()
    adapters = AdapterSet(load(training(task, seed), backbone) for task in tasks)
    return Bench(adapters, backbone, available(UNSEEN), n_test, n_validation, seed)


def matched(merged: Adapter, adapters: Iterable[Adapter]) -> Adapter:
    """Scale modules to the adapters' mean norm there, as ``scale="match"`` does; a missing module counts as zero."""
    modules = {}
    for module in merged:
        one = norm(Adapter({module: merged[module]}, name=merged.name))
        theirs = [norm(Adapter({module: a[module]}, name=a.name)) if module in a else 0.0 for a in adapters]
        modules[module] = merged[module].scaled(float(np.mean(theirs)) / one if one else 1.0)
    return Adapter(modules, name=merged.name, provenance=merged.provenance)


def summary(found: Mapping[str, Any]) -> str:
    """A measurement in a line."""
    means = {
        what: np.mean([np.mean([int(mark) for mark in of]) for of in found[what].values()])
        for what in ("base", "own", "published", "matched", "chosen")
        if what in found
    }
    words = [f"{what} {mean:.3f}" for what, mean in means.items()]
    words += [f"norm {found['scale']:g}"] if "scale" in found else []
    return ", ".join([*words, f"{found['measured_in']:.0f} s"])
