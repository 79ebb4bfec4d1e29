"""Random numbers of the rules that drop entries at random: one stream for each adapter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..factors import LoraFactors


def uniform_like(x: Tensor, rng: np.random.RandomState) -> Tensor:
    """Draw one number in [0, 1) for each entry, row by row: blocks of rows draw what the whole tensor would."""
    return torch.from_numpy(rng.random_sample(tuple(x.shape))).to(x.device)


def streams(
    updates: Sequence[LoraFactors], weights: np.ndarray, rng: np.random.RandomState
) -> list[np.random.RandomState]:
    """Give each adapter a random stream of its own, which neither the adapters' order nor their factors change.

    The streams are dealt out in the order of ``g^T W h`` for random g and h, which tells any two updates apart. Copies
    of one update, equal but for round-off, are told apart by their weights.
    """
    h, g = (
        torch.from_numpy(rng.standard_normal(d)).to(updates[0].A.device) for d in (updates[0].d_in, updates[0].d_out)
    )
    key = np.array([((g @ update.B.double()) @ (update.A.double() @ h)).item() for update in updates])
    rising = np.argsort(key, kind="stable")
    copies = np.empty(len(updates), dtype=int)
    copies[rising] = np.cumsum(np.diff(key[rising], prepend=key[rising[0]]) > 1e-6 * np.abs(key).max())
    place = np.argsort(np.lexsort((key, weights, copies)))
    seeds = rng.randint(2**32, size=len(updates), dtype=np.uint64)
    return [np.random.RandomState(seed) for seed in seeds[place]]
