"""Fisher-weighted averaging: each entry of A and of B counts by how much its adapter's loss depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from itertools import compress
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .._ranks import Rank
from ..adapter_set import AdapterSet
from ..adapters import ModuleInfo
from ..base import BaseMerger, Learned
from ..exceptions import IncompatibleAdaptersError, ParameterError, Words
from ..factors import LoraFactors
from ..gradients import Fisher
from ..linalg import entrywise_mean
from ._common import cuts


class FisherMerger(BaseMerger):
    r"""Average A and B separately, each entry weighted by its second moment of gradients.

    .. math:: A' = \frac{\sum_i w_i F_i^A \odot A_i}{\sum_i w_i F_i^A}, \qquad
       B' = \frac{\sum_i w_i F_i^B \odot B_i}{\sum_i w_i F_i^B}

    Fisher merging [1]_ on the factors: :math:`F_i^A` and :math:`F_i^B`, of the shapes of :math:`A_i` and :math:`B_i`,
    hold the mean squared gradients of adapter i's loss, the diagonal of its Fisher information. An entry that one
    adapter's loss depends on and the others' do not is that adapter's. With equal moments this is
    :class:`AverageMerger`.

    It acts on the factors, as that one does: it needs one rank at each module, the products hold cross terms
    :math:`B_i A_j` of different adapters, and the result depends on how each update is factored, down to the order of
    its units. The moments belong to the factors that they were collected with. Adapters that were trained from one
    starting point suit it; the paper merges models that were fine-tuned from one checkpoint.

    It needs data: :func:`lorakit.collect_fisher` runs the model on some examples of each task.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result. None keeps the adapters' rank; a smaller one truncates by SVD. A share of the energy, 'auto'
        or a :class:`~lorakit.RankBudget` gives each module a rank of its own.
    fisher : dict of str to Fisher
        For each adapter's name what :func:`lorakit.collect_fisher` returned, or a
        :class:`~lorakit.gradients.Fisher` made from arrays. It may name more adapters than are merged, so that it
        stays valid on the subsets that cross-validation makes. An adapter that lacks a module has no say there.
        Entries whose moments are zero in all adapters get the mean that ``weights`` give.
    normalize : bool, default=True
        Whether to divide each adapter's moments by their Euclidean norm over the whole model, as the authors' code
        does: gradients of one task can be many times larger than those of another, which would then decide every
        entry. False is the paper's formula.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they are
        merged. A negative one subtracts, 0 leaves the adapter out. The moments stay as they are.
    scale : float or 'match', default=1.0
        Factor on the merged update. 'match' gives it ``scale_target`` times the mean norm of the adapters' updates.
    scale_target : float, default=1.0
        For ``scale='match'``: the wanted norm, in mean norms of the adapters.
    scale_scope : {'module', 'model'}, default='module'
        For ``scale='match'``: match each module's norm, or one factor for the whole model. An adapter that lacks a
        module counts there with norm zero.
    n_jobs : int, default=None
        Modules merged at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    device : str, default=None
        Torch device of the algebra; None is the CPU.
    verbose : int, default=0
        From 1, a progress bar over the modules; above 1, joblib's messages too.

    Attributes
    ----------
    merged_ : Adapter
        The result.
    module_names_in_ : tuple of str
        Modules merged.
    n_adapters_in_ : int
        Number of adapters merged.

    See Also
    --------
    collect_fisher : Gathers what this needs.
    AverageMerger : The same without data.
    RegMeanMerger : Also needs data, but takes any ranks and depends on the updates alone.

    References
    ----------
    .. [1] Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", arXiv 2111.09832.

    Examples
    --------
    >>> from lorakit import FisherMerger
    >>> from lorakit.gradients import Fisher
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 4), random_state=0)
    >>> # in place of what collect_fisher gathers:
    >>> fisher = {a.name: Fisher({m: (f.A**2, f.B**2) for m, f in a.items()}) for a in adapters}
    >>> FisherMerger(fisher=fisher).fit(adapters).merged_
    Adapter('fisher', modules=2, rank=4, dtype=float32)
    """

    method = "fisher"
    paper = "arXiv 2111.09832"
    needs_data = True
    _norms: Mapping[str, float] = MappingProxyType({})  # of a worker: what the moments of each adapter are divided by

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "fisher": [dict, None],
        "normalize": ["boolean"],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        fisher: Any = None,
        normalize: bool = True,
        weights: Any = None,
        strengths: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.fisher = fisher
        self.normalize = normalize
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def needs_equal_ranks(self) -> bool:
        """True."""
        return True

    @property
    def invariances(self) -> frozenset[str]:
        """None: the moments belong to the factors, and which unit meets which is a matter of order."""
        return frozenset()

    def _prepared(
        self, X: AdapterSet, weights: np.ndarray, ranks: Mapping[str, Sequence[int | None]], seed: int
    ) -> Self:
        """Check the moments of all modules before any is merged, and weigh each adapter's by their norm."""
        if self.fisher is None:
            raise ParameterError(
                "the method fisher needs to know the gradients of each adapter's task",
                remedy=Words(
                    "pass fisher={adapter.name: collect_fisher(model, adapter, batches, loss)} for every adapter, or "
                    "take a method that needs no data, such as AverageMerger",
                    "give them in Python, or take a method that needs no data, such as --method average",
                ),
            )
        if missing := [name for name in X.names if name not in self.fisher]:
            raise ValueError(f"fisher names no moments for the adapters {missing}; it names {list(self.fisher)}")
        for adapter in X:
            _check_moments(adapter.name, self.fisher[adapter.name], adapter.infos)
        worker = copy(self)
        if self.normalize:
            worker._norms = {name: self.fisher[name].norm() for name in X.names}
        return worker

    def _for_module(self, module: str) -> Self:
        worker = copy(self)
        worker.fisher = {name: {module: known[module]} for name, known in self.fisher.items() if module in known}
        return worker

    def _fit_module(self, X: AdapterSet, module: str, **options: Any) -> Any:
        having = [adapter.name for adapter in X if module in adapter]
        # of the copy: see _for_module
        self._moments = [(self.fisher[name][module], self._norms.get(name, 1.0)) for name in having]
        return super()._fit_module(X, module, **options)

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        having = [update.rank > 0 for update in updates]
        shares = weights[having] / weights[having].sum()
        updates = list(compress(updates, having))
        a, b = (_entrywise_mean(updates, self._moments, shares, part) for part in (0, 1))
        return [(factors, {}) for factors in cuts(LoraFactors(a, b), ks)]


def _entrywise_mean(
    updates: Sequence[LoraFactors], known: Sequence[tuple[LoraFactors, float]], weights: np.ndarray, part: int
) -> Tensor:
    """Merge the A of all adapters (part 0), or the B (part 1), in float64."""
    stack = torch.stack([tuple(update)[part].double() for update in updates])
    moments = torch.stack([tuple(pair)[part].to(stack) / (norm or 1.0) for pair, norm in known])
    merged = entrywise_mean(stack, moments, torch.tensor(weights).to(stack))
    return merged.to(updates[0].dtype)


def _check_moments(name: str, fisher: Any, infos: Mapping[str, ModuleInfo]) -> None:
    if not isinstance(fisher, Fisher):
        raise TypeError(
            f"fisher[{name!r}] is a {type(fisher).__name__}; expected a lorakit.gradients.Fisher, which collect_fisher "
            "returns and which can be made from arrays"
        )
    for module, info in infos.items():
        if module not in fisher:
            raise ValueError(
                f"fisher[{name!r}] has no moments for module {module!r}; collect_fisher gathers those of all modules "
                "of the adapter it is given, so were these collected with another adapter?"
            )
        seen = fisher[module]
        if (seen.rank, seen.d_in, seen.d_out) != (info.rank, info.d_in, info.d_out):
            raise IncompatibleAdaptersError(
                f"module {module!r} has rank {info.rank}, d_in {info.d_in}, d_out {info.d_out} in adapter "
                f"{name!r}, and rank {seen.rank}, d_in {seen.d_in}, d_out {seen.d_out} in its moments",
                module=module,
                remedy="collect them with the factors that are merged, after any step that changes these",
            )
