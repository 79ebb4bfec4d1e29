"""Signs: election and the mean of the entries that agree with it (TIES, arXiv 2306.01708); signs of vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ZeroSign = Literal["positive", "majority"]


def elect_sign(stack: Tensor, weights: Tensor, *, zero: ZeroSign = "positive") -> Tensor:
    """Elect one sign per entry: that of the weighted sum over the updates.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates, usually trimmed.
    weights : Tensor of shape (T,)
        Weight of each update's vote.
    zero : {'positive', 'majority'}, default='positive'
        What a sum of exactly zero elects: plus (PEFT, mergekit), or the sign that most entries have (the authors'
        code).

    Returns
    -------
    Tensor of shape (...)
        +1 or -1 (0 under 'majority' when the signs themselves are balanced).
    """
    sign: Tensor = torch.tensordot(weights, stack, dims=1).sign_()
    if zero == "positive":
        return sign.add_(0.5).sign_()  # takes less time than a mask
    return torch.where(sign == 0, torch.sign(sign.sum()), sign)


def disjoint_mean(stack: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, per entry, over the updates whose entry has the elected sign.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates, usually trimmed; a zero agrees with no sign.
    sign : Tensor of shape (...)
        Elected signs.
    weights : Tensor of shape (T,)
        Weights, not negative. Listing an update twice is the same as doubling its weight.

    Returns
    -------
    Tensor of shape (...)
        Zero where no update agrees.
    """
    # Turned by the elected sign, entries that agree are positive. Few passes: stacks are what takes time and memory.
    agreeing = (stack * sign).clamp_min_(0)
    mean: Tensor = torch.tensordot(weights, agreeing, dims=1)
    total = torch.tensordot(weights, torch.gt(agreeing, 0, out=agreeing), dims=1)  # in half the time of sign_
    return mean.mul_(sign).div_(total.clamp_min_(torch.finfo(total.dtype).tiny))  # zero where no update agrees


def fix_signs(rows: Tensor) -> Tensor:
    """Sign (+1 or -1) per row that makes its entry of largest magnitude positive; shape (n,)."""
    if rows.shape[0] == 0:
        return rows.new_ones(0)
    # two passes: along a dimension torch.aminmax takes many times as long
    return torch.where(-rows.amin(dim=1) > rows.amax(dim=1), -1.0, 1.0).to(rows.dtype)
