"""
A merge that is trained on prompts of a language model
======================================================

Texts of each task as its prompt, without labels; of a task whose answers are generated, the prompt with each beginning
of the answer that its own adapter gives. What is matched is the distribution that the task's own adapter has over the
labels' words, or over all tokens, after each of these.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import packing
import torch
from backbones import Backbone, Tokens, by_length
from cache import cache_folder, content_key
from evaluation import update_hash, updated
from generation import greedy
from smollm2 import NEW_TOKENS, Answers, SmolLM2
from tasks import Task, load_task
from torch import Tensor, nn

from lorakit import Adapter, AdapterSet, DistillMerger, TSVMerger
from lorakit.distillation.heads import SharedHeads
from lorakit.distillation.targets import Targets
from lorakit.merging._start import LONGEST

OWN_ONLY = 1e9  # as own_weight: the other heads count for nothing


@dataclass(frozen=True)
class PromptRecipe:
    """What to train on, and how.

    Parameters
    ----------
    n : int
        Training texts of each task, without labels.
    k : int, default=16
        Rank.
    epochs, batch_size, learning_rate, seed : int, int, float, int
        As in DistillMerger.
    from_norm : float, default=1.4
        Of what training starts from, in mean norms of the adapters: 1.4, as in DistillMerger, or tsv at another.
    """

    n: int
    k: int = 16
    epochs: int = 6
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0
    from_norm: float = 1.4


TRAINED = {  # merges that are compared, by name
    "distilled": PromptRecipe(n=25, epochs=6),
    "distilled from 1": PromptRecipe(n=25, epochs=6, from_norm=1.0),
}


def trained_merge(recipe: PromptRecipe, adapters: AdapterSet, backbone: SmolLM2) -> tuple[Adapter, dict[str, Any]]:
    """Train a merge; one that was stopped goes on after its last epoch. Also what it took, as JSON can hold it."""
    base = backbone.load()
    start = time.process_time()
    heads = {name: head_of(base, backbone, load_task(name)) for name in adapters.names}
    inputs, owners = inputs_of(recipe.n, base, adapters, backbone)
    targets = own_targets(base, adapters, inputs, owners, heads)
    prepared = time.process_time()
    key = content_key(asdict(recipe), backbone.name, [(a.name, update_hash(a)) for a in adapters])
    merger = DistillMerger(
        recipe.k,
        model=base,
        inputs=inputs,
        forwards=SharedHeads(Last(), heads),
        targets=targets,
        owners=owners,
        own_weight=OWN_ONLY,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        random_state=recipe.seed,
        start=None if recipe.from_norm == LONGEST else TSVMerger(scale="match", scale_target=recipe.from_norm),
        checkpoint=cache_folder("distilled") / f"{key}.checkpoint",
    ).fit(adapters)
    about = {
        "recipe": asdict(recipe),
        "inputs": len(inputs),
        "seconds": time.process_time() - start,  # without earlier runs, if it was stopped
        "seconds_of_teachers": prepared - start,
        "loss": merger.loss_curve_,
        "agreement": merger.agreement_curve_,
    }
    return merger.merged_, about


@dataclass(frozen=True)
class Last:
    """From a model and prompts to the states of the last tokens, with gradients where they are on: (n, width)."""

    def __call__(self, model: nn.Module, tokens: Tokens) -> Tensor:
        """Run the prompts, in common rows."""
        return torch.cat([row.states(model) for row in packing.rows(tokens)])


def head_of(base: nn.Module, backbone: SmolLM2, task: Task) -> Tensor:
    """Rows of the language model's own head: of the labels' words, or all."""
    head, weight = backbone.head(base, task), base.lm_head.weight.detach()
    return weight if isinstance(head, Answers) else weight[head]


def inputs_of(n: int, base: nn.Module, adapters: AdapterSet, backbone: SmolLM2) -> tuple[Tokens, list[str]]:
    """Prompts of n training texts of each task, continued where answers are generated; and whose each is."""
    inputs: Tokens = []
    owners: list[str] = []
    for adapter in adapters:
        task = load_task(adapter.name)
        prompts = backbone.encode(task, [text for text, _ in task.splits["train"][:n]])
        if isinstance(head := backbone.head(base, task), Answers):
            with updated(base, adapter) as model:
                prompts = list(continued(model, prompts, backbone, head.stop))
        inputs += prompts
        owners += [adapter.name] * len(prompts)
    return inputs, owners


def continued(model: nn.Module, prompts: Tokens, backbone: Backbone, stop: int) -> Iterator[list[int]]:
    """Yield each prompt with nothing, one token, two tokens and so on of the answer that the model gives."""
    for rows in by_length(prompts, 50):
        batch = [prompts[i] for i in rows]
        answers = greedy(model, **backbone.collate(batch), n=NEW_TOKENS, stop=stop)
        for prompt, answer in zip(batch, answers, strict=True):
            yield from (prompt + answer[:end] for end in range(min(len(answer) + 1, NEW_TOKENS)))


@torch.no_grad()
def own_targets(
    base: nn.Module,
    adapters: AdapterSet,
    inputs: Tokens,
    owners: list[str],
    heads: dict[str, Tensor],
) -> Targets:
    """What each adapter's head says of the inputs that are its own; zeros for the others, which do not count."""
    found = {}
    for adapter in adapters:
        scores = np.zeros((len(inputs), len(heads[adapter.name])), dtype=np.float32)
        own = np.array([i for i, owner in enumerate(owners) if owner == adapter.name])
        with updated(base, adapter) as model:
            for part in by_length([inputs[i] for i in own], 50):
                states = Last()(model, [inputs[i] for i in own[part]])
                scores[own[part]] = (states @ heads[adapter.name].T).numpy()
        found[adapter.name] = scores
    return Targets(found)
