"""Reparametrizations of the factors: changes that leave every update as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import GAUGES
from ..factors import LoraFactors

Change = Callable[[LoraFactors, torch.Generator], tuple[Tensor, Tensor]]  # the new A (r, d_in) and B (d_out, r)


@dataclass(frozen=True)
class Gauge:
    """A reparametrization of an adapter's factors: a change that leaves its updates as they are.

    The same update ``B @ A`` has many factors: its MSUs can be reordered, negated and rescaled, or mixed by any
    invertible matrix. To see whether a method depends on the update alone, compare its results on adapters and on the
    same adapters after such a change.

    Parameters
    ----------
    kind : {'permutation', 'sign', 'rescaling', 'GL(r)'}
        Which change. 'rescaling' multiplies each row of A by a number from 0.3 to 3.3 and divides the column of B by
        it; 'GL(r)' mixes all MSUs by an invertible matrix, made of an orthogonal one and such numbers.
    seed : int, default=0
        Seeds the order, the signs and the numbers; each module of each adapter has its own.

    Raises
    ------
    ValueError
        If ``kind`` is none of these.

    Examples
    --------
    >>> from lorakit import AverageMerger, SVDMerger
    >>> from lorakit.metrics import relative_error
    >>> from lorakit.testing import Gauge, make_adapters
    >>> adapters = make_adapters(ranks=4, n_adapters=2, random_state=0)
    >>> reordered = Gauge("permutation")(adapters)
    >>> relative_error(reordered[0], adapters[0]) < 1e-6
    True
    >>> for merger in (SVDMerger(), AverageMerger()):
    ...     merged = merger.fit(adapters).merged_
    ...     print(merger, relative_error(merger.fit(reordered).merged_, merged) < 1e-4)
    SVDMerger() True
    AverageMerger() False
    """

    kind: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CHANGES:
            raise ValueError(f"kind must be one of {list(CHANGES)}; got {self.kind!r}")

    def __call__(self, x: Any) -> Any:
        """Change x.

        Parameters
        ----------
        x : LoraFactors, Adapter, AdapterSet or list of Adapter
            It is not changed itself.

        Returns
        -------
        LoraFactors, Adapter or AdapterSet
            The same updates in other factors, in the same dtype; an AdapterSet for a list.
        """
        return changed(x, CHANGES[self.kind], torch.Generator().manual_seed(self.seed))


def changed(x: LoraFactors | Adapter | Iterable[Adapter], change: Change, generator: torch.Generator) -> Any:
    """Return x with ``change`` applied, in float64, to every module of every adapter."""
    if isinstance(x, LoraFactors):
        return LoraFactors(*change(x.to(torch.float64), generator)).to(x.dtype)
    if isinstance(x, Adapter):
        return Adapter(
            {module: changed(factors, change, generator) for module, factors in x.items()},
            name=x.name,
            kinds={module: info.kind for module, info in x.infos.items()},
            provenance=x.provenance,
        )
    return AdapterSet(changed(adapter, change, generator) for adapter in x)


def permuted(f: LoraFactors, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Reorder the MSUs."""
    order = torch.randperm(f.rank, generator=generator)
    return f.A[order], f.B[:, order]


def flipped(f: LoraFactors, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Negate some MSUs."""
    sign = torch.randint(0, 2, (f.rank,), generator=generator) * 2.0 - 1
    return sign[:, None] * f.A, f.B * sign


def rescaled(f: LoraFactors, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Multiply rows of A and divide columns of B."""
    scale = torch.rand(f.rank, generator=generator, dtype=torch.float64) * 3 + 0.3
    return scale[:, None] * f.A, f.B / scale


def mixed(f: LoraFactors, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Multiply by an invertible matrix from the left, and by its inverse from the right."""
    q, _ = torch.linalg.qr(torch.randn(f.rank, f.rank, generator=generator, dtype=torch.float64))
    scale = torch.rand(f.rank, generator=generator, dtype=torch.float64) * 3 + 0.3
    return (q * scale) @ f.A, f.B @ (q / scale).T


CHANGES: dict[str, Change] = dict(zip(GAUGES, (permuted, flipped, rescaled, mixed), strict=True))
