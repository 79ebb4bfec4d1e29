"""
Distilled merges: heads, inputs, and merges that are trained once
=================================================================

``merge(Recipe("data-free", generic=700, pseudo=60), adapters)`` trains, or reads what an earlier run trained; one that
was stopped goes on after its last epoch.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapters import SHIPPED, load
from backbones import MINILM, Tokens, by_length, minilm_tokenizer
from cache import cache_folder, content_key, read_json, write_json, written
from evaluation import update_hash
from sklearn.base import clone
from tasks import load_task
from torch import Tensor, nn
from training import Training

from lorakit import (
    Adapter,
    AdapterSet,
    AgreementScorer,
    DistillMerger,
    RegMeanPlusMerger,
    TSVMerger,
    collect_targets,
    generic_inputs,
    load_adapter,
    pseudo_inputs,
    save_adapter,
)
from lorakit.base import BaseMerger
from lorakit.distillation.heads import SharedHeads
from lorakit.distillation.targets import Targets

VERSION = 2  # of how merges are trained: raise it when that changes
OWN_ONLY = 1e9  # as own_weight: the other heads count for nothing


@dataclass(frozen=True)
class Recipe:
    """What to train on, and how.

    Parameters
    ----------
    name : str
        What the tables call it.
    k : int, default=16
        Rank.
    generic, pseudo, own, fragments : int, default=0
        Fragments of lorakit's sentences; texts made from each adapter; training texts of each task, no labels;
        fragments of these training texts, for each task.
    spliced : int, default=0
        For each task, beginnings of its training texts followed by the ends of others.
    own_weight : float, default=10.0
        Weight of an input's own head, in those of the others. It has no meaning for generic texts.
    owned : bool, default=False
        Whether texts that are made from an adapter belong to it.
    kinds : str, default='sentences'
        Kind of lorakit's generic texts; 'all' draws from all. Not lorakit's default: what is usual here is not part of
        a recipe's settings, by which merges are known that were recorded before there were kinds.
    epochs, learning_rate, seed : int, float, int
        As in DistillMerger.
    start : {'tsv', 'tsv 1.4', 'regmean++', 'whole'}, default='tsv'
        What training starts from: tsv at a norm of 1 or 1.4; RegMean++ on the texts that belong to an adapter, pseudo-
        texts among them, which is distillation block by block; or a merge that was trained whole for half of the epochs
        and is then cut.
    match : {'classes', 'changes'}, default='classes'
        As in DistillMerger. With 'changes' no head is asked: embeddings are matched.
    bfloat16 : bool, default=False
        Whether the model computes in bfloat16, which takes half the time of processors that have instructions for it,
        and several times as long on others.
    """

    name: str
    k: int = 16
    generic: int = 0
    pseudo: int = 0
    own: int = 0
    fragments: int = 0
    spliced: int = 0
    own_weight: float = 10.0
    epochs: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    start: str = "tsv"
    owned: bool = False
    match: str = "classes"
    kinds: str = "sentences"
    bfloat16: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What is not as usual; two recipes of the same settings are one."""
        usual = asdict(Recipe(""))
        return {name: value for name, value in asdict(self).items() if name != "name" and value != usual[name]}

    def n_texts(self, n_adapters: int) -> int:
        """Number of texts, with so many adapters."""
        return self.generic + (self.pseudo + self.own + self.fragments + self.spliced) * n_adapters


@dataclass(frozen=True)
class Merge:
    """A merge that was trained.

    Parameters
    ----------
    adapter : Adapter
        The result.
    about : dict
        Seconds of processor time; of a trained one also texts, and loss and agreement by epoch.
    """

    adapter: Adapter
    about: dict[str, Any]


def adapters_of(tasks: Iterable[str], ranks: Mapping[str, int] | None = None, *, alike: bool = False) -> AdapterSet:
    """One adapter a task, each begun with values of its own: the tests' where they have it, or trained.

    ``ranks`` are those that are not 8. Those that are ``alike`` began with the same values.
    """
    found = []
    for task in tasks:
        rank = (ranks or {}).get(task, 8)
        if rank == 8 and not alike and (SHIPPED / task).exists():
            adapter = load_adapter(SHIPPED / task)
            modules = {module: factors.to(torch.float32) for module, factors in adapter.items()}
            found.append(Adapter(modules, name=task, provenance=adapter.provenance))
        else:
            found.append(load(Training(task, rank=rank, shared_start=alike)))
    return AdapterSet(found)


def encode(model: nn.Module, tokens: Tokens) -> Tensor:
    """Embeddings of texts, with gradients where they are on: (texts, width)."""
    return MINILM.embed(model, MINILM.collate(tokens))


def encode_in_bfloat16(model: nn.Module, tokens: Tokens) -> Tensor:
    """The same with products of matrices in bfloat16; the embeddings are in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return encode(model, tokens)


def heads_of(base: nn.Module, tasks: Iterable[str], *, bfloat16: bool = False) -> SharedHeads:
    """The frozen heads of tasks: 20 x cosine with the anchors."""
    heads = {task: 20 * MINILM.head(base, load_task(task)) for task in tasks}
    return SharedHeads(encode_in_bfloat16 if bfloat16 else encode, heads)


def inputs_of(recipe: Recipe, base: nn.Module, adapters: AdapterSet) -> tuple[Tokens, list[str | None]]:
    """Tokens of a recipe's texts, and for each text the task that it belongs to."""
    kinds = None if recipe.kinds == "all" else [recipe.kinds]
    texts = generic_inputs(n=recipe.generic, kinds=kinds, random_state=recipe.seed) if recipe.generic else []
    owners: list[str | None] = [None] * len(texts)
    task = load_task(adapters.names[0])  # all have one tokenizer
    options: dict[str, Any] = {"tokenizer": minilm_tokenizer(), "random_state": recipe.seed}
    if recipe.pseudo:
        texts += pseudo_inputs(base, adapters, recipe.pseudo, **options)
        owners += [name if recipe.owned else None for name in adapters.names for _ in range(recipe.pseudo)]
    for name in adapters.names if recipe.own else ():
        own = [text for text, _ in load_task(name).splits["train"][: recipe.own]]
        more = generic_inputs(own, recipe.fragments, random_state=recipe.seed) if recipe.fragments else []
        more += splices(own, recipe.spliced, np.random.RandomState(recipe.seed))
        texts, owners = texts + own + more, owners + [name] * len(own + more)
    return MINILM.encode(task, texts), owners


def splices(texts: Sequence[str], n: int, rng: np.random.RandomState) -> list[str]:
    """Beginnings of texts, each followed by the end of another."""
    made = []
    for _ in range(n):
        first, second = (texts[i].split() for i in rng.choice(len(texts), 2, replace=False))
        cut = rng.random_sample()
        made.append(" ".join(first[: math.ceil(cut * len(first))] + second[math.floor(cut * len(second)) :]))
    return made


def merge(recipe: Recipe, adapters: AdapterSet) -> Merge:
    """Return the merge of a recipe; train it if it is not in the cache."""
    folder = _folder_of(recipe.settings, adapters)
    if not folder.exists():
        with written(folder) as beside:
            _train(recipe, adapters, beside, folder.with_suffix(".checkpoint"))
    return _read(folder, recipe.name)


def once(settings: Any, name: str, adapters: AdapterSet, make: Callable[[], Adapter]) -> Merge:
    """Return what a function merges, and the seconds that it took when it was called: once, for these settings."""
    folder = _folder_of(settings, adapters)
    if not folder.exists():
        start = time.process_time()
        made = make()
        seconds = time.process_time() - start
        with written(folder) as beside:
            save_adapter(made, beside)
            write_json(beside / "about.json", {"seconds": seconds})
    return _read(folder, name)


def _folder_of(settings: Any, adapters: AdapterSet) -> Path:
    key = content_key(VERSION, settings, [(adapter.name, update_hash(adapter)) for adapter in adapters])
    return cache_folder("distilled") / key


def _read(folder: Path, name: str) -> Merge:
    found = load_adapter(folder)
    return Merge(Adapter(dict(found), name=name, provenance=found.provenance), read_json(folder / "about.json"))


def anew(recipe: Recipe, adapters: AdapterSet) -> tuple[Adapter, float]:
    """Make a recipe's merge from nothing but the adapters, on as many threads as torch has; the clock's seconds."""
    start = time.perf_counter()
    merger = _merger(recipe, MINILM.load(), adapters)
    merged = merger.set_params(start=_start(recipe, merger, adapters)).fit(adapters).merged_
    return merged, time.perf_counter() - start


def _train(recipe: Recipe, adapters: AdapterSet, folder: Path, checkpoint: Path) -> None:
    base = MINILM.load()
    start = time.process_time()
    merger = _merger(recipe, base, adapters)
    made = time.process_time() - start
    targets, asked = _asked(recipe, merger, adapters)
    prepared = time.process_time()
    merger.set_params(targets=targets)  # which a start that is trained takes too, unlike the checkpoint
    merger.set_params(start=_start(recipe, merger, adapters), checkpoint=checkpoint).fit(adapters)
    trained = time.process_time()
    save_adapter(merger.merged_, folder)
    about = {
        "recipe": asdict(recipe),
        "texts": len(merger.inputs),
        "tokens": sum(map(len, merger.inputs)),
        "seconds": made + asked + trained - prepared,  # without earlier runs, if it was stopped
        "seconds_of_teachers": made + asked,
        "loss": merger.loss_curve_,
        "agreement": merger.agreement_curve_,
        "temperatures": merger.temperatures_,
    }
    write_json(folder / "about.json", about, indent=1)
    checkpoint.unlink()


def _merger(recipe: Recipe, base: nn.Module, adapters: AdapterSet) -> DistillMerger:
    """A recipe's merger with its texts and heads, without its start, which may need the teachers' answers."""
    heads = heads_of(base, adapters.names, bfloat16=recipe.bfloat16)
    inputs, owners = inputs_of(recipe, base, adapters)
    return DistillMerger(
        recipe.k,
        model=base,
        inputs=inputs,
        forwards=heads if recipe.match == "classes" else heads.encode,
        match=recipe.match,
        owners=owners,
        own_weight=recipe.own_weight,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        random_state=recipe.seed,
    )


def _asked(recipe: Recipe, merger: DistillMerger, adapters: AdapterSet) -> tuple[Targets, float]:
    """The teachers' answers, and the seconds that it took when they were asked: once for recipes of the same texts."""
    hashes = [(a.name, update_hash(a)) for a in adapters]
    folder = cache_folder("targets", content_key(VERSION, recipe.bfloat16, recipe.match, merger.inputs, hashes))
    start = time.process_time()
    targets = collect_targets(merger.model, adapters, merger.inputs, merger.forwards, folder=folder)
    if (seconds := read_json(folder / "seconds.json")) is None:
        seconds = time.process_time() - start
        write_json(folder / "seconds.json", seconds)
    return targets, seconds


def _start(recipe: Recipe, merger: DistillMerger, adapters: AdapterSet) -> BaseMerger | Adapter:
    """What the training starts from."""
    if recipe.start == "whole":
        whole = sum(max(adapter.ranks) for adapter in adapters)
        return clone(merger).set_params(k=whole, epochs=-(-recipe.epochs // 2)).fit(adapters).merged_
    if recipe.start == "regmean++":
        batches = {}
        for i, name in enumerate(adapters.names):
            first = recipe.generic + i * recipe.pseudo
            own = [x for x, owner in zip(merger.inputs, merger.owners, strict=True) if owner == name]
            texts = own if recipe.owned else merger.inputs[first : first + recipe.pseudo] + own
            batches[name] = [MINILM.collate([texts[j] for j in part]) for part in by_length(texts, 50)]
        return RegMeanPlusMerger(scale="match", model=merger.model, batches=batches)
    return TSVMerger(scale="match", scale_target={"tsv": 1.0, "tsv 1.4": 1.4}[recipe.start])


def agreement_scorer(recipe: Recipe, adapters: AdapterSet) -> AgreementScorer:
    """Return the score without labels on a recipe's texts; the teachers' answers are kept in the cache."""
    base = MINILM.load()
    forwards = heads_of(base, adapters.names)
    inputs, _ = inputs_of(recipe, base, adapters)
    targets: Targets = collect_targets(base, adapters, inputs, forwards, folder=cache_folder("targets"))
    return AgreementScorer(base, inputs, forwards, targets)
