"""Which inputs are trained on, which are held out, and how much each head weighs on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._inputs import Rows, count, lengths_of
from .loss import own_weights


class Inputs(NamedTuple):
    """What is trained on.

    Parameters
    ----------
    values : object
        All inputs.
    lengths : ndarray of shape (n,) or None
        Their lengths, if they have any.
    trained, held_out : ndarray
        Positions of those that are trained on, and of those that agreement is measured on.
    weights : Tensor of shape (n, n_heads)
        Of each head for each input.
    """

    values: Any
    lengths: Rows | None
    trained: Rows
    held_out: Rows
    weights: Tensor


def split_inputs(
    inputs: Any,
    owners: Sequence[str | None] | None,
    names: Sequence[str],
    weights: np.ndarray,
    *,
    own_weight: float,
    holdout: float,
    seed: int,
) -> Inputs:
    """Hold some of the inputs out, and weigh the heads for each.

    Parameters
    ----------
    inputs : object
        All inputs.
    owners : sequence of str or None
        As for :class:`lorakit.DistillMerger`; names that are not among ``names`` own nothing.
    names : sequence of str
        The heads.
    weights : ndarray of shape (n_heads,)
        Their weights, above 0.
    own_weight, holdout, seed : float, float, int
        As for :class:`lorakit.DistillMerger`.

    Raises
    ------
    ValueError
        If there are more or fewer owners than inputs, or too few inputs to hold any out.
    """
    n = count(inputs)
    owned = [None] * n if owners is None else list(owners)
    if len(owned) != n:
        raise ValueError(f"owners must name an adapter, or None, for each of {n} inputs; got {len(owned)}")
    places: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    of_heads = own_weights(torch.tensor([places.get(owner, -1) for owner in owned]), len(names), own_weight)
    of_heads = of_heads * torch.from_numpy(weights / weights.mean())
    order = np.random.RandomState(seed).permutation(n)
    n_held_out = round(holdout * n)
    if n_held_out == n or (holdout and not n_held_out):
        raise ValueError(
            f"holdout={holdout} of {n} inputs leaves none to train on, or to measure on; pass more inputs, or "
            "holdout=0 to measure on those of the training"
        )
    trained = np.sort(order[n_held_out:])
    held_out = np.sort(order[:n_held_out]) if n_held_out else trained
    return Inputs(inputs, lengths_of(inputs), trained, held_out, of_heads)
