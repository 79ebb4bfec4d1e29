"""Distilled merging: optimise the merged factors so that every adapter's head sees its own adapter's answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from joblib import hash as content_hash
from torch import nn

from .._execution import report_done
from .._models import BaseModel, held
from .._ranks import Rank
from .._sklearn import Interval, StrOptions
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import GAUGES, BaseMerger, Learned
from ..distillation._checkpoint import Checkpoint
from ..distillation._inputs import key_of
from ..distillation._named import Named
from ..distillation._progress import step_bar
from ..distillation._split import split_inputs
from ..distillation._training import Course, Training, balanced
from ..distillation.generic import generic_inputs
from ..distillation.heads import Forwards, Heads
from ..distillation.nearness import Changes, Teachers
from ..distillation.targets import Targets, collect_targets, distinctly_named, untouched_outputs
from ..exceptions import ParameterError
from ..factors import LoraFactors, promoted_dtype
from ._common import like_outer
from ._start import cut_start, usual_start

_SHARED = ("model", "inputs", "forwards", "targets", "owners")  # by all clones: they can take gigabytes


class DistillMerger(BaseMerger):
    r"""Multi-head distillation: train the merged factors until every adapter's head answers as on its own adapter.

    .. math:: \min_{A, B, T} \sum_i w_i \, \mathrm{mean}_x \, \mathrm{KL}\big( \mathrm{softmax}\, h_i(\theta +
        \Delta_i, x) \,\big\|\, \mathrm{softmax}\, h_i(\theta + B A, x) / T_i \big)

    with :math:`h_i` the head of adapter i and :math:`\theta` the base model. Every input teaches every head, so that
    neither labels nor inputs of any task are needed: any texts do, better with some that :func:`pseudo_inputs` makes
    from the adapters. Training starts from another merge, and changes nothing but its factors A and B. As a
    temperature :math:`T_i` of each head is learned along and then thrown away, the merge has to match the order of a
    teacher's classes and not the length of its scores. SAMerging [1]_ distils several teachers into one merge on
    unlabelled data of their tasks; asking every head about every input, of any task or none, is lorakit's own.

    It takes the base model, seconds to minutes, and about the memory of the model and one adapter in training.

    Parameters
    ----------
    k : int, float in (0, 1), 'auto', RankBudget, RankRule or None, default=None
        Rank of the result, as ``start`` takes it. None is the rank of ``start``, by default the sum of the ranks.
    start : merger or Adapter, default=None
        Makes the factors that training starts from. It is cloned, and takes ``k``, ``weights``, ``n_jobs`` and
        ``device`` from here. None: :class:`TSVMerger`, in no module longer than 1.4 mean norms of the adapters. An
        Adapter, such as a merge that was trained at a higher rank, is cut to ``k``, an int or None, and trained on.
    model : torch.nn.Module or callable
        The base model, or a function of no arguments that loads it, as for :class:`~lorakit.MultiTaskScorer`. It is
        not changed. Clones share it.
    inputs : list, array, tensor or mapping of arrays, default=None
        What ``forwards`` takes, such as a list of texts. None: :func:`generic_inputs`, texts of no task.
    forwards : callable, or mapping of str to callable
        The heads, as in :func:`lorakit.collect_targets`: ``forward(model, inputs)`` gives class scores of shape
        (n, n_classes) through which gradients flow, or a mapping of adapter names to these.
    match : {'classes', 'changes'}, default='classes'
        What the merge is trained to match. 'changes' is for adapters without classes: ``forward`` then gives what a
        head would look at, such as embeddings or the hidden states of last tokens, (n, width). An error in these
        counts in the directions in which that adapter changes them, by the metric
        :math:`C_i / \mathrm{mean}\, d^T C_i d`, with :math:`C_i` the second moments of its changes d, so that the
        base model has a loss of 1. There is no temperature. The merge agrees where it is nearer to the adapter than
        half of the change. Give each input an owner and a high ``own_weight``, such as 1e9: what several adapters
        change in one input contradicts itself.
    targets : Targets, default=None
        What :func:`lorakit.collect_targets` returned for these inputs. It may have more adapters than are merged. None
        collects them in ``fit``; a search over parameters does that once for each candidate.
    owners : sequence of str or None, default=None
        For each input the name of the adapter whose task it belongs to, or None where it belongs to none.
    own_weight : float, default=10.0
        How many times as much as the other heads an input's own head weighs.
    epochs : int, default=8
        Times through the inputs.
    learning_rate : float, default=1e-3
        Of AdamW, after a warm-up and falling to zero.
    batch_size : int, default=32
        Inputs of one step.
    temperature : float or None, default=None
        Divides the merge's scores in the loss. None learns one for each head, beginning with 1.
    holdout : float, default=0.1
        Share of the inputs, in [0, 1), on which agreement is measured and which are not trained on. With 0 it is
        measured on the inputs of the training.
    patience : int or None, default=None
        Stop after this many epochs in which agreement did not rise. None runs all epochs, unless the merge has become
        the same as its teachers. The result is of the epoch with the highest agreement, of equal ones that of the
        lowest loss on the inputs that are held out; the start counts as an epoch.
    checkpoint : path, default=None
        A file that is written after each epoch; a fit that finds it goes on from there.
    prefix : str, default=''
        Put before the adapters' module names, as in :func:`lorakit.applied`.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        Non-negative weights of the heads and of the start, normalised to sum 1. None weighs all equally. A weight of 2
        does not equal listing the adapter twice: inputs are divided among all that are listed.
    strengths : array-like of shape (n_adapters,) or dict of name to float, default=None
        In place of ``weights``: factors as they stand, by which the adapters' updates are multiplied before they teach
        and are merged. A negative one subtracts, 0 leaves the adapter out. Not with ``targets``.
    scale : float or 'match', default=1.0
        Factor on the merged update after the training, which finds the norm by itself. 'match' gives it
        ``scale_target`` times the mean norm of the adapters' updates.
    scale_target : float, default=1.0
        For ``scale='match'``: the wanted norm, in mean norms of the adapters.
    scale_scope : {'module', 'model'}, default='module'
        For ``scale='match'``: match each module's norm, or one factor for the whole model. An adapter that lacks a
        module counts there with norm zero.
    random_state : int, RandomState or None, default=None
        Draws the inputs that are held out and the order of the others. One seed gives one result on one device.
    n_jobs : int, default=None
        Modules that ``start`` merges at a time; None means 1 unless in a ``joblib.parallel_config`` context.
    device : str, default=None
        Torch device of the start and of the factors in training. None: the CPU for the start, and the model's device.
    verbose : int, default=0
        From 1, a progress bar over the steps, or over modules; above 1, joblib's messages too.

    Attributes
    ----------
    merged_ : Adapter
        The result.
    module_names_in_ : tuple of str
        Modules merged.
    n_adapters_in_ : int
        Number of adapters merged.
    loss_curve_ : list of float
        Mean loss over the steps of each epoch, in nats.
    agreement_curve_ : list of float
        Share of pairs of an input that is held out and a head for which the merge and the adapter name the same class,
        each pair with its weight in the loss: of the start, then after each epoch.
    temperatures_ : dict of str to float
        The temperature of each head when the factors were best.

    See Also
    --------
    collect_targets : Asks the adapters, once for many fits.
    AgreementScorer : Agreement on any inputs, for searches.
    TSVMerger : The default start, and the merge to take without the base model.

    References
    ----------
    .. [1] SAMerging, arXiv 2512.21288.

    Examples
    --------
    >>> import torch
    >>> from lorakit import DistillMerger
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(4, 8), n_modules=1, random_state=0)
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 16))})
    >>> inputs = torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    >>> def forward(model, x):
    ...     return {"task0": model["layer"](x)[:, :8], "task1": model["layer"](x)[:, 8:]}
    >>> merger = DistillMerger(k=6, model=model, inputs=inputs, forwards=forward, learning_rate=0.02, random_state=0)
    >>> merger.fit(adapters).merged_
    Adapter('distill', modules=1, rank=6, dtype=float32)
    >>> max(merger.agreement_curve_) > merger.agreement_curve_[0]
    True
    """

    method = "distill"
    needs_data = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMerger._parameter_constraints,
        "start": [BaseMerger, Adapter, None],
        "model": [nn.Module, callable, None],
        "inputs": "no_validation",  # type: ignore[dict-item]  # whatever forwards takes
        "forwards": [callable, dict, Mapping, None],
        "match": [StrOptions({"classes", "changes"})],
        "targets": [Targets, None],
        "owners": ["array-like", None],
        "own_weight": [Interval(Real, 0, None, closed="neither")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither"), None],
        "holdout": [Interval(Real, 0, 1, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "checkpoint": [str, os.PathLike, None],
        "prefix": [str],
    }

    def __init__(
        self,
        k: Rank = None,
        *,
        start: BaseMerger | Adapter | None = None,
        model: BaseModel | None = None,
        inputs: Any = None,
        forwards: Forwards | None = None,
        match: str = "classes",
        targets: Targets | None = None,
        owners: Sequence[str | None] | None = None,
        own_weight: float = 10.0,
        epochs: int = 8,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        temperature: float | None = None,
        holdout: float = 0.1,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        prefix: str = "",
        weights: Any = None,
        strengths: Any = None,
        scale: Any = 1.0,
        scale_target: float = 1.0,
        scale_scope: str = "module",
        random_state: Any = None,
        n_jobs: int | None = None,
        device: str | None = None,
        verbose: int = 0,
    ) -> None:
        self.k = k
        self.start = start
        self.model = model
        self.inputs = inputs
        self.forwards = forwards
        self.match = match
        self.targets = targets
        self.owners = owners
        self.own_weight = own_weight
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.temperature = temperature
        self.holdout = holdout
        self.patience = patience
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether the adapters must share one rank at each module: whether ``start`` needs it."""
        return isinstance(start := self._start(), BaseMerger) and start.needs_equal_ranks

    @property
    def invariances(self) -> frozenset[str]:
        """Changes of factors that leave the result as it is: those of ``start``, whose factors are balanced."""
        start = self._start()
        return start.invariances if isinstance(start, BaseMerger) else frozenset(GAUGES)

    @property
    def weights_as_copies(self) -> bool:
        """False: inputs are divided among all adapters that are listed."""
        return False

    def _start(self) -> BaseMerger | Adapter:
        return usual_start() if self.start is None else self.start

    def _fit_ranks(self, X: Any, mergers: Sequence[Self]) -> None:
        """Train at each rank by itself; then the modules are scaled and stored as those of any merger."""
        X = check_adapters(X)
        for merger in mergers:
            training = merger._trained(X)
            worker = copy(merger)
            worker._factors = training.result()
            super(DistillMerger, worker)._fit_ranks(X, [merger])
            merger.loss_curve_ = training.losses
            merger.agreement_curve_ = training.agreements
            merger.temperatures_ = training.best_temperatures()

    def _for_module(self, module: str) -> Self:
        worker = self._without_data()
        worker.start = None
        worker._factors = {module: self._factors[module]}
        worker._module = module
        return worker

    def _merge_module_path(
        self, updates: Sequence[LoraFactors], weights: np.ndarray, ks: Sequence[int | None], rng: np.random.RandomState
    ) -> list[tuple[LoraFactors, Learned]]:
        return [(self._factors[self._module], {}) for _ in ks]

    def _trained(self, X: AdapterSet) -> Training:
        """Merge with the start, and train."""
        if self.model is None or self.forwards is None:
            raise ValueError(
                "DistillMerger needs the base model and the adapters' heads: pass model= and forwards=, or take a "
                "method that needs neither, such as TSVMerger(scale='match')"
            )
        given, weights, _ = self._weighed(X)
        taught = distinctly_named(given[np.flatnonzero(weights)])
        if self.strengths is not None and self.targets is not None:
            raise ParameterError(
                "got strengths, and targets, which are answers of the adapters as they are",
                expected="one of them",
                remedy="leave targets to this merger: it asks the adapters times their strengths",
            )
        seed = self._seed()
        first = self._start()
        if isinstance(first, Adapter):
            start = cut_start(first, taught, self.k)
        else:
            start = like_outer(first, self, seed).fit(X if self.strengths is None else taught).merged_
        inputs = generic_inputs() if self.inputs is None else self.inputs
        targets = self.targets
        if targets is None:
            targets = collect_targets(
                self.model, taught, inputs, self.forwards, batch_size=self.batch_size, prefix=self.prefix
            )
        targets = targets.checked(taught.names, inputs)
        teachers = self._teachers(targets, taught.names, inputs)
        with held(self.model) as model:
            device = self.device or next((p.device for p in model.parameters()), torch.device("cpu"))
            training = Training(
                model,
                balanced(start, promoted_dtype([torch.float32, taught.dtype]), device),
                Heads(self.forwards, taught.names),
                list(taught.names),
                teachers,
                split_inputs(
                    inputs,
                    self.owners,
                    taught.names,
                    weights[weights > 0],
                    own_weight=self.own_weight,
                    holdout=self.holdout,
                    seed=seed,
                ),
                self._course(seed),
            )
            self._train(training, start, targets, taught.names, key_of(inputs))
        return training

    def _teachers(self, targets: Targets, names: Sequence[str], inputs: Any) -> Teachers:
        if self.match == "classes":
            return Teachers(targets, names)
        given: Any = (self.model, names, inputs, self.forwards)  # checked before
        return Changes(targets, names, untouched_outputs(*given, batch_size=self.batch_size))

    def _course(self, seed: int) -> Course:
        return Course(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            temperature=self.temperature if self.match == "classes" else 1.0,
            patience=self.patience,
            seed=seed,
            prefix=self.prefix,
        )

    def _train(
        self, training: Training, start: Adapter, targets: Targets, names: Sequence[str], inputs_key: str | None
    ) -> None:
        checkpoint = None
        if self.checkpoint is not None:
            taught = {name: np.asarray(targets[name]) for name in names}
            weights = training.inputs.weights.numpy()
            about = (training.course, self.match, training.inputs.held_out, inputs_key)
            key = (*about, dict(start), taught, weights)
            checkpoint = Checkpoint(self.checkpoint, str(content_hash(key)))
        with step_bar(self.verbose):
            training.run(report_done, checkpoint)

    @property
    def _held(self) -> tuple[str, ...]:
        """Parameters that clones share, and that records name only."""
        return (*_SHARED, "start") if isinstance(self.start, Adapter) else _SHARED

    def _without_data(self) -> Self:
        """Return a copy without what can be large."""
        bare = copy(self)
        for name in self._held:
            setattr(bare, name, None)
        return bare

    def __sklearn_clone__(self) -> Self:
        made: Self = super(DistillMerger, self._without_data()).__sklearn_clone__()
        return made.set_params(**{name: getattr(self, name) for name in self._held})

    def shown(self) -> Self:
        """Return a copy in which short texts stand for the model, the heads, the inputs and their scores."""
        shown = copy(self)
        shown.checkpoint = None  # the result does not depend on it
        for name in self._held:
            if (value := getattr(self, name)) is not None:
                setattr(shown, name, Named(value))
        return shown
