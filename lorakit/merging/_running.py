"""Merging adapters as they come, some at a time: a running sum of a limited rank, with a bound of what it lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .._execution import iter_modules, read_module, to_output
from .._recipes import recipe_of, recipe_text
from .._sklearn import fit_context
from .._validation import check_adapters, check_weights
from ..adapter_set import AdapterSet
from ..adapters import Adapter, ModuleKind
from ..differences import added_up, rounded
from ..exceptions import IncompatibleAdaptersError
from ..factors import LoraFactors, promoted_dtype
from ..linalg import frobenius_norm, split_svd, svd_of_sum
from ..provenance import Differences, Made, Provenance, Step, combined
from ..results import Results

_KEPT = 4  # times k: the rank of the running sum, where nobody says


@dataclass
class ModuleSum:
    """The sum of weighted updates of one module, cut to a limited rank.

    Parameters
    ----------
    factors : LoraFactors
        The sum.
    singular_values : ndarray
        All singular values of the sum before its last cut.
    lost : float
        Bound of the Frobenius norm of what all cuts took away: the sum of their norms.
    norms : float
        Weighted sum of the norms of the updates.
    """

    factors: LoraFactors
    singular_values: np.ndarray
    lost: float
    norms: float


@dataclass(kw_only=True)
class Seen:
    """What ``partial_fit`` remembers of the adapters of all calls: nothing grows with their number but their names."""

    kinds: dict[str, ModuleKind] = field(default_factory=dict)
    widths: dict[str, tuple[int, int]] = field(default_factory=dict)  # d_out, d_in
    weight: float = 0.0
    adapters: list[tuple[str, Provenance]] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)

    def add(self, X: AdapterSet, counted: AdapterSet, weights: np.ndarray) -> None:
        """Remember the adapters of a call, of which ``counted`` have a weight."""
        for adapter in X:
            self.kinds |= {module: info.kind for module, info in adapter.infos.items()}
            self.widths |= {module: (info.d_out, info.d_in) for module, info in adapter.infos.items()}
        self.weight += float(np.abs(weights).sum())
        self.adapters += [(adapter.name, adapter.provenance) for adapter in X]
        self.dtypes |= {adapter.dtype for adapter in counted}


@dataclass(kw_only=True)
class RunningSum(Seen):
    """The sums that ``partial_fit`` keeps between its calls."""

    keep: int
    modules: dict[str, ModuleSum] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)  # weighted sums, by parameter
    difference_norms: dict[str, float] = field(default_factory=dict)  # weighted sums of the norms


def advanced(
    X: AdapterSet,
    module: str,
    *,
    before: ModuleSum | None,
    weights: Sequence[float],
    keep: int,
    device: str | None,
) -> ModuleSum:
    """Add one module's updates, times their weights, to the sum, which is cut to rank ``keep``."""
    updates = read_module(X, module, device)
    d_in, d_out = updates[0].d_in, updates[0].d_out
    norms = 0.0 if before is None else before.norms
    norms += sum(abs(w) * frobenius_norm(u).item() for w, u in zip(weights, updates, strict=True))
    terms = list(zip(updates, weights, strict=True))
    lost = 0.0 if before is None else before.lost
    running = [] if before is None else [(before.factors.to(device=updates[0].A.device), 1.0)]
    values = np.zeros(0)
    # As many at a time as leave the units fewer than the width: no matrix has the square of all their ranks
    limit = max(min(d_in, d_out) // 2, 2 * keep)
    while terms:
        now, size = list(running), sum(f.rank for f, _ in running)
        while terms and (len(now) == len(running) or size + terms[0][0].rank <= limit):
            size += terms[0][0].rank
            now.append(terms.pop(0))
        u, s, vh = svd_of_sum([f for f, _ in now], [w for _, w in now], keep)
        lost += float(s[keep:].double().norm())
        factors, values = LoraFactors(*split_svd(u, s, vh, keep)), s.cpu().numpy().copy()
        running = [(factors, 1.0)]
    assert running  # a call has at least one adapter, and a module that is asked for at least one that has it
    return ModuleSum(running[0][0].to(device="cpu"), values, lost, norms)


class RunningSumMixin:
    """Gives ``partial_fit`` to mergers whose result is a multiple of the weighted sum of the updates."""

    if TYPE_CHECKING:
        k: Any
        weights: Any
        strengths: Any
        scale: Any
        scale_target: float
        scale_scope: str
        n_jobs: int | None
        device: str | None
        verbose: int
        method: ClassVar[str]

    def _sum_factor(self, n: int, weight: float) -> float:
        """Factor on the sum of n updates whose absolute weights add up to ``weight``."""
        return 1 / weight

    @fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self,
        X: AdapterSet | Iterable[Adapter],
        y: object = None,
        *,
        weights: ArrayLike | None = None,
        keep: int | None = None,
    ) -> Self:
        """Add adapters to the merge of those that were given before, in memory that does not grow with their number.

        For each module the sum of the weighted updates is kept, cut to rank ``keep`` after some adapters. What is cut
        is lost, and its norm is added up: ``sum_error_`` bounds the distance to the merge of all adapters at once.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            Adapters that come on top of those before. Each has to fit the modules that are known; new modules may come.
        y : None
            Ignored.
        weights : array-like of shape (n_adapters,), default=None
            Weights of these adapters, such as the numbers of samples that they were trained on. They count beside those
            of other calls as they are, and are normalised over all. None is 1 each.
        keep : int, default=None
            Rank of the running sums, at least ``k``; fixed by the first call. None is four times ``k``.

        Returns
        -------
        self
            With the merge of all adapters until now in ``merged_``, cut to rank ``k``; and ``sum_error_``, a dict of
            str to float: for each module a bound on the Frobenius norm of the difference between the running result,
            before its cut to ``k`` and before ``scale``, and that of all adapters at once.

        Raises
        ------
        ValueError
            If ``k`` is no number, or ``keep`` is below it; if the estimator has ``weights`` or ``strengths``, which go
            with a whole set; or with ``scale_scope='model'`` and ``scale='match'``.
        IncompatibleAdaptersError
            If an adapter does not fit.

        Examples
        --------
        >>> from lorakit import SVDMerger
        >>> from lorakit.testing import make_adapters
        >>> X = make_adapters(6, ranks=4, random_state=0)
        >>> merger = SVDMerger(k=8)
        >>> for start in range(0, 6, 2):
        ...     merger = merger.partial_fit(X[start : start + 2], keep=16)
        >>> merger.n_adapters_in_, merger.merged_
        (6, Adapter('svd', modules=2, rank=8, dtype=float32))
        """
        k = self._check_partial()
        X = check_adapters(X, differences=True)
        values = np.ones(len(X)) if weights is None else np.asarray(weights, dtype=np.float64)
        check_weights(values, X.names, signed=True)
        state: RunningSum = getattr(self, "running_sum_", None) or RunningSum(keep=_KEPT * k if keep is None else keep)
        if state.keep < k:
            raise ValueError(f"keep={state.keep} is below k={k}: a sum of that rank cannot be cut to rank k")
        check_fit(state, X)
        wanted = np.flatnonzero(values)
        counted, values = X[wanted], values[wanted]

        def task_of(module: str) -> Any:
            before = state.modules.get(module)
            return partial(advanced, before=before, weights=values.tolist(), keep=state.keep, device=self.device)

        added, norms = added_up(counted, values.tolist(), state.differences)
        with closing(iter_modules(task_of, counted, n_jobs=self.n_jobs, verbose=self.verbose)) as found:
            new = dict(zip(counted.module_names, found, strict=True))
        # nothing is changed before all of it has worked
        state.modules |= new
        state.differences = added
        for name, own in norms.items():
            state.difference_norms[name] = state.difference_norms.get(name, 0.0) + float(np.abs(values) @ own)
        state.add(X, counted, values)
        self._finish(state, k)
        return self

    def _check_partial(self) -> int:
        return check_partial(self)

    def _finish(self, state: RunningSum, k: int) -> None:
        """Set the fitted attributes."""
        dtype, results = promoted_dtype(state.dtypes), Results()
        factor = self._sum_factor(len(state.adapters), state.weight)
        self.running_sum_, self.n_adapters_in_ = state, len(state.adapters)
        self.module_names_in_ = tuple(state.modules)
        self.singular_values_, self.truncation_error_, self.sum_error_ = {}, {}, {}
        for module, own in state.modules.items():
            leading = LoraFactors(own.factors.A[:k].clone(), own.factors.B[:, :k].contiguous())
            leading = leading.scaled(factor)
            scale = scale_of(self, partial(frobenius_norm, leading), own.norms / state.weight)
            results.put(module, to_output(leading.scaled(scale), dtype, module))
            self.singular_values_[module] = abs(factor) * own.singular_values
            self.truncation_error_[module] = float(np.linalg.norm(self.singular_values_[module][k:]))
            self.sum_error_[module] = abs(factor) * own.lost
        added = {name: total * factor for name, total in state.differences.items()}
        for name, total in added.items():
            mean_norm = state.difference_norms[name] / state.weight
            added[name] = total * scale_of(self, total.norm, mean_norm)
        self.merged_ = merged_of(self, state, results, rounded(added, dtype))


def check_partial(merger: Any) -> int:
    """Return k of a merger if its parameters let it merge adapters as they come."""
    k = merger.k
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise ValueError(f"partial_fit needs a number for k, got k={k!r}: what is cut must be known beforehand")
    if merger.weights is not None or merger.strengths is not None:
        raise ValueError(
            "weights and strengths of the estimator are those of a whole set; pass partial_fit the weights of the "
            "adapters of each call"
        )
    if merger.scale == "match" and merger.scale_scope == "model":
        raise ValueError("partial_fit matches the norm of each module; scale_scope='model' needs fit")
    return int(k)


def scale_of(merger: Any, norm_of_result: Callable[[], Tensor], mean_norm: float) -> float:
    """Return the factor on a result whose norm is asked for if it matters; ``mean_norm`` is that of what was merged."""
    if merger.scale != "match":
        return float(merger.scale)
    norm = float(norm_of_result())
    return merger.scale_target * mean_norm / norm if norm else 1.0


def merged_of(merger: Any, state: Seen, results: Results, differences: Differences | None = None) -> Adapter:
    """Return the adapter that partial_fit has made until now."""
    inputs = tuple((name, known.origin) for name, known in state.adapters)
    step = Step(f"{recipe_text(recipe_of(merger.shown()))}.partial_fit", inputs)
    provenance = combined([known for _, known in state.adapters], Made(step), differences)
    kinds = {module: state.kinds[module] for module in merger.module_names_in_}
    return results.adapter(name=merger.method, kinds=kinds, provenance=provenance)


def check_fit(state: Seen, X: AdapterSet) -> None:
    """Check that adapters fit the modules of those before."""
    for adapter in X:
        for module, info in adapter.infos.items():
            if module not in state.widths:
                continue
            seen = (*state.widths[module], state.kinds[module])
            if seen != (info.d_out, info.d_in, info.kind):
                raise IncompatibleAdaptersError(
                    f"module {module!r} is {info.d_out} x {info.d_in} ({info.kind}) in adapter {adapter.name!r}",
                    module=module,
                    adapters=[adapter.name],
                    remedy=f"the adapters of calls before have {seen[0]} x {seen[1]} ({seen[2]})",
                )
