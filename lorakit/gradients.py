"""Second moments of gradients with respect to an adapter's factors: what Fisher-weighted merging knows of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._frozen import FrozenMapping
from .adapters import Adapter
from .applying import applied
from .factors import LoraFactors, all_finite

__all__ = ["Fisher", "collect_fisher"]


class Fisher(FrozenMapping[LoraFactors]):
    """Mean squared gradients of one adapter's factors, by module name: immutable, and it pickles.

    They are the diagonal of the empirical Fisher information matrix: for each entry of A and of B a number that says
    how much the loss depends on it.

    Parameters
    ----------
    modules : mapping of str to LoraFactors or to a pair of arrays
        For each module the moments of A, (r, d_in), and those of B, (d_out, r), none of them negative.

    Raises
    ------
    ValueError
        If a moment is negative, infinite or not a number, or the shapes do not belong together.

    Examples
    --------
    >>> import numpy as np
    >>> from lorakit.gradients import Fisher
    >>> Fisher({"query": (np.ones((2, 3)), np.ones((4, 2)))})
    Fisher(modules=1, rank=2)
    """

    def __init__(self, modules: Mapping[str, LoraFactors | tuple[Any, Any]]) -> None:
        checked = {}
        for name, pair in modules.items():
            moments = pair if isinstance(pair, LoraFactors) else LoraFactors(*pair)
            if not all(all_finite(x) and bool((x >= 0).all()) for x in moments):
                raise ValueError(
                    f"module {name!r}: second moments are squares of gradients; expected finite numbers, none of them "
                    "negative"
                )
            checked[name] = moments
        super().__init__(checked)

    def norm(self) -> float:
        """Euclidean norm of all moments as one vector."""
        return float(sum(x.double().square().sum().item() for pair in self.values() for x in pair) ** 0.5)

    def __repr__(self) -> str:
        # short, as it becomes part of a merged adapter's provenance
        ranks = "/".join(map(str, sorted({moments.rank for moments in self.values()}))) or "0"
        return f"Fisher(modules={len(self)}, rank={ranks})"


def collect_fisher(
    model: nn.Module,
    adapter: Adapter,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    prefix: str = "",
) -> Fisher:
    r"""Run a model with an adapter on some data and gather the mean squared gradients of its factors.

    For each entry :math:`\theta` of A and of B this is the mean over examples of
    :math:`(\partial \ell_n / \partial \theta)^2`. Each example takes a backward pass of its own, as the square of a
    batch's mean gradient is another number. A few hundred examples are enough. Put the model into evaluation mode
    first.

    Parameters
    ----------
    model : torch.nn.Module
        The base model, or one that contains it. Neither its weights nor their ``grad`` are changed.
    adapter : Adapter
        The adapter whose data these are. It is applied meanwhile.
    batches : iterable
        What ``loss`` is called with, one at a time.
    loss : callable
        ``loss(model, batch)`` runs the model and returns a tensor with its graph. Shape (n,) is one loss for each of n
        examples, usually the negative log-likelihood of the label; shape () is one example. Of shape (n, m), the
        squares are summed over m. For the exact Fisher information of a classifier, which needs no labels, return
        ``log_p * log_p.exp().detach().sqrt()`` for log-probabilities of shape (n, n_labels): each label's squared
        gradient then counts with its probability.
    prefix : str, default=''
        Put before the adapter's module names, as in :func:`lorakit.applied`.

    Returns
    -------
    Fisher
        By module name, for ``FisherMerger(fisher={adapter.name: ...})``. Moments are those of the factors as the
        adapter has them, with the scaling folded in.

    Raises
    ------
    IncompatibleAdaptersError
        If the model lacks a module of the adapter, or has it in another shape.
    UnsupportedAdapterError
        If a module is of a kind that cannot be adapted this way.
    ValueError
        If ``loss`` returns another shape, no gradient reached any of the factors, or a gradient was not finite.

    See Also
    --------
    FisherMerger : What they are for.
    collect_grams : Second moments of inputs, for which no labels and no gradients are needed.

    Examples
    --------
    >>> import torch
    >>> from lorakit import Adapter, LoraFactors, collect_fisher
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    >>> adapter = Adapter({"0": LoraFactors(torch.ones(1, 3), torch.ones(2, 1))})
    >>> def loss(model, x):
    ...     return model(x)[:, 0]
    >>> fisher = collect_fisher(model, adapter, [torch.eye(3), torch.ones(1, 3)], loss)
    >>> fisher["0"].A, fisher["0"].B
    (tensor([[0.5000, 0.5000, 0.5000]]), tensor([[3.],
            [0.]]))
    """
    own = Adapter({module: LoraFactors(f.A.clone(), f.B.clone()) for module, f in adapter.items()}, name=adapter.name)
    factors = [x.requires_grad_() for pair in own.values() for x in pair]
    totals = [torch.zeros_like(x, dtype=torch.float64) for x in factors]
    count, reached = 0, False
    with applied(model, own, prefix=prefix), torch.enable_grad():
        for batch in batches:
            losses = loss(model, batch)
            count += _count(losses)
            for gradients in _gradients(losses, factors):
                for total, gradient in zip(totals, gradients, strict=True):
                    if gradient is not None:
                        reached = True
                        total += gradient.double().square()
    if not reached:
        raise ValueError(
            f"{adapter.name}: no gradient reached any of its {len(own)} modules; batches was empty or spent, or loss "
            "does not run this model, or detaches what it returns"
        )
    means = [(total / count).to(x.dtype) for total, x in zip(totals, factors, strict=True)]
    return Fisher(dict(zip(own, zip(means[::2], means[1::2], strict=True), strict=True)))


def _count(losses: Tensor) -> int:
    """Return how many examples the losses are of."""
    if not isinstance(losses, Tensor) or losses.ndim > 2:
        seen = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss must return a tensor of shape (), (n,) or (n, m), one row an example; got {seen}")
    return len(losses) if losses.ndim else 1


def _gradients(losses: Tensor, factors: list[Tensor]) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the gradients of each loss with respect to all factors."""
    if not losses.requires_grad:
        return
    flat = losses.reshape(-1)
    for i, one in enumerate(flat):
        yield torch.autograd.grad(one, factors, retain_graph=i + 1 < len(flat), allow_unused=True)
