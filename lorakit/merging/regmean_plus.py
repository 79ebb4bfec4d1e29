"""RegMean++: RegMean on the inputs that the modules get in the merged model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from sklearn.utils.metaestimators import available_if
from torch import Tensor, nn

from .._models import BaseModel, held
from .._ranks import Rank, RankBudget
from .._validation import check_adapters
from ..activations import Gram, Grams, collect_grams, run_model
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..applying import applied
from ..distillation._named import Named
from ..distillation.targets import distinctly_named
from ..exceptions import ParameterError, Words
from .regmean import RegMeanMerger

_SHARED = ("model", "batches", "forward")  # by all clones: they can take gigabytes
_BLOCK = re.compile(r"(?:^|.*?\.)\d+(?=\.|$)")  # a module's name up to its first number, such as "encoder.layer.3"


def _no_partial_fit(merger: object) -> bool:
    raise AttributeError(
        "RegMeanPlusMerger has no partial_fit: the inputs of a block depend on the merge of all adapters in the blocks "
        "before it; RegMeanMerger has one"
    )


class RegMeanPlusMerger(RegMeanMerger):
    r"""RegMean whose inputs are those that the merged model makes, block after block.

    RegMean asks that each module keeps an adapter's outputs on the inputs that it gets in *that adapter's* model. In
    the merged model it gets others, as the blocks before it are merged too. RegMean++ [1]_ merges the first block, runs
    the inputs of every task through it, merges the next block on what comes out, and so on. Within a block the inputs
    are those of the block with the task's own adapter on it.

    A block is all modules whose names begin alike up to their first number, such as ``encoder.layer.3``; modules
    without one are blocks of their own. Blocks are merged in the order in which they run.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, as for :class:`RegMeanMerger`. None: the largest rank among the adapters. Under a
        :class:`~lorakit.RankBudget`, which looks at all modules together, inputs are gathered behind blocks that are
        not cut.
    model : torch.nn.Module or callable
        The base model, or a function of no arguments that loads it. It is not changed, and runs in evaluation mode,
        once for each block, adapter and batch. Clones share it.
    batches : mapping of str to list
        For each adapter's name what the model is called with, one batch at a time, as in
        :func:`lorakit.collect_grams`: unlabelled data of its task. It may name more adapters than are merged.
    forward : callable, default=None
        ``forward(model, batch)`` runs the model, as in :func:`lorakit.collect_grams`.
    mask : 'auto', str, callable or None, default='auto'
        Which positions count, as in :func:`lorakit.collect_grams`.
    prefix : str, default=''
        Put before the adapters' module names, as in :func:`lorakit.applied`.
    offdiagonal : float, default=0.9
        Factor in [0, 1] on the entries of the second moments off their diagonals.
    ridge : float, default=1e-6
        Added to the diagonals, as in :class:`RegMeanMerger`.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights, normalised to sum 1. None weighs all adapters equally. A weight of 2 equals listing the
        adapter twice.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before inputs run
        through them and they are merged. A negative one subtracts, 0 leaves the adapter out.
    scale : float or 'match', default=1.0
        Factor on the merged update. 'match' gives it ``scale_target`` times the mean norm of the adapters' updates. The
        blocks behind which inputs are gathered have it too.
    scale_target : float, default=1.0
        For ``scale='match'``: the wanted norm, in mean norms of the adapters.
    scale_scope : {'module', 'model'}, default='module'
        For ``scale='match'``: match each module's norm, or one factor for the whole model, which while inputs are
        gathered is one for each block.
    n_jobs : int, default=None
        Modules merged at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    device : str, default=None
        Torch device of the algebra; None is the CPU. The model runs where it is.
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
    singular_values_ : dict of str to ndarray
        All singular values of the solution, by module, before ``scale``.
    truncation_error_ : dict of str to float
        Frobenius norm of what was cut off, by module, before ``scale``.

    See Also
    --------
    RegMeanMerger : Of inputs that were gathered before.
    DistillMerger : Trains the merge, on all heads.

    References
    ----------
    .. [1] Nguyen et al., "RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging",
       arXiv 2508.03121.

    Examples
    --------
    >>> import torch
    >>> from lorakit import RegMeanPlusMerger
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), d_in=16, d_out=16, random_state=0)
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))})
    >>> def forward(model, x):
    ...     return model["layer"][1](torch.tanh(model["layer"][0](x)))
    >>> generator = torch.Generator().manual_seed(0)
    >>> batches = {name: [torch.randn(50, 16, generator=generator)] for name in ("task0", "task1")}
    >>> RegMeanPlusMerger(k=6, model=model, batches=batches, forward=forward).fit(adapters).merged_
    Adapter('regmean_plus', modules=2, rank=6, dtype=float32)
    """

    method = "regmean_plus"
    paper = "arXiv 2508.03121"
    needs_data = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: known for name, known in RegMeanMerger._parameter_constraints.items() if name != "grams"},
        "model": [nn.Module, callable, None],
        "batches": [dict, Mapping, None],
        "forward": [callable, None],
        "mask": [str, callable, None],
        "prefix": [str],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        model: BaseModel | None = None,
        batches: Mapping[str, Iterable[Any]] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        mask: str | Callable[[Any], Tensor | None] | None = "auto",
        prefix: str = "",
        offdiagonal: float = 0.9,
        ridge: float = 1e-6,
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
        self.model = model
        self.batches = batches
        self.forward = forward
        self.mask = mask
        self.prefix = prefix
        self.offdiagonal = offdiagonal
        self.ridge = ridge
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @available_if(_no_partial_fit)
    def partial_fit(self, X: Any, y: object = None, **options: Any) -> Self:  # pragma: no cover
        """Not available: the inputs of a block depend on the merge of all adapters in the blocks before it."""
        return self

    def _fit_ranks(self, X: Any, mergers: Sequence[Self]) -> None:
        """Gather the inputs for each rank by itself: they depend on where the blocks before are cut."""
        X = check_adapters(X)
        for merger in mergers:
            worker = copy(merger)
            worker.grams = merger._gathered(X)
            for name in _SHARED:
                setattr(worker, name, None)
            super(RegMeanPlusMerger, worker)._fit_ranks(X, [merger])

    def _gathered(self, X: AdapterSet) -> dict[str, Grams]:
        """Return the second moments of each adapter's inputs, block after block."""
        if self.model is None or self.batches is None:
            raise ParameterError(
                "the method regmean_plus runs the base model on inputs of every adapter's task",
                remedy=Words(
                    "pass model= and batches={adapter.name: batches}, or take a method that needs neither, such as "
                    "TSVMerger(scale='match')",
                    "give them in Python, or take a method that needs neither, such as --method tsv",
                ),
            )
        X, weights, _ = self._weighed(X)
        weight_of: dict[str, float] = {}  # of adapters that are listed twice, the sum
        for name, weight in zip(X.names, weights.tolist(), strict=True):
            weight_of[name] = weight_of.get(name, 0.0) + weight
        taught = distinctly_named({id(adapter): adapter for adapter in X if weight_of[adapter.name]}.values())
        if missing := [name for name in taught.names if name not in self.batches]:
            raise ValueError(f"batches has no entry for the adapters {missing}; it has {list(self.batches)}")
        batches = {name: list(self.batches[name]) for name in taught.names}
        found: dict[str, dict[str, Gram]] = {name: {} for name in X.names}
        merged: list[Adapter] = []
        with held(self.model) as model, ExitStack() as stack:
            for block in self._blocks(model, taught, batches):
                parts = AdapterSet(part for adapter in taught if (part := _part(adapter, block)))
                grams = {part.name: self._grams(model, part, batches[part.name]) for part in parts}
                for name, of_block in grams.items():
                    found[name] |= of_block
                merged.append(self._merged(parts, grams, [weight_of[name] for name in parts.names]))
                stack.enter_context(applied(model, merged[-1], prefix=self.prefix))
        return {name: Grams(grams) for name, grams in found.items()}

    def _grams(self, model: nn.Module, part: Adapter, batches: Iterable[Any]) -> Grams:
        return collect_grams(model, part, batches, forward=self.forward, mask=self.mask, prefix=self.prefix)

    def _merged(self, parts: AdapterSet, grams: Mapping[str, Grams], weights: list[float]) -> Adapter:
        """Merge one block as the result will be."""
        names = set(RegMeanMerger().get_params(deep=False)) - {"grams", "weights", "strengths"}
        params = {name: getattr(self, name) for name in names} | {"grams": dict(grams), "weights": weights}
        merger = RegMeanMerger(**params)
        largest = max(merger._limits(parts).values())
        if isinstance(self.k, RankBudget):
            merger.set_params(k=largest)
        elif isinstance(self.k, Integral):
            merger.set_params(k=min(int(self.k), largest))  # no adapter of a later block may have as many
        return merger.fit(parts).merged_

    def _blocks(self, model: nn.Module, X: AdapterSet, batches: Mapping[str, Sequence[Any]]) -> list[list[str]]:
        """Group the adapted modules into blocks, in the order in which they first run."""
        blocks: dict[str, list[str]] = {}
        for module in dict.fromkeys([*self._run_order(model, X, batches), *X.module_names]):
            found = _BLOCK.match(module)
            blocks.setdefault(found.group() if found else module, []).append(module)
        return list(blocks.values())

    def _run_order(self, model: nn.Module, X: AdapterSet, batches: Mapping[str, Sequence[Any]]) -> list[str]:
        order: list[str] = []
        modules = dict(model.named_modules(remove_duplicate=False))
        with ExitStack() as stack, torch.no_grad():
            for adapter in X:
                stack.enter_context(applied(model, adapter, prefix=self.prefix))  # checks that the adapters fit
            for name in X.module_names:
                hook = modules[self.prefix + name].register_forward_pre_hook(lambda *_, name=name: order.append(name))
                stack.callback(hook.remove)
            for first in (batches[name][:1] for name in X.names):
                for batch in first:
                    run_model(model, batch) if self.forward is None else self.forward(model, batch)
        return order

    def shown(self) -> Self:
        """Return a copy in which short texts stand for the model and the inputs."""
        shown = copy(self)
        for name in _SHARED:
            if (value := getattr(self, name)) is not None:
                setattr(shown, name, Named(value))
        return shown

    def __sklearn_clone__(self) -> Self:
        bare = copy(self)
        for name in _SHARED:
            setattr(bare, name, None)
        made: Self = super(RegMeanPlusMerger, bare).__sklearn_clone__()
        return made.set_params(**{name: getattr(self, name) for name in _SHARED})


def _part(adapter: Adapter, block: Sequence[str]) -> Adapter | None:
    """Return some modules of an adapter; None if it has none of them."""
    names = [name for name in block if name in adapter]
    kinds = {name: adapter.infos[name].kind for name in names}
    return Adapter({name: adapter[name] for name in names}, name=adapter.name, kinds=kinds) if names else None
