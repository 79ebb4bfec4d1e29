"""RegMean's sums, to which updates are added as they come; exact, in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .products import Update
from .regression import Moment, divided, shrunk_moment, times, trace


@dataclass(frozen=True)
class RegressionSums:
    r"""The sums :math:`\sum w_i W_i G_i`, :math:`\sum w_i W_i` and :math:`\sum w_i G_i` of one module's updates.

    The first two share their columns: they are ``columns @ moved`` and ``columns @ plain``. Where the ranks of the
    updates sum to more than d_out, the columns become the identity, which is exact and bounds the memory.

    Parameters
    ----------
    moved, plain : Tensor of shape (r, d_in)
        Rows ``w_i A_i G_i`` and ``w_i A_i``.
    columns : Tensor of shape (d_out, r)
        The ``B_i``, side by side.
    moment : Tensor or (Tensor, Tensor)
        The sum of the moments, (d_in, d_in) or diagonal (d_in,) and factor (p, d_in).
    weight : float
        The sum of the weights.
    """

    moved: Tensor
    plain: Tensor
    columns: Tensor
    moment: Moment
    weight: float

    def to(self, device: torch.device | str) -> RegressionSums:
        """Return the sums on a device."""
        own = self.moment
        return replace(
            self,
            moved=self.moved.to(device),
            plain=self.plain.to(device),
            columns=self.columns.to(device),
            moment=own.to(device) if isinstance(own, Tensor) else (own[0].to(device), own[1].to(device)),
        )

    def mean(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return factors of the update that :func:`regression_mean` gives of all updates at once.

        Parameters
        ----------
        ridge : float
            As there.

        Returns
        -------
        A : Tensor of shape (r, d_in)
        B : Tensor of shape (d_out, r)

        Raises
        ------
        ValueError
            If the sum of the moments is singular.
        """
        level = trace(self.moment) / self.plain.shape[1]
        load = ridge * level if level > 0 else self.weight
        rows = self.moved + (load / self.weight) * self.plain
        return divided(rows, [self.moment], [1.0], load), self.columns


def add_to_regression(
    before: RegressionSums | None, update: Update, weight: float, moment: Moment, *, offdiagonal: float
) -> RegressionSums:
    """Add one update and the moments of its inputs.

    Parameters
    ----------
    before : RegressionSums or None
        The sums until now.
    update : (A, B)
        Of any rank, 0 too.
    weight : float
        Positive.
    moment : Tensor or (Tensor, Tensor)
        Second moments of the update's inputs, whole or as a diagonal and a thin factor.
    offdiagonal : float in [0, 1]
        Factor on the entries of the moments off their diagonal.

    Returns
    -------
    RegressionSums
        In float64.
    """
    a, b = (factor.double() for factor in update)
    own = shrunk_moment(moment, offdiagonal)
    moved, plain, columns = weight * times(a, own), weight * a, b
    if before is None:
        return _bounded(RegressionSums(moved, plain, columns, _weighted(own, weight), weight))
    return _bounded(
        RegressionSums(
            torch.cat([before.moved, moved]),
            torch.cat([before.plain, plain]),
            torch.cat([before.columns, columns], dim=1),
            _sum(before.moment, _weighted(own, weight)),
            before.weight + weight,
        )
    )


def _bounded(sums: RegressionSums) -> RegressionSums:
    d_out, rank = sums.columns.shape
    if rank <= d_out:
        return sums
    identity = torch.eye(d_out, dtype=torch.float64, device=sums.columns.device)
    return RegressionSums(sums.columns @ sums.moved, sums.columns @ sums.plain, identity, sums.moment, sums.weight)


def _weighted(moment: Moment, weight: float) -> Moment:
    if isinstance(moment, Tensor):
        return weight * moment
    return weight * moment[0], weight**0.5 * moment[1]


def _sum(x: Moment, y: Moment) -> Moment:
    if not isinstance(x, Tensor) and not isinstance(y, Tensor):
        factor = torch.cat([x[1], y[1]])
        if len(factor) < factor.shape[1]:
            return x[0] + y[0], factor
    return _whole(x) + _whole(y)


def _whole(moment: Moment) -> Tensor:
    return moment if isinstance(moment, Tensor) else torch.diag(moment[0]) + moment[1].mT @ moment[1]
