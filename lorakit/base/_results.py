"""What a merge comes to, module by module, and the warning where that is nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._execution import to_output
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..exceptions import Words, ZeroMergeWarning
from ..factors import LoraFactors
from ..linalg import Overlap, frobenius_norm, overlap_of, residual_norm, singular_values_of_sum
from ..provenance import Differences
from ..results import Place, Results

Learned = dict[str, Any]
OVERLAP = "overlap"  # entry of what a method learned at one module: a function that gives the products, no attribute
_MANY, _STRETCH, _EVERY = 1024, 64, 16  # of a factor this wide, one stretch of columns in so many


class Outcome(NamedTuple):
    """One module merged at one rank."""

    factors: LoraFactors | Place  # the latter from a process that has written them to where results are kept
    learned: Learned
    norms: np.ndarray  # (1 + n_adapters,): of the merged update, then of each adapter's; empty unless scale='match'
    zero: bool  # whether the merged update is zero
    untrained: bool  # whether it is zero because the update of every adapter is
    scale: float  # factor on the method's own result; 1 where that is known only when all modules are merged
    overlap: Overlap | None = None  # of ``factors`` and the updates, where they are to be compared


def leading_msus(factors: LoraFactors, k: int) -> LoraFactors:
    """Return the first k MSUs, in tensors of their own; all of them, as they are, where there are no more."""
    # a view would keep the storage of them all
    return factors if k >= factors.rank else LoraFactors(factors.A[:k].clone(), factors.B[:, :k].contiguous())


def is_nothing(factors: LoraFactors) -> bool:
    """Whether a factor has nothing but zeros; the first row is nearly always enough to see that it has more."""
    return not all(factor[:1].any() or factor.any() for factor in factors)


class Merge:
    """What a merge at one rank has come to, module by module."""

    def __init__(self) -> None:
        self.results = Results()
        self.norms: dict[str, np.ndarray] = {}
        self.scales: dict[str, float] = {}  # factor on the method's own result
        self.learned: dict[str, Learned] = {}
        self.lost: list[str] = []  # modules that came out as zero though an adapter's update is not
        self.untrained: list[str] = []  # modules in which every update is zero
        self.overlaps: list[Overlap] = []
        self.differences: Differences | None = None

    def add(self, module: str, outcome: Outcome) -> None:
        """Keep one module's result."""
        self.results.put(module, outcome.factors)
        self.norms[module] = outcome.norms
        self.scales[module] = outcome.scale
        if outcome.overlap is not None:
            self.overlaps.append(outcome.overlap)
        if outcome.zero:
            (self.untrained if outcome.untrained else self.lost).append(module)
        for key, value in outcome.learned.items():
            # What was made among a module's matrices would lie between them when they are freed, and keep the space
            # from being used for larger ones, more of it with every module.
            self.learned.setdefault(key, {})[module] = value.copy() if isinstance(value, np.ndarray) else value

    @staticmethod
    def leave(merges: Sequence[Merge], _: str, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write the factors of one module to where the results of merges are kept, in a process forked since."""
        pairs = zip(merges, outcomes, strict=True)
        return [made._replace(factors=merge.results.leave(made.factors)) for merge, made in pairs]  # type: ignore[arg-type]

    def factor(self) -> dict[str, float]:
        """Return the smallest, the median and the largest factor that ``scale`` came to, to six digits."""
        scales = np.array(list(self.scales.values()))
        found = {"min": scales.min(), "median": np.median(scales), "max": scales.max()}
        return {name: float(f"{value:.6g}") for name, value in found.items()}

    def rescale(self, scale: float, dtype: torch.dtype) -> None:
        """Multiply the results, which are kept exactly until now, by the scale of the whole model, and cast them."""
        exact, overlaps = self.results, iter(self.overlaps)
        self.results, self.overlaps = Results(), []
        for module in self.norms:
            scaled = exact.pop(module).scaled(scale)
            stored = to_output(scaled, dtype, module)
            self.results.put(module, stored)
            if scale and is_nothing(stored) and module not in self.lost and module not in self.untrained:
                self.lost.append(module)  # too small for the dtype
            self.overlaps += [own.scaled(scale, rounding_of(scaled, stored)) for own in islice(overlaps, 1)]
        self.scales = dict.fromkeys(self.norms, scale)

    def fill(self, X: AdapterSet, dtype: torch.dtype) -> None:
        """Add an update of zero at each module that only adapters of weight 0 have."""
        for module in X.module_names:
            if module not in self.norms:
                info = next(info for info in X.infos(module) if info)
                zeros = LoraFactors(torch.zeros(1, info.d_in, dtype=dtype), torch.zeros(info.d_out, 1, dtype=dtype))
                self.results.put(module, zeros)


class Products:
    """Inner products of one module's merged update and the updates it was merged from, made when they are asked for.

    Parameters
    ----------
    merged : LoraFactors
        The merged update.
    updates : sequence of LoraFactors
        What it was merged from.
    made : callable or None
        What the method gives in their place, from matrices that it had anyway.
    """

    def __init__(self, merged: LoraFactors, updates: Sequence[LoraFactors], made: Callable[[], Overlap] | None) -> None:
        self._merged, self._updates, self._made = merged, updates, made

    @cached_property
    def overlap(self) -> Overlap:
        """All of them."""
        return overlap_of(self._merged, self._updates) if self._made is None else self._made()

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the merged update."""
        known = self._made is not None or "overlap" in vars(self)
        return sqrt(self.overlap.squared) if known else frobenius_norm(self._merged).item()

    @cached_property
    def given(self) -> list[float]:
        """Frobenius norms of the updates."""
        if self._made is not None or "overlap" in vars(self):
            return [sqrt(squared) for squared in self.overlap.given]
        return [frobenius_norm(update).item() for update in self._updates]


def rounding_of(exact: LoraFactors, stored: LoraFactors) -> float:
    """Squared norm of the error that a cast makes in an update; of large factors a sixteenth is looked at.

    Errors of entries are independent of one another, so the squares of those of ``B_r A_r`` add up.
    """
    if exact.dtype == stored.dtype:
        return 0.0
    (a, a_error), (b, b_error) = _errors(exact.A, stored.A, 1), _errors(exact.B, stored.B, 0)
    return float((a * b_error + b * a_error).sum())


def _errors(exact: Tensor, stored: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Squared norms of the units' parts, (r,), and of the errors of a cast; a part lies along one of the dimensions."""
    d = exact.shape[along]
    if d >= _MANY:  # whole stretches, which are near to one another in memory
        chosen = torch.arange(0, d, _STRETCH * _EVERY)[:, None] + torch.arange(_STRETCH)
        chosen = chosen[chosen < d].to(exact.device)
        exact, stored = exact.index_select(along, chosen), stored.to(exact.device).index_select(along, chosen)
    share = exact.shape[along] / d
    error = stored.to(exact) - exact
    return exact.square().sum(dim=along).double() / share, error.square().sum(dim=along).double() / share


def error_of_mean(merged: Adapter, X: AdapterSet) -> float:
    """``||W_merged - mean_i W_i|| / ||mean_i W_i||`` over all modules, in Frobenius norms."""
    mean = [1 / len(X)] * len(X)
    error = total = 0.0
    for module, factors in merged.items():
        updates = X.factors(module) if module in X.module_names else []
        zero = factors.scaled(0)
        error += residual_norm(factors, updates, mean[: len(updates)]).item() ** 2
        total += residual_norm(zero, updates, mean[: len(updates)]).item() ** 2
    return float(np.sqrt(error / total)) if total else float(error > 0)


def norm_of_merged(merged: LoraFactors, products: Products, weights: np.ndarray, *, subtracts: bool) -> float:
    """Frobenius norm of a merged update; exactly 0 where updates that are subtracted leave nothing but round-off."""
    norm = products.norm
    if not subtracts or norm == 0:
        return norm
    size = sum(abs(w) * given for w, given in zip(weights, products.given, strict=True))
    if norm < 1e-6 * size:  # the Gram matrices see no more digits
        norm = float(torch.linalg.vector_norm(singular_values_of_sum([merged], [1.0])))
    return norm if norm > 64 * torch.finfo(merged.dtype).eps * size else 0.0


def largest_k(merger: Any) -> Words:
    """Return what a message says of the largest k of a merger."""
    text = f"the largest k of {{}} for these adapters: {merger._rank_rule}"
    return Words(text.format(type(merger).__name__), text.format(f"the method {merger.method}"))


def warn_of_zeros(merger: Any, merge: Merge) -> None:
    """Warn where a merged update is zero though those of the adapters are not, or where all of them are.

    Modules in which no adapter has been trained are nothing to warn of as long as there are others.
    """
    zeros, total = merge.lost + merge.untrained, len(merge.norms)
    if not merge.lost and len(zeros) < total:
        return
    k = "" if merger.k is None else f" -k {merger.k}"
    name = Words(f"{type(merger).__name__}(k={merger.k!r})", f"--method {merger.method}{k}")
    if not merge.lost:
        what = ": the merged update is zero, because every update of every adapter that was merged is zero"
        remedy = "check that the adapters were trained, and that their weights are not 0"
    else:
        shown = ", ".join(map(repr, merge.lost[:3])) + (", ..." if len(merge.lost) > 3 else "")
        where = f"in {len(merge.lost)} of {total} modules ({shown})"
        what = f": the merged update is zero {where}, though the adapters' updates are not"
        remedy = "keep more of each update (a larger density or k), change the weights, or merge by another method"
    warning = ZeroMergeWarning(name, f"{what}; {remedy}")
    warnings.warn(warning, stacklevel=5)  # who called fit, behind scikit-learn's wrapper
