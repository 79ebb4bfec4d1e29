"""Heads of transformers without trained weights: the similarity to labels' texts, the logits of label words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .heads import SharedHeads

Pooling = Literal["mean", "first"]
PLACE = "{text}"


def label_heads(
    model: nn.Module,
    tokenizer: Any,
    labels: Mapping[str, Sequence[str]],
    *,
    pooling: Pooling = "mean",
    scale: float = 20.0,
    max_tokens: int = 64,
) -> SharedHeads:
    """Make a head of each adapter's label texts, for encoders: ``scale`` times the cosine of a text and a label.

    Parameters
    ----------
    model : torch.nn.Module
        The base model, of the transformers library. It embeds the labels once, without any adapter.
    tokenizer : transformers tokenizer
        Of the model.
    labels : mapping of str to sequence of str
        By the adapter's name, a text for each class.
    pooling : {'mean', 'first'}, default='mean'
        What of the last hidden states is the embedding: their mean over a text's tokens, or the first token's.
    scale : float, default=20.0
        The factor that the adapters were trained with.
    max_tokens : int, default=64
        Longer texts are cut.

    Returns
    -------
    SharedHeads
        For ``forwards`` of :class:`~lorakit.DistillMerger` and others; the inputs are texts.

    Raises
    ------
    ValueError
        If an adapter has fewer than two labels.
    """
    encode = Encoder(tokenizer, pooling, max_tokens)
    heads = {}
    for name, texts in labels.items():
        _check_labels(name, texts)
        with torch.no_grad():
            heads[name] = scale * encode(model, list(texts))
    return SharedHeads(encode, heads)


@dataclass(frozen=True)
class Encoder:
    """From a model and texts to embeddings of unit length, (n, width); the parameters are those of label_heads."""

    tokenizer: Any
    pooling: Pooling = "mean"
    max_tokens: int = 64

    def __call__(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Embed texts, in one batch."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(_device_of(model))
        hidden = model(**batch).last_hidden_state  # (n, tokens, width)
        if self.pooling == "first":
            return F.normalize(hidden[:, 0], dim=-1)
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


@dataclass(frozen=True)
class PromptHead:
    """The head of an adapter of a causal language model: the logits of some words after a prompt.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        Of the model.
    prompt : str
        With ``{text}`` in it, for which each input is put.
    words : sequence of str
        One for each class, as it follows the prompt, so often with a space in front. Their first tokens count.
    max_tokens : int, default=128
        Of the whole prompt; what is too long of the input is cut.

    Raises
    ------
    ValueError
        If the prompt has no place for a text, there are fewer than two words, or two begin with the same token.
    """

    tokenizer: Any
    prompt: str
    words: Sequence[str]
    max_tokens: int = 128

    def __post_init__(self) -> None:
        if self.prompt.count(PLACE) != 1:
            raise ValueError(f"the prompt {self.prompt!r} must have {PLACE} in it once, where the input goes")
        _check_labels(self.prompt, self.words)
        if len(set(self._classes())) < len(self.words):
            raise ValueError(f"two of the words {list(self.words)} begin with one token, which cannot tell them apart")

    def __call__(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Return class scores, (n, n_classes)."""
        before, after = (self._tokens(part) for part in self.prompt.split(PLACE))
        room = self.max_tokens - len(before) - len(after)
        rows = [before + self._tokens(text)[: max(room, 0)] + after for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        # padded on the right, which a causal model does not see from the left
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        device = _device_of(model)
        mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long().to(device)
        inner: Any = model
        hidden = inner.base_model(input_ids=ids.to(device), attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows), device=device), (lengths - 1).to(device)]  # (n, width)
        logits: Tensor = inner.get_output_embeddings()(last)
        return logits[:, self._classes()].float()

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _classes(self) -> list[int]:
        return [self._tokens(word)[0] for word in self.words]


def _check_labels(name: str, labels: Sequence[str]) -> None:
    if isinstance(labels, str) or len(labels) < 2:
        raise ValueError(f"{name!r} must have two or more labels, each a text; got {labels!r}")


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
