"""What a merge comes to, module by module, and the warning where that is nothing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..adapter_set import AdapterSet
from ..exceptions import ZeroMergeWarning
from ..factors import LoraFactors
from ..linalg import frobenius_norm, singular_values_of_sum
from ..results import Results

Learned = dict[str, Any]


class Outcome(NamedTuple):
    """One module merged at one rank."""

    factors: LoraFactors
    learned: Learned
    norms: np.ndarray  # (1 + n_adapters,): of the merged update, then of each adapter's; empty unless scale='match'
    zero: bool  # whether the merged update is zero
    untrained: bool  # whether it is zero because the update of every adapter is
    scale: float  # factor on the method's own result; 1 where that is known only when all modules are merged


class Merge:
    """What a merge at one rank has come to, module by module."""

    def __init__(self) -> None:
        self.results = Results()
        self.norms: dict[str, np.ndarray] = {}
        self.scales: dict[str, float] = {}  # factor on the method's own result
        self.learned: dict[str, Learned] = {}
        self.lost: list[str] = []  # modules that came out as zero though an adapter's update is not
        self.untrained: list[str] = []  # modules in which every update is zero

    def add(self, module: str, outcome: Outcome) -> None:
        """Keep one module's result."""
        self.results.put(module, outcome.factors)
        self.norms[module] = outcome.norms
        self.scales[module] = outcome.scale
        if outcome.zero:
            (self.untrained if outcome.untrained else self.lost).append(module)
        for key, value in outcome.learned.items():
            # What was made among a module's matrices would lie between them when they are freed, and keep the space
            # from being used for larger ones, more of it with every module.
            self.learned.setdefault(key, {})[module] = value.copy() if isinstance(value, np.ndarray) else value

    def factor(self) -> dict[str, float]:
        """Return the smallest, the median and the largest factor that ``scale`` came to, to six digits."""
        scales = np.array(list(self.scales.values()))
        found = {"min": scales.min(), "median": np.median(scales), "max": scales.max()}
        return {name: float(f"{value:.6g}") for name, value in found.items()}

    def fill(self, X: AdapterSet, dtype: torch.dtype) -> None:
        """Add an update of zero at each module that only adapters of weight 0 have."""
        for module in X.module_names:
            if module not in self.norms:
                info = next(info for info in X.infos(module) if info)
                zeros = LoraFactors(torch.zeros(1, info.d_in, dtype=dtype), torch.zeros(info.d_out, 1, dtype=dtype))
                self.results.put(module, zeros)


def norm_of_merged(
    merged: LoraFactors, updates: Sequence[LoraFactors], weights: np.ndarray, *, subtracts: bool
) -> float:
    """Frobenius norm of a merged update; exactly 0 where updates that are subtracted leave nothing but round-off."""
    norm = frobenius_norm(merged).item()
    if not subtracts or norm == 0:
        return norm
    size = sum(abs(w) * frobenius_norm(update).item() for w, update in zip(weights, updates, strict=True))
    if norm < 1e-6 * size:  # the Gram matrices see no more digits
        norm = float(torch.linalg.vector_norm(singular_values_of_sum([merged], [1.0])))
    return norm if norm > 64 * torch.finfo(updates[0].dtype).eps * size else 0.0


def warn_of_zeros(merger: Any, merge: Merge) -> None:
    """Warn where a merged update is zero though those of the adapters are not, or where all of them are.

    Modules in which no adapter has been trained are nothing to warn of as long as there are others.
    """
    zeros, total = merge.lost + merge.untrained, len(merge.norms)
    if not merge.lost and len(zeros) < total:
        return
    name = f"{type(merger).__name__}(k={merger.k!r})"
    if not merge.lost:
        what = f"{name}: the merged update is zero, because every update of every adapter that was merged is zero"
        remedy = "check that the adapters were trained, and that their weights are not 0"
    else:
        shown = ", ".join(map(repr, merge.lost[:3])) + (", ..." if len(merge.lost) > 3 else "")
        where = f"in {len(merge.lost)} of {total} modules ({shown})"
        what = f"{name}: the merged update is zero {where}, though the adapters' updates are not"
        remedy = "keep more of each update (a larger density or k), change the weights, or merge by another method"
    warnings.warn(f"{what}; {remedy}", ZeroMergeWarning, stacklevel=5)  # who called fit, behind scikit-learn's wrapper
