"""Signs: the election of one sign per entry and what follows it (TIES, arXiv 2306.01708); signs of vectors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Vote = Literal["total", "frequency"]


def tally_votes(stack: Tensor, weights: Tensor, *, vote: Vote = "total") -> Tensor:
    """Sign that the updates elect at each entry, and 0 where they elect none.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates, usually trimmed; a zero has no vote.
    weights : Tensor of shape (T,)
        Weight of each update's vote.
    vote : {'total', 'frequency'}, default='total'
        'total' takes the sign of the weighted sum, so that large entries count more. 'frequency' compares the weight of
        the positive entries with that of the negative ones, whatever their size; both names are PEFT's.

    Returns
    -------
    Tensor of shape (...)
        +1, -1 or 0.
    """
    # Equal weights become 1, so that entries that cancel do so exactly, even where multiplication and sum are fused.
    weights = weights / weights.max()
    if vote == "total":
        total: Tensor = torch.tensordot(weights, stack, dims=1)
        return total.sign_()
    balance: Tensor = torch.tensordot(weights, torch.sign(stack), dims=1)
    # Balanced votes are common, and round-off may keep sums of weights such as 1/3 from being exactly zero.
    round_off = len(weights) * torch.finfo(balance.dtype).eps * float(weights.sum())
    return torch.nn.functional.hardshrink(balance, round_off).sign_()


def elect_sign(stack: Tensor, weights: Tensor, *, vote: Vote = "total", undecided: float = 1.0) -> Tensor:
    """Elect one sign per entry.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates, usually trimmed.
    weights : Tensor of shape (T,)
        Weight of each update's vote.
    vote : {'total', 'frequency'}, default='total'
        As in :func:`tally_votes`.
    undecided : {1.0, -1.0, 0.0}, default=1.0
        Sign of the entries whose vote is exactly zero: plus in PEFT and mergekit; in the TIES authors' code the sign
        that most entries elected.

    Returns
    -------
    Tensor of shape (...)
        +1 or -1; 0 only for ``undecided=0``.
    """
    return tally_votes(stack, weights, vote=vote).add_(undecided / 2).sign_()  # takes less time than a mask


def disjoint_mean(stack: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, per entry, over the updates whose entry has the elected sign.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates, usually trimmed; a zero agrees with no sign.
    sign : Tensor of shape (...)
        Elected signs.
    weights : Tensor of shape (T,)
        Non-negative weights. Listing an update twice is the same as doubling its weight.

    Returns
    -------
    Tensor of shape (...)
        Zero where no update agrees.
    """
    agreeing = _agreeing(stack, sign)
    mean: Tensor = torch.tensordot(weights, agreeing, dims=1)
    total = torch.tensordot(weights, torch.gt(agreeing, 0, out=agreeing), dims=1)  # in half the time of sign_
    return mean.mul_(sign).div_(total.clamp_min_(torch.finfo(total.dtype).tiny))  # zero where no update agrees


def disjoint_sum(stack: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum, per entry, over the updates whose entry has the elected sign.

    Parameters and shapes are those of :func:`disjoint_mean`.
    """
    total: Tensor = torch.tensordot(weights, _agreeing(stack, sign), dims=1)
    return total.mul_(sign)


def disjoint_max(stack: Tensor, sign: Tensor, weights: Tensor) -> Tensor:
    """Entry of largest magnitude among those that have the elected sign.

    Parameters and shapes are those of :func:`disjoint_mean`. The weights count in the election
    only, and are ignored here.
    """
    return _agreeing(stack, sign).amax(dim=0).mul_(sign)


def elected_mean(stack: Tensor, weights: Tensor, *, vote: Vote = "total") -> Tensor:
    """Elect a sign per entry, plus where the vote is zero, and average the entries that have it.

    Parameters
    ----------
    stack : Tensor of shape (T, ...)
        Updates, usually made sparse.
    weights : Tensor of shape (T,)
        Non-negative weights.
    vote : {'total', 'frequency'}, default='total'
        As in :func:`tally_votes`.

    Returns
    -------
    Tensor of shape (...)
    """
    return disjoint_mean(stack, elect_sign(stack, weights, vote=vote), weights)


def fix_signs(rows: Tensor) -> Tensor:
    """Sign (+1 or -1) per row that makes its entry of largest magnitude positive; shape (n,)."""
    if rows.shape[0] == 0:
        return rows.new_ones(0)
    # two passes: along a dimension torch.aminmax takes many times as long
    return torch.where(-rows.amin(dim=1) > rows.amax(dim=1), -1.0, 1.0).to(rows.dtype)


def _agreeing(stack: Tensor, sign: Tensor) -> Tensor:
    """Magnitudes of the entries that have the elected sign, zero for the others: a new tensor."""
    # Times the elected sign, entries that agree are positive. Few passes, because stacks take the most time and memory.
    return (stack * sign).clamp_min_(0)
