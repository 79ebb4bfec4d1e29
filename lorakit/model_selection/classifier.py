"""A classifier of task data: the base model with a merged adapter on it."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import nn

from .._models import BaseModel, Forward, adapted, as_array, outputs_of, sendable
from .._sklearn import Interval, fit_context
from .._validation import check_adapters
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ._answers import column_labels, decisions, probabilities, sort_columns
from ._merging import fit_merger, merged_of


class AdapterClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Classify a task's inputs with the base model and a merge of adapters on it.

    X holds the inputs of a task, texts or tokens, so that scikit-learn's tools for choosing a model work on the task
    itself: stratified folds, metrics by name, searches over the merger and its parameters. ``fit`` merges the adapters
    and learns nothing from the inputs; the base model is not changed.

    Parameters
    ----------
    base_model : torch.nn.Module or callable
        The base model, or a function of no arguments that loads it. The function is called once in each process,
        which keeps the model; a model itself is shared by clones, but sent to worker processes with every fit.
    adapters : AdapterSet or list of Adapter
        The adapters to merge.
    merger : estimator
        An unfitted merger, or a pipeline that ends in one. It is cloned.
    forward : callable
        ``forward(model, X)`` gives class scores of shape (n, n_classes): logits, or logarithms of probabilities. For
        process engines it must pickle.
    classes : array-like, default=None
        The labels of the columns of class scores, in their order. None takes the sorted labels in the ``y`` of ``fit``,
        which must then contain every label.
    batch_size : int, default=None
        Inputs passed to ``forward`` at a time, as slices of X. None passes all.
    prefix : str, default=''
        Put before the adapters' module names, as in :func:`lorakit.applied`.
    memory : str, path or joblib.Memory, default=None
        Where merges are kept. A merge does not depend on the inputs, so all folds of a search, its processes and later
        searches then share one for the same parameters and adapters. If the merger has no ``random_state``, they share
        one random draw.

    Attributes
    ----------
    merger_ : estimator
        The fitted clone of ``merger``.
    merged_ : Adapter
        The merge on the base model.
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.

    See Also
    --------
    MultiTaskScorer : For a merge that is to serve several tasks.

    Examples
    --------
    >>> import torch
    >>> from sklearn.model_selection import GridSearchCV
    >>> from lorakit import AdapterClassifier, AdapterSet, SVDMerger, TSVMerger
    >>> from lorakit.testing import make_adapters
    >>> adapters = AdapterSet(make_adapters(ranks=(2, 3), d_out=3, n_modules=1, random_state=0))
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 3))})
    >>> x = torch.randn(150, 24, generator=torch.Generator().manual_seed(0))
    >>> y = (x @ adapters["task0"]["layer.0"].delta().T).argmax(1)
    >>> def forward(model, x):
    ...     return model["layer"](torch.as_tensor(x))
    >>> classifier = AdapterClassifier(model, adapters, SVDMerger(), forward)
    >>> grid = {"merger": [SVDMerger(), TSVMerger()], "merger__k": [1, 3]}
    >>> search = GridSearchCV(classifier, grid, scoring=["accuracy", "neg_log_loss"], refit="accuracy", cv=3)
    >>> search.fit(x.numpy(), y.numpy()).best_params_["merger__k"]
    3
    >>> search.predict_proba(x[:2].numpy()).shape
    (2, 3)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "base_model": [nn.Module, callable],
        "adapters": "no_validation",
        "merger": "no_validation",
        "forward": [callable],
        "classes": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "prefix": [str],
        "memory": "no_validation",  # check_memory does it
    }

    def __init__(
        self,
        base_model: BaseModel,
        adapters: AdapterSet | Iterable[Adapter],
        merger: Any,
        forward: Forward,
        *,
        classes: ArrayLike | None = None,
        batch_size: int | None = None,
        prefix: str = "",
        memory: Any = None,
    ) -> None:
        self.base_model = base_model
        self.adapters = adapters
        self.merger = merger
        self.forward = forward
        self.classes = classes
        self.batch_size = batch_size
        self.prefix = prefix
        self.memory = memory

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Merge the adapters, or take the merge from ``memory``.

        Parameters
        ----------
        X : sequence of n inputs
            In the form that ``forward`` takes. Only their number is checked.
        y : array-like of shape (n,)
            Their labels, which define the classes.

        Returns
        -------
        self
        """
        labels = as_array(y)
        check_consistent_length(X, labels)
        check_classification_targets(labels)
        columns = np.unique(labels) if self.classes is None else as_array(self.classes)
        self._columns = column_labels(columns, labels, len(columns))
        self.classes_ = np.sort(self._columns)
        self.merger_ = fit_merger(self.merger, check_adapters(self.adapters), self.memory)
        merged_of(self.merger_)
        return self

    @property
    def merged_(self) -> Adapter:
        """What ``merger_`` merged."""
        return merged_of(self.merger_)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of the largest class score of each input, shape (n,)."""
        best = self._scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the softmax of the class scores, shape (n, n_classes); columns in the order of ``classes_``."""
        return probabilities(self._scores(X))

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return the class scores, shape (n, n_classes); of two classes their difference, shape (n,)."""
        return decisions(self._scores(X))

    def _scores(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        n_inputs = X.shape[0] if hasattr(X, "shape") else len(X)
        with adapted(self.base_model, self.merged_, prefix=self.prefix) as model:
            scores = outputs_of(model, self.forward, X, n_inputs, self.batch_size)
        if scores.ndim != 2:
            raise ValueError(
                f"forward made an array of shape {scores.shape} of {n_inputs} inputs; expected class scores of shape "
                f"({n_inputs}, {len(self.classes_)})"
            )
        labels = column_labels(self._columns, self._columns, scores.shape[1])
        return sort_columns(scores, labels)[0]

    def __sklearn_clone__(self) -> Self:
        # The model is shared: it is not changed, and a search would copy it for every fold
        hull = copy(self)
        hull.base_model = _shared_model
        cloned: Self = super(AdapterClassifier, hull).__sklearn_clone__()
        cloned.base_model = self.base_model
        return cloned

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"base_model": sendable(self.base_model)}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def _shared_model() -> nn.Module:
    raise AssertionError  # stands in for the model while the rest is cloned
