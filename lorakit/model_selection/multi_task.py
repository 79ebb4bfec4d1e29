"""Scorer that measures a merge on several tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import get_scorer, log_loss, make_scorer
from torch import nn

from .._models import BaseModel, Forward, adapted, as_array, outputs_of, sendable
from .._sklearn.scoring import BaseScorer
from ..adapters import Adapter
from ._answers import ClassAnswers, PlainAnswers, column_labels
from ._merging import merged_of

_OUTPUTS = ("all", "mean", "worst")
_TASKS_OF = ("all", "fold", "rest")


class MultiTaskScorer:
    """Scorer that puts the merged adapter on the base model and measures it on several tasks.

    For the ``scoring`` of scikit-learn's searches, of ``cross_val_score`` and of :class:`~lorakit.WeightSearch`. The
    base model is not changed. Higher scores must be better.

    Parameters
    ----------
    base_model : torch.nn.Module or callable
        The base model, or a function of no arguments that loads it. The function is called once in each process,
        which keeps the model; a model itself is sent to worker processes with every candidate.
    tasks : mapping of str to (X, y)
        For each task's name, its inputs, in the form that ``forward`` takes, and their true labels or values.
    forward : callable, or mapping of task name to callable
        ``forward(model, X)`` returns the model's outputs for the inputs: class scores of shape (n, n_classes), that is
        logits or logarithms of probabilities, or n answers (numbers, texts, labels). For process engines it must
        pickle.
    metric : str, scorer or callable, or mapping of task name to these, default='accuracy'
        A name that ``sklearn.metrics.get_scorer`` knows, a scorer from ``sklearn.metrics.make_scorer``, or
        ``metric(y_true, y_pred)``, where ``y_pred`` are the labels of the largest class scores, or the answers.
    output : {'all', 'mean', 'worst'}, default='all'
        'all': a dict of every task's score, 'mean' and 'worst'; a search must then be told which of them decides, for
        example by ``refit='mean'``. 'mean' or 'worst': that number alone, which halving searches and ``WeightSearch``
        require.
    tasks_of : {'all', 'fold', 'rest'}, default='all'
        Which tasks are measured. 'fold': the tasks that have the name of an adapter in the X that the search passes,
        which under ``LeaveOneOut`` is the left-out adapter; 'rest': all other tasks. With these two the tasks differ
        from fold to fold, so that a dict has 'mean' and 'worst' only.
    reference : mapping of str to float, default=None
        A positive score for each task, such as that of its own adapter, by which its score is divided.
    classes : array-like, or mapping of task name to array-like, default=None
        The labels of the columns of class scores, in their order. None: 0, 1, ... where ``y`` are integers, the sorted
        labels in ``y`` otherwise.
    batch_size : int, default=None
        Inputs passed to ``forward`` at a time, as slices of X. None passes all of a task.
    prefix : str, default=''
        Put before the adapter's module names, as in :func:`lorakit.applied`.

    See Also
    --------
    AllAdapters : The splitter to search with it.
    AdapterClassifier : For cross-validation over the data of one task.

    Examples
    --------
    >>> import torch
    >>> from sklearn.model_selection import GridSearchCV
    >>> from lorakit import AdapterSet, AllAdapters, MultiTaskScorer, SVDMerger
    >>> from lorakit.testing import make_adapters
    >>> adapters = AdapterSet(make_adapters(ranks=(2, 3), n_modules=1, random_state=0))
    >>> model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 16))})
    >>> x = torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
    >>> tasks = {a.name: (x, (x @ a["layer.0"].delta().T).argmax(1)) for a in adapters}
    >>> def forward(model, x):
    ...     return model["layer"](x)
    >>> scorer = MultiTaskScorer(model, tasks, forward)
    >>> search = GridSearchCV(SVDMerger(), {"k": [1, 2, 4]}, scoring=scorer, refit="mean", cv=AllAdapters())
    >>> search.fit(adapters).best_params_
    {'k': 4}
    >>> sorted(name for name in search.cv_results_ if name.startswith("mean_test"))
    ['mean_test_mean', 'mean_test_task0', 'mean_test_task1', 'mean_test_worst']
    """

    def __init__(
        self,
        base_model: BaseModel,
        tasks: Mapping[str, tuple[Any, ArrayLike]],
        forward: Forward | Mapping[str, Forward],
        *,
        metric: Any = "accuracy",
        output: str = "all",
        tasks_of: str = "all",
        reference: Mapping[str, float] | None = None,
        classes: Any = None,
        batch_size: int | None = None,
        prefix: str = "",
    ) -> None:
        if not (isinstance(base_model, nn.Module) or callable(base_model)):
            raise TypeError(
                f"base_model must be a torch module, or a function that loads one; got {type(base_model).__name__}"
            )
        for name, value, options in (("output", output, _OUTPUTS), ("tasks_of", tasks_of, _TASKS_OF)):
            if value not in options:
                raise ValueError(f"{name} must be one of {options}; got {value!r}")
        if batch_size is not None and not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise ValueError(f"batch_size must be None or an integer from 1; got {batch_size!r}")
        self.base_model = sendable(base_model)
        self.tasks = _checked_tasks(tasks)
        self.forward = _by_task("forward", forward, self.tasks)
        self.metric = _by_task("metric", metric, self.tasks)
        self.classes = _by_task("classes", classes, self.tasks)
        self.output = output
        self.tasks_of = tasks_of
        self.reference = _checked_reference(reference, self.tasks)
        self.batch_size = batch_size
        self.prefix = prefix
        for name, how in self.forward.items():
            if not callable(how):
                raise TypeError(f"forward of task {name!r} must be a function of a model and inputs; got {how!r}")
        for name, how in self.metric.items():
            if isinstance(how, str):
                get_scorer(how)  # raises on names that it does not know
            elif not callable(how):
                raise TypeError(f"metric of task {name!r} must be a name or a callable; got {how!r}")

    def __call__(self, estimator: Any, X: Iterable[Adapter] | None = None, y: object = None) -> Any:
        """Score a merge.

        Parameters
        ----------
        estimator : estimator
            A fitted merger, a pipeline that ends in one, or a search that kept its best.
        X : AdapterSet or list of Adapter, default=None
            The adapters of the fold; only ``tasks_of`` looks at their names.
        y : None
            Ignored.

        Returns
        -------
        dict of str to float, or float
            As ``output`` says.
        """
        scores = self.evaluate(merged_of(estimator), self._judged(X))
        values = list(scores.values())
        summary = {"mean": float(np.mean(values)), "worst": min(values)}
        if self.output != "all":
            return summary[self.output]
        return scores | summary if self.tasks_of == "all" else summary

    def evaluate(self, adapter: Adapter | None = None, tasks: Iterable[str] | None = None) -> dict[str, float]:
        """Measure one adapter, or the base model, on each task.

        Parameters
        ----------
        adapter : Adapter or None, default=None
            None measures the base model itself.
        tasks : iterable of str, default=None
            Names of the tasks to measure. None: all of them.

        Returns
        -------
        dict of str to float
            Scores by task, divided by ``reference`` if there is one.
        """
        names = list(self.tasks) if tasks is None else list(tasks)
        if unknown := [name for name in names if name not in self.tasks]:
            raise ValueError(f"there are no tasks {unknown}; the tasks are {list(self.tasks)}")
        scores = {}
        with adapted(self.base_model, adapter, prefix=self.prefix) as model:
            for name in names:
                try:
                    scores[name] = self._score(model, name)
                except Exception as error:
                    error.add_note(f"in task {name!r}, on {'the base model' if adapter is None else adapter}")
                    raise
        return scores

    def _score(self, model: nn.Module, name: str) -> float:
        X, y = self.tasks[name]
        outputs = outputs_of(model, self.forward[name], X, len(y), self.batch_size)
        answers: Any = PlainAnswers(outputs)
        if outputs.ndim == 2:
            answers = ClassAnswers(outputs, column_labels(self.classes[name], y, outputs.shape[1]))
        metric = self.metric[name]
        if metric == "neg_log_loss" and outputs.ndim == 2:
            # told the classes, of which a few texts of a task with many need not have all
            labels = answers.classes_
            metric = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba", labels=labels)
        if isinstance(metric, (str, BaseScorer)):
            score = get_scorer(metric)(answers, X, y)
        else:
            score = metric(y, answers.predict(X))
        if not np.isfinite(score):
            raise ValueError(f"metric={metric!r} gave {score} on {len(y)} inputs; expected a finite number")
        return float(score) / self.reference[name]

    def _judged(self, X: Iterable[Adapter] | None) -> list[str]:
        if self.tasks_of == "all":
            return list(self.tasks)
        if X is None:
            raise ValueError(f"tasks_of={self.tasks_of!r} looks at the names of the adapters in X; got none")
        names = {adapter.name for adapter in X}
        judged = [name for name in self.tasks if (name in names) == (self.tasks_of == "fold")]
        if not judged:
            raise ValueError(
                f"tasks_of={self.tasks_of!r} leaves no task: X has the adapters {sorted(names)}, the tasks are "
                f"{list(self.tasks)}; adapters and tasks belong together by name (Adapter.renamed gives another)"
            )
        return judged

    def __sklearn_clone__(self) -> Self:
        return self  # searches clone their scoring; the model in it would be copied

    def __repr__(self) -> str:
        metrics = list(self.metric.values())
        metric = metrics[0] if all(m == metrics[0] for m in metrics) else self.metric
        return f"MultiTaskScorer({list(self.tasks)}, metric={metric!r}, output={self.output!r})"


def _checked_tasks(tasks: Mapping[str, tuple[Any, ArrayLike]]) -> dict[str, tuple[Any, NDArray[Any]]]:
    if not isinstance(tasks, Mapping) or not tasks:
        raise TypeError(f"tasks must map at least one name to a pair (X, y); got {tasks!r}")
    checked = {}
    for name, pair in tasks.items():
        if name in ("mean", "worst"):
            raise ValueError(f"a task cannot be called {name!r}, which is what a summary of the scores is called")
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"task {name!r} must be a pair (X, y); got {type(pair).__name__}")
        X, y = pair[0], as_array(pair[1])
        if y.ndim != 1 or not len(y):
            raise ValueError(f"task {name!r}: y must have shape (n,), n at least 1; got {y.shape}")
        # of a mapping, such as a tokenizer's output, the length is not the number of inputs
        if hasattr(X, "__len__") and not isinstance(X, Mapping) and len(X) != len(y):
            raise ValueError(f"task {name!r} has {len(X)} inputs and {len(y)} entries of y")
        checked[name] = (X, y)
    return checked


def _checked_reference(reference: Mapping[str, float] | None, tasks: Mapping[str, Any]) -> dict[str, float]:
    by_task = _by_task("reference", 1.0 if reference is None else reference, tasks)
    for name, value in by_task.items():
        if not 0 < value < np.inf:
            raise ValueError(f"reference of task {name!r} must be above 0, for scores are divided by it; got {value}")
    return by_task


def _by_task(what: str, value: Any, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return one value a task, of one for all or of a mapping by name."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(tasks, value)
    if set(value) != set(tasks):
        raise ValueError(f"{what} names {sorted(value)}; expected one entry for each of the tasks {sorted(tasks)}")
    return {name: value[name] for name in tasks}
