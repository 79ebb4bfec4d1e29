"""Linear mode connectivity: a loss along the straight line between two adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._execution import read_module, to_output
from .._validation import check_adapters, check_equal_ranks
from ..adapters import Adapter, made_from
from ..factors import LoraFactors
from ..linalg import weighted_concat

Interpolated = Literal["updates", "factors"]


@dataclass(frozen=True, eq=False)
class ModeConnectivity:
    """A loss along the line between two adapters.

    Parameters
    ----------
    alphas : ndarray of shape (n,)
        Share of the first adapter, ascending from 0 to 1.
    losses : ndarray of shape (n,)
        The loss at each.
    names : tuple of two str
        The two adapters.
    space : {'updates', 'factors'}
        What was interpolated.
    """

    alphas: NDArray[np.float64]
    losses: NDArray[np.float64]
    names: tuple[str, str]
    space: Interpolated

    @property
    def chord(self) -> NDArray[np.float64]:
        """Loss interpolated between the two ends, of shape (n,)."""
        return self.alphas * self.losses[-1] + (1 - self.alphas) * self.losses[0]

    @property
    def barrier(self) -> float:
        """Largest height of the loss above the chord; 0 if the loss is nowhere above it.

        If it is 0, the two adapters are linearly connected, as far as the measured alphas can tell.
        """
        return float(np.max((self.losses - self.chord)[1:-1], initial=0.0))

    @property
    def depth(self) -> float:
        """Largest depth of the loss below the chord; 0 if the loss is nowhere below it."""
        return float(np.max((self.chord - self.losses)[1:-1], initial=0.0))


def mode_connectivity(
    x: Adapter,
    y: Adapter,
    loss: Callable[[Adapter], float],
    *,
    alphas: int | Sequence[float] = 11,
    space: Interpolated = "updates",
) -> ModeConnectivity:
    r"""Measure a loss on the straight line from one adapter to another.

    The barrier is the largest :math:`L(\alpha x + (1 - \alpha) y) - [\alpha L(x) + (1 - \alpha) L(y)]` over the
    alphas. In the space of the updates, the points of the line are multiplied merges. In the space of the factors they
    are direct merges, whose cross terms may raise a barrier where there is none between the updates.

    Parameters
    ----------
    x, y : Adapter
        The ends: ``alpha = 1`` is ``x``. For the space of the factors they must share one rank at each module.
    loss : callable
        From an adapter to a number, lower being better: for instance the mean loss of the base model with it
        (:func:`lorakit.applied`) on the data of both. Called once for each alpha.
    alphas : int or sequence of float, default=11
        Number of points, evenly spaced from 0 to 1; or the points themselves, to which 0 and 1 are added.
    space : {'updates', 'factors'}, default='updates'
        What is interpolated: the products ``B @ A``, or A and B each on its own.

    Returns
    -------
    ModeConnectivity

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters do not fit together, or for 'factors' differ in rank.
    ValueError
        If ``alphas`` or ``space`` is wrong, or a loss is not a finite number.

    See Also
    --------
    interpolate : One adapter on the line.

    Examples
    --------
    >>> from lorakit.metrics import mode_connectivity, relative_error
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(2, ranks=4, random_state=0)
    >>> def loss(adapter):
    ...     return relative_error(adapter, x) ** 2 + relative_error(adapter, y) ** 2
    >>> line = mode_connectivity(x, y, loss, alphas=5)
    >>> line.losses.round(2), line.barrier
    (array([2.21, 1.38, 1.1 , 1.37, 2.19]), 0.0)
    """
    _check_space(space)
    points = _points(alphas)
    losses = np.empty(len(points))
    for i, alpha in enumerate(points.tolist()):
        # the ends as they are, so that they do not depend on how the line is made
        adapter = y if alpha == 0 else x if alpha == 1 else interpolate(x, y, alpha, space=space)
        losses[i] = value = float(loss(adapter))
        if not np.isfinite(value):
            raise ValueError(
                f"the loss is {value} at alpha={alpha:g}, between {y.name!r} (0) and {x.name!r} (1); expected a finite "
                "number: look at the data, or compute the loss in float32"
            )
    return ModeConnectivity(points, losses, (x.name, y.name), space)


def interpolate(x: Adapter, y: Adapter, alpha: float, *, space: Interpolated = "updates") -> Adapter:
    """Return the adapter ``alpha * x + (1 - alpha) * y``, or beyond them for other alphas.

    Parameters
    ----------
    x, y : Adapter
        Adapters of one base model; a module that one of them lacks is a zero update there.
    alpha : float
        Share of ``x``.
    space : {'updates', 'factors'}, default='updates'
        As in :func:`mode_connectivity`. For 'updates' the result is exact, and its rank is the sum of both ranks.

    Returns
    -------
    Adapter
        In memory, in the smallest dtype that holds both.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters do not fit together, or for 'factors' differ in rank.
    ValueError
        If ``space`` is not one of these, ``alpha`` is not finite, or a weight is not finite.

    Examples
    --------
    >>> from lorakit.metrics import interpolate
    >>> from lorakit.testing import make_adapters
    >>> x, y = make_adapters(2, ranks=4, random_state=0)
    >>> interpolate(x, y, 0.5)
    Adapter('interpolated', modules=2, rank=8, dtype=float32)
    >>> interpolate(x, y, 0.5, space="factors")
    Adapter('interpolated', modules=2, rank=4, dtype=float32)
    """
    _check_space(space)
    if not np.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number, got {alpha!r}")
    X = check_adapters([x, y])
    if space == "factors":
        check_equal_ranks(X)
    combine = _combine_updates if space == "updates" else _combine_factors
    weights = (float(alpha), 1 - float(alpha))
    modules = {
        module: to_output(combine(read_module(X.only(module), module, None), weights), X.dtype, module)
        for module in X.module_names
    }
    kinds = {module: info.kind for adapter in X for module, info in adapter.infos.items()}
    provenance = made_from(X, f"interpolate(alpha={float(alpha)!r}, space={space!r})")
    return Adapter(modules, name="interpolated", kinds=kinds, provenance=provenance)


def _check_space(space: str) -> None:
    if space not in ("updates", "factors"):
        raise ValueError(f"space must be 'updates' or 'factors', got {space!r}")


def _combine_updates(updates: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    return LoraFactors(*weighted_concat(updates, weights))


def _combine_factors(updates: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    present = [(update, w) for update, w in zip(updates, weights, strict=True) if update.rank]
    if not present:
        return updates[0]
    pairs: Any = [(a * w, b * w) for (a, b), w in present]
    return LoraFactors(sum(a for a, _ in pairs), sum(b for _, b in pairs))


def _points(alphas: int | Sequence[float]) -> NDArray[np.float64]:
    if isinstance(alphas, (int, np.integer)):
        if alphas < 2:
            raise ValueError(f"alphas must be at least 2, for the two ends; got {alphas}")
        return np.linspace(0, 1, int(alphas))
    points = np.unique([0.0, *alphas, 1.0])
    if points.ndim != 1 or not (points >= 0).all() or not (points <= 1).all():
        raise ValueError(f"alphas must lie between 0 and 1, got {list(alphas)}")
    return points
