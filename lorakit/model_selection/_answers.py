"""A model's outputs in the forms that scikit-learn's metrics take: labels, probabilities, decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin


def column_labels(classes: ArrayLike | None, y: NDArray[Any], n_columns: int) -> NDArray[Any]:
    """Return the labels of the columns of class scores, shape (n_columns,).

    Parameters
    ----------
    classes : array-like or None
        As the user gave them. None: 0, 1, ... for integer labels, the sorted labels in ``y`` for others.
    y : ndarray of shape (n,)
        True labels.
    n_columns : int
        Number of columns.

    Raises
    ------
    ValueError
        If there are more or fewer labels than columns, or one in ``y`` has no column.
    """
    if classes is not None:
        labels = np.asarray(classes)
    else:
        labels = np.arange(n_columns) if y.dtype.kind in "iu" else np.unique(y)
    if len(labels) != n_columns:
        raise ValueError(
            f"forward made {n_columns} columns of class scores, for {len(labels)} classes: {_shown(labels)}; pass "
            "classes= the labels of all columns, in their order"
        )
    if len(unknown := np.setdiff1d(y, labels)):
        raise ValueError(f"y has the labels {_shown(unknown)}, which are not among the classes {_shown(labels)}")
    return labels


def _shown(labels: NDArray[Any]) -> str:
    return f"[{', '.join(map(repr, labels[:6].tolist()))}{', ...' if len(labels) > 6 else ''}]"


def sort_columns(scores: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return class scores and their labels in the order of the labels, which metrics such as the AUC rely on."""
    order = np.argsort(labels)
    return scores[:, order], labels[order]


def probabilities(scores: NDArray[Any]) -> NDArray[Any]:
    """Softmax of each row of class scores, shape (n, n_classes); in float64, as metrics check that rows sum to 1."""
    return np.asarray(softmax(scores.astype(np.float64), axis=1))


def decisions(scores: NDArray[Any]) -> NDArray[Any]:
    """Class scores as scikit-learn has them, shape (n, n_classes); of two classes the difference, shape (n,)."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


class ClassAnswers(ClassifierMixin, BaseEstimator):
    """Class scores of known inputs, presented as a fitted classifier so that any scorer of scikit-learn takes them.

    Parameters
    ----------
    scores : ndarray of shape (n, n_classes)
        Class scores.
    classes : ndarray of shape (n_classes,)
        The labels of their columns.
    """

    def __init__(self, scores: NDArray[Any], classes: NDArray[Any]) -> None:
        self.scores, self.classes_ = sort_columns(scores, classes)

    def predict(self, X: object) -> NDArray[Any]:
        """Return the labels of the largest scores; X is not looked at."""
        return np.asarray(self.classes_[self.scores.argmax(axis=1)])

    def predict_proba(self, X: object) -> NDArray[Any]:
        """Return probabilities."""
        return probabilities(self.scores)

    def decision_function(self, X: object) -> NDArray[Any]:
        """Return decisions."""
        return decisions(self.scores)


class PlainAnswers(BaseEstimator):
    """Answers to known inputs, such as numbers, texts or chosen labels, presented as a fitted estimator."""

    def __init__(self, answers: NDArray[Any]) -> None:
        self.answers = answers

    def predict(self, X: object) -> NDArray[Any]:
        """Return the answers; X is not looked at."""
        return self.answers
