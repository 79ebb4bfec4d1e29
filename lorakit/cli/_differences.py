"""How far the updates of two adapters are apart, module by module, exact to round-off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from math import prod, sqrt
from typing import Any

import torch

from .. import Adapter, AdapterSet, LoraFactors
from .._execution import map_modules
from ..adapters import ModuleInfo
from ..linalg import frame_of

# What is left of a number after it was stored in a dtype, relative to it. The narrow dtypes round once, and that is
# all; between two ways to the same float32 or float64 numbers lie sums of thousands of terms in another order.
_ROUNDING = {torch.float64: 2.0**-40, torch.float32: 2.0**-19, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


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
    cosine: float | None
    norms: tuple[float, float]
    identical: bool
    note: str | None = None

    @property
    def same(self) -> bool:
        """Whether the updates are the same, as far as rounding lets one say."""
        return self.relative_error is not None and self.relative_error <= self.tolerance

    def row(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {"same": self.same, **asdict(self), "norms": list(self.norms)}


@dataclass(frozen=True)
class Totals:
    """All modules as one vector."""

    relative_error: float | None  # None if the shape of a module differs
    same: bool
    identical: bool


def differences(
    x: Adapter,
    y: Adapter,
    *,
    tolerance: float | None = None,
    dtypes: tuple[Iterable[torch.dtype], Iterable[torch.dtype]] | None = None,
    stored_as: torch.dtype | None = None,
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
        are stored in can do to each module: more where large units cancel one another, as in a difference of adapters.
    dtypes : pair of iterables of torch.dtype, optional
        Dtypes in which the numbers of each were stored on their way here, if these are not ``x.dtype`` and
        ``y.dtype`` alone.
    stored_as : torch.dtype, optional
        Dtype to which the factors of ``y`` are rounded before they are compared bit for bit.
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
        lacking={module: f"only in {(x if module in x else y).name}" for module in alone},
        scales={module: (x.scale(module) if module in x else None, y.scale(module) if module in y else None)
                for module in (*modules, *alone)},
    )  # fmt: skip
    wanted = AdapterSet([x.select([*modules, *alone]).renamed("a"), y.select([*modules, *alone]).renamed("b")])
    found = map_modules(task, wanted, n_jobs=n_jobs, verbose=0) if wanted.module_names else []
    misfits = [module for module in x if module in y and _misfit(x.infos[module], y.infos[module])]
    made = [difference for difference, _ in found]
    made += [
        Difference(module, None, 0.0, None, (0.0, 0.0), False, _misfit(x.infos[module], y.infos[module]))
        for module in misfits
    ]
    largest = max((sum(d.norms[i] ** 2 for d in made) for i in (0, 1)), default=0.0)
    distance = sum(distance**2 for _, distance in found)
    error = None if misfits else sqrt(distance / largest) if largest else 0.0
    return made, Totals(error, all(d.same for d in made), all(d.identical for d in made))


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
    return max(_ROUNDING[dtype] for dtype in known), smallest / 2


def _compare(
    X: AdapterSet,
    module: str,
    *,
    roundings: list[tuple[float, float]],
    tolerance: float | None,
    stored_as: torch.dtype | None,
    lacking: dict[str, str],
    scales: dict[str, tuple[float | None, float | None]],
) -> tuple[Difference, float]:
    """Return the difference at one module, and ``||X - Y||``."""
    given = X.factors(module)
    pair = [factors.to(torch.float64) for factors in given]
    # QR also for float32: the Gram matrix of equal columns has no digits to spare
    outputs = frame_of([factors.B for factors in pair], gram=False)
    inputs = frame_of([factors.A.mT for factors in pair], gram=False)
    x, y = (b @ a.mT for b, a in zip(outputs.blocks, inputs.blocks, strict=True))
    norms = (float(x.norm()), float(y.norm()))
    distance, largest = 0.0 if identical(*given) else float((x - y).norm()), max(norms)
    if tolerance is None:
        doubt = sum(
            _doubt(factors, *rounding, 1.0 if scale is None else scale)
            for factors, rounding, scale in zip(pair, roundings, scales[module], strict=True)
        )
        tolerance = doubt / largest if largest else 0.0
    difference = Difference(
        module,
        distance / largest if largest else 0.0,
        tolerance,
        float((x * y).sum()) / prod(norms) if all(norms) else None,
        norms,
        module not in lacking and identical(given[0], given[1].to(stored_as)),
        lacking.get(module),
    )
    return difference, distance


def _doubt(factors: LoraFactors, relative: float, absolute: float, scale: float) -> float:
    """Return what rounding each number of A and B can do to ``B @ A``, in Frobenius norm."""
    a, b = factors
    units = float((a.norm(dim=1) * b.norm(dim=0)).sum())
    tiny = absolute * sqrt(abs(scale))  # of the numbers in the file, whose scale is folded in here
    return relative * units + tiny * (sqrt(a.numel()) * float(b.norm()) + sqrt(b.numel()) * float(a.norm()))


def identical(x: LoraFactors, y: LoraFactors) -> bool:
    """Whether two pairs of factors are equal bit for bit, ranks padded with zeros apart."""
    r = min(x.rank, y.rank)
    rests = (x.A[r:], x.B[:, r:], y.A[r:], y.B[:, r:])
    return (
        torch.equal(x.A[:r].double(), y.A[:r].double())
        and torch.equal(x.B[:, :r].double(), y.B[:, :r].double())
        and not any(bool(rest.any()) for rest in rests)
    )
