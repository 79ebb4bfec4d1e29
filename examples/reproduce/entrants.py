"""
Who competes in the leaderboard
===============================

Every merger that lorakit has, found by :mod:`lorakit.discovery`, in every space, and PEFT's combination types.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from backbones import MINILM, Backbone, Batch, by_length
from peft_merges import peft_merge
from sklearn.base import clone
from tasks import load_task

from lorakit import Adapter, AdapterSet, SVDPruner, collect_grams, rank_path
from lorakit.activations import Grams
from lorakit.base import BaseMerger
from lorakit.discovery import all_estimators, all_methods
from lorakit.metrics import cosine_similarity

RANKS = (8, 16, 32)
WHOLE = 0  # stands for no cut: the highest rank that the method gives
SAME = 1 - 1e-5  # cosine from which two merges are one
VARIANTS: dict[str, dict[str, tuple[Any, ...]]] = {  # methods that are several; the first value is the default
    "ctm": {"rule": ("ties", "mean", "iso")},
    "dare": {"sign_election": (False, True)},
    "iso": {"variant": ("c", "cts")},
    "lego": {"align": (None, "svd")},
}
PEFT_DENSITY = {"ties": 0.2, "dare_linear": 0.5, "dare_ties": 0.5, "magnitude_prune": 0.5}  # lorakit's defaults
PEFT_TYPES = ("cat", "linear", "svd", *PEFT_DENSITY, *(f"{rule}_svd" for rule in PEFT_DENSITY))


@dataclass(frozen=True)
class Entrant:
    """A method with its space and settings.

    Parameters
    ----------
    name : str
        What the tables call it.
    merger : BaseMerger or None
        What merges, or None for one of PEFT's.
    peft : str or None
        PEFT's combination type.
    n_texts : int
        Training texts of each task that it is given, without their labels; 0 for what needs none.
    cuts : tuple of int
        Ranks to enter at, as far as the method has them.
    backbone : Backbone
        The base model, which PEFT needs.
    """

    name: str
    merger: BaseMerger | None = None
    peft: str | None = None
    n_texts: int = 0
    cuts: tuple[int, ...] = (*RANKS, WHOLE)
    backbone: Backbone = MINILM

    def ranks(self, adapters: AdapterSet) -> tuple[int, ...]:
        """The ranks that it enters at: one where it works on A and B, and leaves their rank."""
        own = max(max(adapter.ranks) for adapter in adapters)
        cuts = tuple(k for k in RANKS if k in self.cuts and k < sum(max(adapter.ranks) for adapter in adapters))
        if self.peft == "cat":
            return (WHOLE,)
        if self.peft:
            return cuts if self.peft.endswith("svd") else (own,)
        assert self.merger is not None
        whole = (WHOLE,) if WHOLE in self.cuts else ()
        return (own,) if self.merger.needs_equal_ranks else (*cuts, *whole)

    def merge(self, adapters: AdapterSet, ks: Sequence[int], seed: int = 0) -> dict[int, Adapter]:
        """Merge at several ranks; WHOLE is one."""
        if self.merger is None:
            return self._merge_by_peft(adapters, ks, seed)
        merger = clone(self.merger)
        if "random_state" in merger.get_params():
            merger.set_params(random_state=seed)
        if self.n_texts:
            merger.set_params(grams=grams_of(adapters, self.n_texts))
        infos = [[info for info in adapters.infos(module) if info] for module in adapters.module_names]
        whole = max(merger._rank_limit(found) for found in infos)
        path = rank_path(merger, adapters, [k or whole for k in ks])
        return {k: path[k or whole].merged_ for k in ks}

    def _merge_by_peft(self, adapters: AdapterSet, ks: Sequence[int], seed: int) -> dict[int, Adapter]:
        assert self.peft is not None
        options: dict[str, Any] = {}
        if density := PEFT_DENSITY.get(self.peft.removesuffix("_svd")):
            options["density"] = density
        if self.peft.endswith("svd"):
            options |= {"svd_rank": max(ks), "svd_full_matrices": False}
        torch.manual_seed(seed)  # PEFT's DARE draws from the one generator there is
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that PEFT uses
            merged = peft_merge(adapters, self.peft, backbone=self.backbone, **options)
        # an SVD cut to 32 and then to 8 is that cut to 8
        return {k: SVDPruner(k=k).fit_transform([merged])[0] if 0 < k < max(merged.ranks) else merged for k in ks}


def data_free() -> list[Entrant]:
    """Every merger that needs no data, in every space and variant; then PEFT's."""
    found = []
    classes = all_estimators("merger")
    for info in all_methods("merger"):
        if info.needs_data:
            continue
        settings: dict[str, Sequence[Any]] = {"space": info.spaces} if info.spaces else {}
        settings |= VARIANTS.get(info.method, {})
        for values in product(*settings.values()):
            chosen = dict(zip(settings, values, strict=True))
            found.append(Entrant(_name(info.method, chosen), classes[info.method](**chosen)))
    # of methods that are one, the mean's own name is the one that is kept
    found.sort(key=lambda entrant: (entrant.name != "svd", entrant.name))
    return found + [Entrant(f"PEFT {kind}", peft=kind) for kind in PEFT_TYPES]


def _name(method: str, chosen: dict[str, Any]) -> str:
    """Method, space and those settings that are not the default."""
    words = [method]
    for setting, value in chosen.items():
        if setting == "space":
            words.append(value)
        elif value != VARIANTS[method][setting][0]:
            words.append(setting.replace("_", " ") if value is True else str(value))
    return " ".join(words)


def shared(entrants: Iterable[Entrant], adapters: AdapterSet) -> tuple[list[Entrant], dict[str, list[str]]]:
    """Find entrants that are one but for a factor, by their merges of two modules; the first of them stays.

    Returns
    -------
    list of Entrant
        Those that differ.
    dict of str to list of str
        Of those that stand for others, the others.
    """
    modules = adapters.module_names[:1] + adapters.module_names[-1:]
    small = AdapterSet(Adapter({m: a[m] for m in modules}, name=a.name) for a in adapters)
    kept: list[tuple[Entrant, Adapter | None]] = []
    others: dict[str, list[str]] = {}
    for entrant in entrants:
        ks = entrant.ranks(small)
        merged = None if entrant.peft else entrant.merge(small, ks[:1])[ks[0]]
        for other, theirs in kept:
            alike = merged is not None and theirs is not None and other.ranks(small) == ks
            if alike and cosine_similarity(merged, theirs) > SAME:
                others.setdefault(other.name, []).append(entrant.name)
                break
        else:
            kept.append((entrant, merged))
    return [entrant for entrant, _ in kept], others


def batches_of(adapters: AdapterSet, n: int) -> dict[str, list[Batch]]:
    """Batches of n training texts of each adapter's task, without their labels."""
    found = {}
    for adapter in adapters:
        task = load_task(adapter.name)
        tokens = MINILM.encode(task, [text for text, _ in task.splits["train"][:n]])
        found[adapter.name] = [MINILM.collate([tokens[i] for i in part]) for part in by_length(tokens, 50)]
    return found


def grams_of(adapters: AdapterSet, n: int) -> dict[str, Grams]:
    """Second moments of the inputs that the adapted models get from n training texts a task."""
    base = MINILM.load()
    return {
        adapter.name: collect_grams(base, adapter, batches, dtype=torch.float32)
        for adapter, batches in zip(adapters, batches_of(adapters, n).values(), strict=True)
    }
