"""How far the updates of two adapters are apart, module by module, exact to round-off."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import hypot, ldexp, prod, sqrt
from typing import Any, NamedTuple

import torch

from .. import Adapter, AdapterSet, LoraFactors
from .._execution import map_modules
from ..adapters import ModuleInfo
from ..exceptions import CancellingUnitsWarning
from ..linalg import frame_of
from ..linalg.rounding import MOST_CANCELLING, MOST_OPEN, ROUNDING, exponent_of, units_cancel


@dataclass(frozen=True)
class Difference:
    """Two updates of one module.

    Parameters
    ----------
    module : str
        The module.
    relative_error : float or None
        ``||X - Y||`` over the larger of ``||X||`` and ``||Y||``; 0 if both are zero, None if their shapes differ.
    tolerance : float
        The relative error up to which they count as the same.
    doubt : float
        The relative error that rounding could explain. It is above ``tolerance`` where large units cancel to so little
        that it would explain too much.
    cosine : float or None
        Between the updates; None if one is zero.
    norms : tuple of two floats
        ``||X||`` and ``||Y||``.
    identical : bool
        Whether the factors are equal bit for bit, ranks padded with zeros apart.
    note : str or None
        What there is to say beside numbers: that one of them lacks the module, or has another shape.
    """

    module: str
    relative_error: float | None
    tolerance: float
    doubt: float
    cosine: float | None
    norms: tuple[float, float]
    identical: bool
    note: str | None = None

    @property
    def same(self) -> bool:
        """Whether the updates are the same, as far as rounding lets one say."""
        return self.relative_error is not None and self.relative_error <= self.tolerance

    @property
    def unsure(self) -> bool:
        """Whether they differ by no more than rounding could explain, where it could explain too much."""
        return not self.same and self.relative_error is not None and self.relative_error <= self.doubt

    def row(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {"same": self.same, "unsure": self.unsure, **asdict(self), "norms": list(self.norms)}


@dataclass(frozen=True)
class Totals:
    """All modules as one vector."""

    relative_error: float | None  # None if the shape of a module differs
    same: bool
    unsure: bool  # that they are the same: no module differs for certain
    identical: bool


class _Measured(NamedTuple):
    """A difference, and its norms in a unit that no float64 overflows in: two to the power of ``exponent``."""

    difference: Difference
    distance: float
    norms: tuple[float, float]
    exponent: int


def differences(
    x: Adapter,
    y: Adapter,
    *,
    tolerance: float | None = None,
    dtypes: tuple[Iterable[torch.dtype], Iterable[torch.dtype]] | None = None,
    stored_as: torch.dtype | None = None,
    trusted: bool = False,
    n_jobs: int | None = None,
) -> tuple[list[Difference], Totals]:
    """Compare the updates of two adapters that name their modules alike.

    ``||X - Y||`` comes from orthonormal frames of the factors of both, not from differences of inner products: these
    would take equal updates for 1e-8 apart.

    Parameters
    ----------
    x, y : Adapter
        A module that one of them lacks is a zero update there.
    tolerance : float, optional
        Largest relative error of modules that are the same. Defaults to what rounding the factors to the dtypes they
        are stored in can do to each module: more where large units cancel one another, as in a difference of adapters,
        but never more than an eighth of the update.
    dtypes : pair of iterables of torch.dtype, optional
        Dtypes in which the numbers of each were stored on their way here, if these are not ``x.dtype`` and
        ``y.dtype`` alone.
    stored_as : torch.dtype, optional
        Dtype to which the factors of ``y`` are rounded before they are compared bit for bit.
    trusted : bool, default=False
        Whether ``y`` is known to be what ``x`` should be. What rounding may do is then worked out from the factors of
        ``y`` alone: ``x`` cannot choose factors that excuse it.
    n_jobs : int, optional
        Modules at a time.

    Returns
    -------
    differences : list of Difference
        One a module, those of ``x`` first.
    totals : Totals
        Over all modules.
    """
    modules = [module for module in x if module in y and not _misfit(x.infos[module], y.infos[module])]
    alone = [module for module in x if module not in y] + [module for module in y if module not in x]
    task = partial(
        _compare,
        roundings=[_coarsest(given) for given in dtypes or ((x.dtype,), (y.dtype,))],
        tolerance=tolerance,
        stored_as=stored_as,
        trusted=trusted,
        lacking={module: f"only in {(x if module in x else y).name}" for module in alone},
        scales={module: (x.scale(module) if module in x else None, y.scale(module) if module in y else None)
                for module in (*modules, *alone)},
    )  # fmt: skip
    wanted = AdapterSet([x.select([*modules, *alone]).renamed("a"), y.select([*modules, *alone]).renamed("b")])
    found = map_modules(task, wanted, n_jobs=n_jobs, verbose=0) if wanted.module_names else []
    misfits = [module for module in x if module in y and _misfit(x.infos[module], y.infos[module])]
    made = [measured.difference for measured in found]
    made += [
        Difference(module, None, 0.0, 0.0, None, (0.0, 0.0), False, _misfit(x.infos[module], y.infos[module]))
        for module in misfits
    ]
    same, unsure = all(d.same for d in made), all(d.same or d.unsure for d in made)
    return made, Totals(
        None if misfits else _relative_error(found), same, unsure and not same, all(d.identical for d in made)
    )


def _relative_error(found: Sequence[_Measured]) -> float:
    """Return ``||X - Y||`` over the larger of ``||X||`` and ``||Y||``, over all modules."""
    unit = max((measured.exponent for measured in found), default=0)
    x, y, distance = (
        hypot(*(ldexp(number(measured), measured.exponent - unit) for measured in found))
        for number in (lambda m: m.norms[0], lambda m: m.norms[1], lambda m: m.distance)
    )
    return distance / max(x, y) if max(x, y) else 0.0


def _misfit(x: ModuleInfo, y: ModuleInfo) -> str | None:
    """Say how the shapes of two updates differ, if they do. A convolution with a kernel of 1 is a linear layer."""
    plain = [info.kind.name == "linear" or set(info.kind.kernel) == {1} for info in (x, y)]
    if (x.d_in, x.d_out) == (y.d_in, y.d_out) and (x.kind == y.kind or all(plain)):
        return None
    return " / ".join(f"{info.d_out} x {info.d_in} ({info.kind})" for info in (x, y))


def _coarsest(dtypes: Iterable[torch.dtype]) -> tuple[float, float]:
    """Return the largest relative and the largest absolute rounding error of a number stored in these dtypes."""
    known = list(dtypes)
    smallest = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in known)
    return max(ROUNDING[dtype] for dtype in known), smallest / 2


def _compare(
    X: AdapterSet,
    module: str,
    *,
    roundings: list[tuple[float, float]],
    tolerance: float | None,
    stored_as: torch.dtype | None,
    trusted: bool,
    lacking: dict[str, str],
    scales: dict[str, tuple[float | None, float | None]],
) -> _Measured:
    """Return the difference at one module."""
    given = X.factors(module)
    units = [exponent_of(factors.A for factors in given), exponent_of(factors.B for factors in given)]
    pair = [
        LoraFactors(factors.A.double() * 2.0 ** -units[0], factors.B.double() * 2.0 ** -units[1]) for factors in given
    ]
    # QR also for float32: the Gram matrix of equal columns has no digits to spare
    outputs = frame_of([factors.B for factors in pair], gram=False)
    inputs = frame_of([factors.A.mT for factors in pair], gram=False)
    x, y = (b @ a.mT for b, a in zip(outputs.blocks, inputs.blocks, strict=True))
    norms = (float(x.norm()), float(y.norm()))
    distance, largest = 0.0 if identical(*given) else float((x - y).norm()), max(norms)
    doubt = tolerance
    if tolerance is None or doubt is None:
        rounded = [pair[1], pair[1]] if trusted else pair
        at = [scales[module][1]] * 2 if trusted else scales[module]
        left_open = sum(
            _doubt(factors, *rounding, 1.0 if scale is None else scale, units)
            for factors, rounding, scale in zip(rounded, roundings, at, strict=True)
        )
        doubt = left_open / largest if largest else 0.0
        coarsest = max(relative for relative, _ in roundings)
        tolerance = min(doubt, MOST_OPEN, MOST_CANCELLING * coarsest)
    exponent = sum(units)
    difference = Difference(
        module,
        distance / largest if largest else 0.0,
        tolerance,
        doubt,
        float((x * y).sum()) / prod(norms) if all(norms) else None,
        (_scaled(norms[0], exponent), _scaled(norms[1], exponent)),
        module not in lacking and identical(given[0], given[1].to(stored_as)),
        lacking.get(module),
    )
    return _Measured(difference, distance, norms, exponent)


def _scaled(number: float, exponent: int) -> float:
    """Return a number times a power of two; infinity if that is above any float64."""
    try:
        return ldexp(number, exponent)
    except OverflowError:
        return float("inf")


def _doubt(factors: LoraFactors, relative: float, absolute: float, scale: float, units: Sequence[int]) -> float:
    """Return what rounding each number of A and B can do to ``B @ A``, in Frobenius norm.

    ``units`` are the powers of two that A and B were divided by.
    """
    a, b = factors
    norms = float((a.norm(dim=1) * b.norm(dim=0)).sum())
    # of the numbers in the file, whose scale is folded in here
    tiny_a, tiny_b = (absolute * sqrt(abs(scale)) * 2.0**-unit for unit in units)
    return relative * norms + tiny_a * sqrt(a.numel()) * float(b.norm()) + tiny_b * sqrt(b.numel()) * float(a.norm())


def warn_of_cancelling(adapter: Adapter) -> None:
    """Warn of the modules whose units cancel to so little that rounding swamps it; all of the adapter is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CancellingUnitsWarning)  # of reading, which names no module
        modules = [module for module, factors in adapter.items() if units_cancel(factors, adapter.dtype)]
    if modules:
        where = f"in {len(modules)} of {len(adapter)} modules, such as {modules[0]!r}"
        warnings.warn(CancellingUnitsWarning.at(adapter.name, where), stacklevel=2)


def identical(x: LoraFactors, y: LoraFactors) -> bool:
    """Whether two pairs of factors are equal bit for bit, ranks padded with zeros apart."""
    r = min(x.rank, y.rank)
    rests = (x.A[r:], x.B[:, r:], y.A[r:], y.B[:, r:])
    return (
        torch.equal(x.A[:r].double(), y.A[:r].double())
        and torch.equal(x.B[:, :r].double(), y.B[:, :r].double())
        and not any(bool(rest.any()) for rest in rests)
    )
