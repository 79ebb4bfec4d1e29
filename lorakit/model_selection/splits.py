"""Splitters of sets of adapters, for scikit-learn's searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import BaseCrossValidator


class AllAdapters(BaseCrossValidator):
    """One split: every adapter is merged, and every adapter is passed to the scorer.

    For scikit-learn's searches, whose usual folds would leave adapters out of the merge. It is right where the scorer
    judges the merge on data of its own, such as accuracy on some validation texts. Where the scorer only looks at the
    adapters, it rewards whatever reproduces them, the largest ``k`` above all: use ``LeaveOneOut`` there.

    See Also
    --------
    MultiTaskScorer : Judges a merge on tasks.
    WeightSearch : Proposes weights itself, instead of trying those of a grid.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from lorakit import AllAdapters, SVDMerger
    >>> from lorakit.testing import make_adapters
    >>> def small(merger, adapters):
    ...     return -sum(float(factors.delta().norm()) for factors in merger.merged_.values())
    >>> search = GridSearchCV(SVDMerger(), {"k": [2, 4, 8]}, scoring=small, cv=AllAdapters())
    >>> search.fit(make_adapters(random_state=0)).best_params_
    {'k': 2}
    """

    def split(
        self, X: Sequence[Any], y: object = None, groups: object = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the one split: all positions to fit on, and all to score on.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            The adapters.
        y, groups : None
            Ignored.

        Yields
        ------
        train, test : ndarray of shape (n_adapters,)
            Both ``arange(n_adapters)``.
        """
        yield np.arange(len(X)), np.arange(len(X))

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """Return 1."""
        return 1
