"""Merging and comparing in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..comparison import Comparison, compared_to_each, summed
from ..linalg import Overlap


class Comparing:
    """The part of a merger that compares its result with the adapters."""

    if TYPE_CHECKING:
        merged_: Adapter
        n_jobs: int | None

        def fit(self, X: AdapterSet) -> Any: ...

    def fit_compare(self, X: AdapterSet | Iterable[Adapter], y: object = None) -> list[Comparison]:
        """Merge the adapters, and compare the result with each of them, in one pass over their files.

        Most of what a comparison needs is made in a merge. After ``fit``,
        :func:`~lorakit.metrics.compare_to_each` makes it again, and reads the adapters again.

        Parameters
        ----------
        X : AdapterSet or list of Adapter
            As for :meth:`fit`; the result is in ``merged_``.
        y : None
            Ignored.

        Returns
        -------
        list of Comparison
            One for each adapter: ``merged_`` is X, the adapter is Y. What rounding to a half-precision dtype adds to
            the errors is estimated, from a sixteenth of the entries.

        Examples
        --------
        >>> from lorakit import SVDMerger
        >>> from lorakit.testing import make_adapters
        >>> compared = SVDMerger(k=12).fit_compare(make_adapters(ranks=(4, 8), random_state=0))
        >>> [round(comparison.cosine, 2) for comparison in compared]
        [0.57, 0.81]
        """
        adapters = X if isinstance(X, AdapterSet) else AdapterSet(X)
        self._compares = True
        try:
            self.fit(adapters)
        finally:
            del self._compares
        if overlaps := self.__dict__.pop("_overlaps", None):
            return summed(overlaps, len(adapters))
        return compared_to_each(self.merged_, adapters, n_jobs=self.n_jobs)

    _compares: bool = False  # whether fit_compare runs, to which fit leaves what it found in _overlaps
    _overlaps: Sequence[Overlap]
