"""
Answers of a causal language model, for MultiTaskScorer
=======================================================

What :class:`lorakit.MultiTaskScorer` calls ``forward``, for adapters of a language model: :class:`Generated` has the
model write a short answer after a prompt, and :class:`ByLength` passes texts of about one length together. For tasks
whose answers are a choice of words, take :class:`lorakit.distillation.text_heads.PromptHead`. The user guide's page on
language models has them at work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLACE = "{text}"


@dataclass(frozen=True)
class Generated:
    """What a model writes after a prompt, greedily and with a key-value cache: one answer for each text.

    Parameters
    ----------
    tokenizer : transformers tokenizer
        Of the model, with a padding token.
    prompt : str
        With ``{text}`` in it, for which each text is put.
    max_new_tokens : int, default=8
        Of an answer, at most.
    end : str, default='\\n'
        An answer goes up to this text, without spaces around it.
    """

    tokenizer: Any
    prompt: str
    max_new_tokens: int = 8
    end: str = "\n"

    @torch.no_grad()
    def __call__(self, model: nn.Module, texts: Sequence[str]) -> list[str]:
        """Return the answers, in the order of the texts."""
        prompts = [self.prompt.replace(PLACE, text) for text in texts]
        # padded on the left: what is written follows the last token of the prompt
        batch = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
        made = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = made[:, batch["input_ids"].shape[1] :]
        return [
            text.partition(self.end)[0].strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)
        ]


@dataclass(frozen=True)
class ByLength:
    """A forward that gets texts of about one length together, so that little work goes into padding.

    Parameters
    ----------
    forward : callable
        ``forward(model, texts)`` returns class scores of shape (n, n_classes), or a list of n answers.
    size : int, default=32
        Texts that it gets at a time.
    """

    forward: Callable[[nn.Module, Sequence[str]], Tensor | list[Any]]
    size: int = 32

    def __call__(self, model: nn.Module, texts: Sequence[str]) -> Tensor | list[Any]:
        """Return what the forward returns, in the order of the texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        made = [self.forward(model, [texts[i] for i in part]) for part in parts]
        place = [order.index(i) for i in range(len(order))]
        if isinstance(made[0], Tensor):
            return torch.cat([part for part in made if isinstance(part, Tensor)])[place]
        answers = [answer for part in made for answer in part]
        return [answers[i] for i in place]
