"""RegMean of adapters as they come, each call with the Grams of its own adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .._execution import iter_modules, read_module, to_output
from .._sklearn import fit_context
from .._validation import check_adapters, check_weights
from ..activations import Gram
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..exceptions import IncompatibleAdaptersError
from ..factors import promoted_dtype
from ..linalg import RegressionSums, add_to_regression, frobenius_norm, svd_of_sum
from ..results import Results
from ._common import svd_cuts
from ._given_grams import check_grams
from ._running import Seen, check_fit, check_partial, merged_of, scale_of


@dataclass
class ModuleMoments:
    """One module's sums; ``norms`` is the weighted sum of the norms of its updates."""

    sums: RegressionSums
    norms: float


@dataclass(kw_only=True)
class RunningMoments(Seen):
    """The sums that ``partial_fit`` keeps; ``unclaimed`` are those of modules that no adapter has had yet."""

    modules: dict[str, ModuleMoments] = field(default_factory=dict)
    unclaimed: dict[str, ModuleMoments] = field(default_factory=dict)


def advanced(
    X: AdapterSet,
    module: str,
    *,
    before: ModuleMoments | None,
    weights: Sequence[float],
    grams: Sequence[Gram | None],
    offdiagonal: float,
    device: str | None,
) -> ModuleMoments:
    """Add one module's updates and the moments of their inputs to its sums."""
    updates = read_module(X, module, device)
    norms = sum(w * frobenius_norm(u).item() for w, u in zip(weights, updates, strict=True))
    return _added(before, [(u.A, u.B) for u in updates], weights, grams, offdiagonal, norms)


def without_update(
    before: ModuleMoments | None, weights: Sequence[float], grams: Sequence[Gram | None], offdiagonal: float
) -> ModuleMoments:
    """Add the moments of adapters that lack a module, which is an update of zero there."""
    d_in = next(gram.d_in for gram in grams if gram is not None)
    d_out = 0 if before is None else len(before.sums.columns)
    nothing = (torch.zeros(0, d_in), torch.zeros(d_out, 0))
    return _added(before, [nothing] * len(grams), weights, grams, offdiagonal, 0.0)


def _added(
    before: ModuleMoments | None,
    updates: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
    grams: Sequence[Gram | None],
    offdiagonal: float,
    norms: float,
) -> ModuleMoments:
    device = updates[0][0].device
    sums = None if before is None else before.sums.to(device)
    if sums is not None and not len(sums.columns):  # of moments alone until now
        sums = replace(sums, columns=updates[0][1].new_zeros((len(updates[0][1]), 0), dtype=torch.float64))
    for update, weight, gram in zip(updates, weights, grams, strict=True):
        if gram is not None:
            sums = add_to_regression(sums, update, weight, gram.tensors(device), offdiagonal=offdiagonal)
    assert sums is not None  # whoever has a module has its Gram
    return ModuleMoments(sums.to("cpu"), norms + (0.0 if before is None else before.norms))


class RunningMomentsMixin:
    """Gives ``partial_fit`` to RegMean."""

    if TYPE_CHECKING:
        k: Any
        grams: Any
        offdiagonal: float
        ridge: float
        n_jobs: int | None
        device: str | None
        verbose: int
        method: ClassVar[str]

    @fit_context(prefer_skip_nested_validation=False)
    def partial_fit(
        self,
        X: AdapterSet | Iterable[Adapter],
        y: object = None,
        *,
        grams: Mapping[str, Any] | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Add adapters to the merge of those that were given before, in memory that does not grow with their number.

        The sums of RegMean are kept for each module: at most two matrices of (d_out, d_in) and one of (d_in, d_in), in
        float64. Nothing is lost: ``merged_`` is that of ``fit`` on all adapters with all Grams, but for rounding.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            Adapters that come on top of those before. Each has to fit the modules that are known; new modules may come.
        y : None
            Ignored.
        grams : dict of str to Grams, default=None
            For the name of each adapter of this call what :func:`lorakit.collect_grams` returned. None takes the
            estimator's ``grams``.
        weights : array-like of shape (n_adapters,), default=None
            Non-negative weights of these adapters, such as the numbers of samples that they were trained on. They count
            beside those of other calls as they are, and are normalised over all. None is 1 each.

        Returns
        -------
        self
            With the merge of all adapters until now in ``merged_``, cut to rank ``k``, and the other attributes of
            ``fit``.

        Raises
        ------
        ValueError
            If ``k`` is no number; if the estimator has ``weights`` or ``strengths``, which go with a whole set; with
            ``scale_scope='model'`` and ``scale='match'``; if Grams are missing, or their sum is singular.
        IncompatibleAdaptersError
            If an adapter or its Grams do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from lorakit import RegMeanMerger
        >>> from lorakit.activations import Grams
        >>> from lorakit.testing import make_adapters
        >>> X = make_adapters(2, ranks=4, random_state=0)
        >>> inputs = {"task0": np.ones((24, 24)), "task1": np.eye(24)}
        >>> grams = {name: Grams({"layer.0": gram, "layer.1": gram}) for name, gram in inputs.items()}
        >>> merger = RegMeanMerger(k=6)
        >>> for adapter in X:  # the Grams of an adapter are no longer needed after its call
        ...     merger = merger.partial_fit([adapter], grams={adapter.name: grams[adapter.name]})
        >>> merger.n_adapters_in_, merger.merged_
        (2, Adapter('regmean', modules=2, rank=6, dtype=float32))
        """
        k = check_partial(self)
        X = check_adapters(X)
        values = np.ones(len(X)) if weights is None else np.asarray(weights, dtype=np.float64)
        check_weights(values, X.names, signed=False)
        known = self.grams if grams is None else grams
        check_grams(X, known)
        state: RunningMoments = getattr(self, "running_moments_", None) or RunningMoments()
        check_fit(state, X)
        wanted = np.flatnonzero(values)
        counted, values = X[wanted], values[wanted]
        before = {**state.unclaimed, **state.modules}
        _check_widths(counted, known, before)

        def task_of(module: str) -> Any:
            return partial(
                advanced,
                before=before.get(module),
                weights=values.tolist(),
                grams=[known[name].get(module) for name in counted.names],
                offdiagonal=self.offdiagonal,
                device=self.device,
            )

        with closing(iter_modules(task_of, counted, n_jobs=self.n_jobs, verbose=self.verbose)) as found:
            new = dict(zip(counted.module_names, found, strict=True))
        for module in dict.fromkeys(module for name in counted.names for module in known[name]):
            if module not in new:
                given = [known[name].get(module) for name in counted.names]
                new[module] = without_update(before.get(module), values.tolist(), given, self.offdiagonal)
        claimed = {*state.modules, *counted.module_names}
        modules = {**state.modules, **{module: own for module, own in new.items() if module in claimed}}
        dtype = promoted_dtype({*state.dtypes, counted.dtype})
        results, learned = self._results_of(modules, k, state.weight + float(values.sum()), dtype)
        # nothing is changed before all of it has worked
        state.modules = modules
        state.unclaimed = {m: own for m, own in {**state.unclaimed, **new}.items() if m not in claimed}
        state.add(X, counted, values)
        self.running_moments_, self.n_adapters_in_ = state, len(state.adapters)
        self.module_names_in_ = tuple(modules)
        self.singular_values_, self.truncation_error_ = learned
        self.merged_ = merged_of(self, state, results)
        return self

    def _results_of(
        self, modules: Mapping[str, ModuleMoments], k: int, weight: float, dtype: torch.dtype
    ) -> tuple[Results, tuple[dict[str, Any], dict[str, Any]]]:
        """Return the result of every module, with all its singular values and the norm of those cut."""
        results, values, errors = Results(), {}, {}
        for module, own in modules.items():
            svd = svd_of_sum([own.sums.mean(self.ridge)], [1.0])
            ((factors, found),) = svd_cuts(svd, [min(k, len(svd[1]))])
            scale = scale_of(self, partial(frobenius_norm, factors), own.norms / weight)
            results.put(module, to_output(factors.scaled(scale), dtype, module))
            values[module], errors[module] = found["singular_values"], found["truncation_error"]
        return results, (values, errors)


def _check_widths(X: AdapterSet, grams: Mapping[str, Any], before: Mapping[str, ModuleMoments]) -> None:
    """Check the widths of Grams of modules that an adapter lacks, and of those that came without a module."""
    widths = {module: own.sums.plain.shape[1] for module, own in before.items()}
    for adapter in X:
        for module, info in adapter.infos.items():
            widths.setdefault(module, info.d_in)
    for adapter in X:
        for module, gram in grams[adapter.name].items():
            if gram.d_in != widths.setdefault(module, gram.d_in):
                raise IncompatibleAdaptersError(
                    f"the Grams of adapter {adapter.name!r} have d_in {gram.d_in} at module {module!r}",
                    module=module,
                    adapters=[adapter.name],
                    remedy=f"others have {widths[module]} there; collect all with one base model",
                )
