"""Random adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils import check_random_state

from ..adapters import Adapter
from ..factors import LoraFactors


def make_adapters(
    n_adapters: int | None = None,
    *,
    ranks: int | Sequence[int] = (4, 8, 8),
    d_in: int = 24,
    d_out: int = 16,
    n_modules: int = 2,
    dtype: torch.dtype = torch.float32,
    random_state: Any = None,
) -> list[Adapter]:
    """Make random adapters in memory.

    Parameters
    ----------
    n_adapters : int, default=None
        Number of adapters. None makes as many as ``ranks`` has entries.
    ranks : int or sequence of int, default=(4, 8, 8)
        Rank of each adapter, repeated as needed.
    d_in, d_out : int, default=24 and 16
        Widths of every module.
    n_modules : int, default=2
        Modules ``layer.0``, ``layer.1``, ...
    dtype : torch.dtype, default=torch.float32
        Dtype of the factors.
    random_state : int, RandomState or None, default=None
        Seeds the numbers.

    Returns
    -------
    list of Adapter
        Named ``task0``, ``task1``, ...

    Examples
    --------
    >>> from lorakit.testing import make_adapters
    >>> make_adapters(2, ranks=4, random_state=0)
    [Adapter('task0', modules=2, rank=4, dtype=float32), Adapter('task1', modules=2, rank=4, dtype=float32)]
    """
    ranks = (ranks,) if isinstance(ranks, int) else tuple(ranks)
    rng = check_random_state(random_state)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((rows, columns))).to(dtype)

    return [
        Adapter(
            {
                f"layer.{m}": LoraFactors(normal(ranks[t % len(ranks)], d_in), normal(d_out, ranks[t % len(ranks)]))
                for m in range(n_modules)
            },
            name=f"task{t}",
        )
        for t in range(len(ranks) if n_adapters is None else n_adapters)
    ]
