"""
Greedy decoding of a few tokens
===============================

``greedy(model, batch, 6, stop)`` continues prompts that are padded on the left, all at once, with a key-value cache:
after the prompts only the new tokens are computed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def greedy(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, n: int, stop: int) -> list[list[int]]:
    """Continue each prompt by its most likely tokens.

    Parameters
    ----------
    model : Module
        A causal language model of transformers.
    input_ids, attention_mask : Tensor of shape (texts, tokens)
        Prompts, padded on the left.
    n : int
        New tokens, at most.
    stop : int
        The token that ends an answer; it is not part of it.

    Returns
    -------
    list of list of int
        The new tokens of each text.
    """
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    ids, cache, made = input_ids, None, []
    for _ in range(n):
        found = model.model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = found.past_key_values
        ids = model.lm_head(found.last_hidden_state[:, -1]).argmax(dim=1, keepdim=True)
        made.append(ids)
        if (torch.cat(made, dim=1) == stop).any(dim=1).all():
            break
        attention_mask = torch.cat([attention_mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [list(_before(row, stop)) for row in torch.cat(made, dim=1).tolist()]


def _before(tokens: Iterable[int], stop: int) -> Iterable[int]:
    for token in tokens:
        if token == stop:
            return
        yield token
