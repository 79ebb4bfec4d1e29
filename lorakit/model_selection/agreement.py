"""How often a merge agrees with the adapters that it was made of: a score that needs no labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from .._models import BaseModel, adapted, sendable
from ..adapters import Adapter
from ..distillation._inputs import count, in_order, lengths_of
from ..distillation.heads import Forwards, Heads
from ..distillation.nearness import Teachers, nearness
from ..distillation.targets import Targets
from ._merging import merged_of


class AgreementScorer:
    """Scorer that needs no labels: how often a merge and the adapters themselves name the same class.

    It puts the merged adapter on the base model, asks every adapter's head about all inputs, and counts the pairs of
    an input and a head for which the class of the highest score is the one that the head named with its own adapter.
    For the ``scoring`` of scikit-learn's searches, of ``cross_val_score`` and of :class:`~lorakit.WeightSearch`: to
    choose a method, a rank or ``scale_target``. The inputs need not belong to any adapter's task.

    Parameters
    ----------
    base_model : torch.nn.Module or callable
        The base model, or a function of no arguments that loads it, as for :class:`~lorakit.MultiTaskScorer`.
    inputs : list, array, tensor or mapping of arrays
        What ``forwards`` takes.
    forwards : callable, or mapping of str to callable
        As in :func:`lorakit.collect_targets`.
    targets : Targets
        What :func:`lorakit.collect_targets` returned for these inputs.
    batch_size : int, default=32
        Inputs passed to a forward at a time.
    prefix : str, default=''
        Put before the adapter's module names, as in :func:`lorakit.applied`.

    Raises
    ------
    ValueError
        If ``targets`` was collected on other inputs.

    See Also
    --------
    MultiTaskScorer : Measures accuracy, where there are labels.

    Examples
    --------
    >>> import torch
    >>> from sklearn.model_selection import GridSearchCV
    >>> from lorakit import AgreementScorer, AllAdapters, SVDMerger, collect_targets
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(ranks=(2, 3), n_modules=1, random_state=0)
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 16, bias=False))})
    >>> inputs = torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    >>> def forward(model, x):
    ...     return model["layer"](x)
    >>> targets = collect_targets(model, adapters, inputs, forward)
    >>> scorer = AgreementScorer(model, inputs, forward, targets)
    >>> search = GridSearchCV(SVDMerger(), {"k": [1, 2, 5]}, scoring=scorer, cv=AllAdapters()).fit(adapters)
    >>> search.best_params_
    {'k': 5}
    """

    def __init__(
        self,
        base_model: BaseModel,
        inputs: Any,
        forwards: Forwards,
        targets: Targets,
        *,
        batch_size: int = 32,
        prefix: str = "",
    ) -> None:
        self.base_model = sendable(base_model)
        self.inputs = inputs
        self.forwards = forwards
        self.targets = targets.checked((), inputs)
        self.batch_size = batch_size
        self.prefix = prefix
        self._heads = Heads(forwards, list(targets))

    def __call__(self, estimator: Any, X: Iterable[Adapter] | None = None, y: object = None) -> float:
        """Score a merge.

        Parameters
        ----------
        estimator : estimator
            A fitted merger, a pipeline that ends in one, or a search that kept its best.
        X, y : object
            Ignored.

        Returns
        -------
        float
            Share of pairs of an input and a head, from 0 to 1.
        """
        return self.evaluate(merged_of(estimator))

    def evaluate(self, adapter: Adapter | None = None) -> float:
        """Score one adapter, or the base model.

        Parameters
        ----------
        adapter : Adapter or None, default=None
            None measures the base model itself.

        Returns
        -------
        float
            Share of pairs of an input and a head, from 0 to 1.
        """
        batches = in_order(lengths_of(self.inputs), np.arange(count(self.inputs)), self.batch_size)
        teachers = Teachers(self.targets, list(self.targets))
        with adapted(self.base_model, adapter, prefix=self.prefix) as model:
            return nearness(model, self._heads, self.inputs, teachers, batches).agreement

    def __sklearn_clone__(self) -> Self:
        return self  # searches clone their scoring; the model in it would be copied

    def __repr__(self) -> str:
        return f"AgreementScorer({self.targets!r})"
