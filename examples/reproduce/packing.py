"""
Many prompts in one row
=======================

Prompts of different lengths that are padded to one batch are a third padding, and the words that all begin with are
computed for each. Here prompts lie behind one another in one row, after their common beginning: each token attends to
that and to what comes before it in its own prompt. The states are those of the prompts alone, but for rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from backbones import Tokens
from torch import Tensor, nn

TOKENS = 200  # of a row: enough to keep a processor busy, few enough for attention to cost little


@dataclass(frozen=True)
class Row:
    """Prompts in one row.

    Parameters
    ----------
    ids, positions : Tensor of shape (1, tokens)
        The common beginning once, and the rest of each prompt; each token's place in its prompt.
    mask : Tensor of shape (1, 1, tokens, tokens)
        Whether a token (third axis) attends to another.
    last : Tensor of shape (prompts,)
        Where each prompt ends.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    last: Tensor

    def states(self, model: nn.Module) -> Tensor:
        """States of the prompts' last tokens, (prompts, width)."""
        return self.all_states(model)[self.last]

    def all_states(self, model: nn.Module) -> Tensor:
        """States of all tokens, (tokens, width)."""
        found = model.model(input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, use_cache=False)
        return found.last_hidden_state[0]


def rows(tokens: Tokens, size: int | None = None) -> Iterator[Row]:
    """Put prompts into rows of at most ``size`` tokens (TOKENS; a longer prompt is a row), in their order."""
    size = size or TOKENS
    n = common(tokens)
    found: Tokens = []
    for prompt in tokens:
        if found and n + sum(len(rest) for rest in found) + len(prompt) - n > size:
            yield _row(tokens[0][:n], found)
            found = []
        found.append(prompt[n:])
    if found:
        yield _row(tokens[0][:n], found)


def common(tokens: Tokens) -> int:
    """How many tokens all begin with; of each at least the last is left."""
    shortest = min(map(len, tokens))
    same = (i for i in range(shortest - 1) if len({prompt[i] for prompt in tokens}) > 1)
    return next(same, shortest - 1)


def _row(beginning: list[int], rests: Tokens) -> Row:
    n = len(beginning)
    owner = torch.tensor([-1] * n + [i for i, rest in enumerate(rests) for _ in rest])
    positions = torch.tensor([*range(n), *(n + i for rest in rests for i in range(len(rest)))])
    seen = (owner[:, None] == owner[None, :]) | (owner[None, :] == -1)
    order = torch.arange(len(owner))
    mask = seen & (order[None, :] <= order[:, None])
    last = n - 1 + torch.tensor([len(rest) for rest in rests]).cumsum(dim=0)
    ids = torch.tensor([*beginning, *(token for rest in rests for token in rest)])
    return Row(ids[None], positions[None], mask[None, None], last)
