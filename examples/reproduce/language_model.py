"""
A language model: which merges hold on Llama's architecture
===========================================================

Eight adapters of SmolLM2-135M-Instruct, of ranks 8 and 16 and on different modules, two of them of tasks whose answers
are generated, merged by lorakit's methods and by PEFT; and two tasks that no adapter was trained on::

    python examples/reproduce/smollm2.py                     # trains the adapters, half an hour
    python examples/reproduce/language_model.py              # measures, an hour
    python examples/reproduce/language_model.py --measured   # reports what is measured so far

One measurement is a method at a rank. What it found is kept as JSON (``language_model/`` in the cache), so that a run
that was stopped goes on where it was. At rank 16 a merge is judged as published, with each module at the adapters' mean
norm (``scale="match"``), and at the norm that validation texts choose; at the other ranks only the last. Some are then
judged on other texts. Methods of the spaces 'delta' and 'knots', which hold a matrix of the size of the base
weight, are left out.
"""

import argparse
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from adapters import at_norm, load, mean_norm, norm, permuted
from backbones import Backbone
from cache import cache_folder, content_key, read_json, write_json
from entrants import WHOLE, Entrant, data_free
from evaluation import Evaluator, update_hash
from leaderboard import walk
from peft_merges import peft_merge
from prompts import PromptRecipe, trained_merge
from report import Report, parse, parser, progress
from smollm2 import MERGED, UNSEEN, SmolLM2, training
from standings import Right, right_of, right_of_own
from tables_language import tables
from tasks import available, load_task
from training import metrics_of

from lorakit import Adapter, AdapterSet, AverageMerger, ConcatMerger, LegoMerger, SVDMerger
from lorakit.metrics import cosine_similarity

VERSION = 1  # of how merges are measured: raise it when that changes
SCALES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
K = 16
PLAN = (  # methods and ranks, in the order in which they are measured
    ("tsv", K),
    ("svd", K),
    ("distilled", K),
    ("lego", K),
    ("PEFT ties_svd", K),
    ("iso", K),
    ("ties core", K),
    ("tsv", 8),
    ("svd", 8),
    ("tsv", WHOLE),
    ("svd", WHOLE),
    ("ctm", K),
    ("lego svd", K),
    ("PEFT dare_linear_svd", K),
    ("lego", 8),
    ("iso", WHOLE),
    ("iso", 8),
    ("lego", 32),
    ("tsv", 32),
    ("svd", 32),
    ("iso", 32),
    ("ctm iso", K),
)
METHODS = tuple(dict.fromkeys(name for name, _ in PLAN))
UNEQUAL = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")  # PEFT's that work on A and B
N_TEST, N_VALIDATION = 40, 16
FRESH = 3  # how many times the test texts there are with those of the final, which come after them
FINALISTS = ("tsv", "svd", "distilled", "lego", "iso", "PEFT ties_svd")
Units = Iterator[tuple[str, Callable[[], dict[str, Any]], tuple[Any, ...]]]
DISTILLED = PromptRecipe(n=25, epochs=6)


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

    def references(self) -> dict[str, Any]:
        """Which texts the base model and the tasks' own adapters get right."""
        return {
            "base": marks(right_of(None, [*self.tasks, *self.unseen], self.test)),
            "own": marks(right_of_own(self.adapters, self.test)),
        }

    def entry(self, entrant: Entrant, k: int, *, untuned: bool) -> dict[str, Any]:
        """Merge by a method at a rank, and judge it."""
        start = time.process_time()
        merged = entrant.merge(self.adapters, [k], self.seed)[k]
        seconds = time.process_time() - start
        return self.judged(merged, untuned=untuned) | {"seconds": seconds}

    def judged(self, merged: Adapter, *, untuned: bool) -> dict[str, Any]:
        """Judge a merge at the norm that the validation texts choose; ``untuned``: also as it is, and matched."""
        found: dict[str, Any] = {"rank": max(merged.ranks), "norm": norm(merged) / mean_norm(self.adapters)}
        if untuned:
            found["published"] = marks(right_of(merged, self.tasks, self.test))
            found["matched"] = marks(right_of(matched(merged, self.adapters), [*self.tasks, *self.unseen], self.test))
        walked: dict[str, dict[str, float]] = {}

        def score(scale: float) -> float:
            walked[f"{scale:g}"] = self.validation.accuracies(at_norm(merged, self.adapters, scale), self.tasks)
            return float(np.mean(list(walked[f"{scale:g}"].values())))

        scale, _ = walk(score, 1.0, SCALES)
        found |= {"validation": walked, "scale": scale}
        found["chosen"] = marks(right_of(at_norm(merged, self.adapters, scale), self.tasks, self.test))
        return found

    def direct(self, names: Sequence[str]) -> dict[str, Any]:
        """Merge adapters of one rank on A and B, and on the updates, cut and whole; as published, and matched."""
        adapters = AdapterSet(self.adapters[name] for name in names)
        (rank,) = {max(adapter.ranks) for adapter in adapters}
        found = {}
        for what, merger in (("direct", AverageMerger()), ("cut", SVDMerger(rank)), ("whole", ConcatMerger())):
            merged = merger.fit(adapters).merged_
            for how, judged in (("published", merged), ("matched", matched(merged, adapters))):
                found[f"{what}, {how}"] = marks(right_of(judged, names, self.test))
        return found

    def permuted(self, name: str) -> dict[str, Any]:
        """LEGO's table 1: merge an adapter with a copy whose units are in another order."""
        rng = np.random.RandomState([self.seed, zlib.crc32(name.encode())])
        pair = AdapterSet([self.adapters[name], permuted(self.adapters[name], rng)])
        k = max(pair[0].ranks)
        mergers = {"average": AverageMerger(), "svd": SVDMerger(k), "lego": LegoMerger(k, random_state=0)}
        found = {"original": self.adapters[name]}
        found |= {what: merger.fit(pair).merged_ for what, merger in mergers.items()}
        return {what: marks(right_of(adapter, [name], self.test)) for what, adapter in found.items()}

    def distilled(self, recipe: PromptRecipe) -> dict[str, Any]:
        """Train a merge on all heads; its norm is what training makes it."""
        merged, about = trained_merge(recipe, self.adapters, self.backbone)
        right = marks(right_of(merged, [*self.tasks, *self.unseen], self.test))
        return {"rank": max(merged.ranks), "norm": norm(merged) / mean_norm(self.adapters), "matched": right} | about

    def final(self, entrant: Entrant | None, recipe: PromptRecipe) -> dict[str, Any]:
        """Judge a merge at rank 16, matched, on other test texts; no entrant stands for the merge that is trained."""
        if entrant is None:
            merged = trained_merge(recipe, self.adapters, self.backbone)[0]
        else:
            merged = matched(entrant.merge(self.adapters, [K], self.seed)[K], self.adapters)
        return {"matched": marks(right_of(merged, self.tasks, self.fresh, self.test.n))}

    def own_final(self) -> dict[str, Any]:
        """Judge the tasks' own adapters on these texts."""
        return {"own": marks(right_of_own(self.adapters, self.fresh, self.test.n))}

    def peft_alike(self) -> dict[str, Any]:
        """Which of PEFT's merges are the mean, and which refuse these adapters, with what they say."""
        entrants = {entrant.name: entrant for entrant in data_free()}
        mean = entrants["svd"].merge(self.adapters, [WHOLE])[WHOLE]
        cat = peft_merge(self.adapters, "cat", backbone=self.backbone)
        refused = {}
        for kind in UNEQUAL:
            options = {} if kind == "linear" else {"density": 0.5}
            try:
                peft_merge(self.adapters, kind, backbone=self.backbone, **options)
            except ValueError as error:
                refused[kind] = str(error)
        return {"cosine": float(cosine_similarity(cat, mean)), "refused": refused}

    def once(self, name: str, make: Callable[[], dict[str, Any]], *settings: Any) -> dict[str, Any]:
        """Return what was measured under a name, adapters, texts and settings, or measure it."""
        path = self.path(name, *settings)
        if (found := read_json(path)) is None:
            start = time.perf_counter()
            found = make() | {"measured_in": round(time.perf_counter() - start, 1)}
            write_json(path, found)
            progress(f"{name}: {summary(found)}")
        return found

    def path(self, name: str, *settings: Any) -> Path:
        """Where that is kept."""
        hashes = [(adapter.name, update_hash(adapter)) for adapter in self.adapters]
        keys = [load_task(task).key for task in self.unseen]
        sizes = (self.test.n, self.validation.n, self.seed)
        key = content_key(VERSION, self.backbone.name, name, settings, hashes, keys, sizes, SCALES)
        return cache_folder("language_model") / f"{key}.json"


def main() -> None:
    """Measure what is wanted and not measured yet, and report."""
    options = parse_options()
    seed, *others = options.seeds
    if others:
        progress(f"only the adapters of the first seed, {seed}, are measured; got {options.seeds}")
    backbone = SmolLM2()
    adapters = AdapterSet(load(training(task, seed), backbone) for task in options.tasks)
    bench = Bench(adapters, backbone, available(UNSEEN), options.n_test, options.n_validation, seed)
    found: dict[str, Any] = {}
    for name, make, settings in units(bench, options.methods):
        if not options.measured or bench.path(name, *settings).exists():
            found[name] = bench.once(name, make, *settings)
    about = {task: metrics_of(training(task, seed), backbone) for task in options.tasks}
    report = Report("language_model", options, numbers=found)
    report.tables += tables(found, about, options.n_test, options.n_validation)
    report.publish()


def units(bench: Bench, methods: Iterable[str]) -> Units:
    """Yield each measurement: its name, the function, what it depends on; the most wanted first."""
    entrants = {entrant.name: replace(entrant, backbone=bench.backbone) for entrant in data_free()}
    yield "references", bench.references, ()
    largest = sum(max(adapter.ranks) for adapter in bench.adapters)
    for name, k in PLAN:
        if name not in methods or k > largest:
            continue
        if name == "distilled":
            yield name, partial(bench.distilled, DISTILLED), (repr(DISTILLED),)
            continue
        entrant = entrants[name]
        yield f"{name}, {k}", partial(bench.entry, entrant, k, untuned=k == K), (repr(entrant.merger), entrant.peft)
        if (name, k) == ("ties core", K):
            yield from papers(bench)
            yield from finals(bench, entrants, methods)
    yield "PEFT alike", bench.peft_alike, ()


def finals(bench: Bench, entrants: Mapping[str, Entrant], methods: Iterable[str]) -> Units:
    """Yield some methods on texts that nobody has looked at."""
    yield "final, own adapters", bench.own_final, (FRESH,)
    for name in (name for name in FINALISTS if name in methods):
        entrant = entrants.get(name)
        settings = (FRESH, repr(entrant.merger), entrant.peft) if entrant else (FRESH, repr(DISTILLED))
        yield f"final, {name}", partial(bench.final, entrant, DISTILLED), settings


def papers(bench: Bench) -> Units:
    """Yield what the papers' first tables are about: copies in another order, and direct against multiplied merges."""
    for name in bench.tasks:
        yield f"permuted, {name}", partial(bench.permuted, name), ()
    for what, names in groups(bench.adapters).items():
        yield f"direct, {what}", partial(bench.direct, names), (names,)


def groups(adapters: AdapterSet) -> dict[str, list[str]]:
    """Adapters of one rank."""
    by_rank: dict[str, list[str]] = {}
    for adapter in adapters:
        by_rank.setdefault(f"rank {max(adapter.ranks)}", []).append(adapter.name)
    return {what: names for what, names in by_rank.items() if len(names) > 1}


def matched(merged: Adapter, adapters: Iterable[Adapter]) -> Adapter:
    """Scale modules to the adapters' mean norm there, as ``scale="match"`` does; a missing module counts as zero."""
    modules = {}
    for module in merged:
        one = norm(Adapter({module: merged[module]}, name=merged.name))
        theirs = [norm(Adapter({module: a[module]}, name=a.name)) if module in a else 0.0 for a in adapters]
        modules[module] = merged[module].scaled(float(np.mean(theirs)) / one if one else 1.0)
    return Adapter(modules, name=merged.name, provenance=merged.provenance)


def marks(right: Right) -> dict[str, str]:
    """Which texts are right, as JSON can hold it: '0110', by task."""
    return {task: "".join(str(int(mark)) for mark in found) for task, found in right.items()}


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


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    command = parser("Merges of adapters of a language model.", MERGED)
    command.set_defaults(seeds=[0], n_test=N_TEST, n_validation=N_VALIDATION)
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    command.add_argument("--measured", action="store_true", help="measure nothing; report what is measured already")
    return parse(command, MERGED, quick=MERGED[1:4])


if __name__ == "__main__":
    main()
