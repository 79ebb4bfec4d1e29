"""The numbers of a report, from one reading of every module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._execution import map_modules, read_module
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..linalg import gram_matrix, singular_values_of_sum

Floats = NDArray[np.float64]


class _Module(NamedTuple):
    gram: Floats
    spectra: list[Floats]
    mean: Floats


@dataclass(frozen=True, eq=False)
class Measures:
    """Inner products and singular values of adapters and of what was made of them, module by module.

    Parameters
    ----------
    modules : tuple of str
        Names, in the adapters' order.
    n : int
        Number of adapters; results come after them.
    grams : ndarray of shape (n_modules, n + n_results, n + n_results)
        Inner products of updates.
    spectra : list of list of ndarray
        Singular values, by module and by adapter or result.
    mean_spectra : list of ndarray
        Those of the weighted mean of the adapters, by module.
    weights : ndarray of shape (n,)
        The weights of that mean.
    """

    modules: tuple[str, ...]
    n: int
    grams: Floats
    spectra: list[list[Floats]]
    mean_spectra: list[Floats]
    weights: Floats

    @property
    def total(self) -> Floats:
        """Inner products over the whole model."""
        return np.asarray(self.grams.sum(axis=0))

    def gram(self, modules: Iterable[int]) -> Floats:
        """Inner products over some modules."""
        return np.asarray(self.grams[list(modules)].sum(axis=0))

    def reached(self, gram: Floats) -> Floats:
        """Cosine of the exact weighted mean with each adapter: what a merge at full rank comes to."""
        inside = gram[: self.n, : self.n]
        toward = inside @ self.weights
        length = np.sqrt(max(float(self.weights @ toward), 0.0))
        return _ratio(toward, length * np.sqrt(np.diagonal(inside)))

    def curve(self, which: int | None) -> Floats:
        """Root mean square over the modules of the i-th singular values; of the mean for None."""
        found = self.mean_spectra if which is None else [spectra[which] for spectra in self.spectra]
        longest = max(map(len, found), default=0)
        squares = [np.pad(values, (0, longest - len(values))) ** 2 for values in found]
        return np.asarray(np.sqrt(np.mean(squares, axis=0)))


def measure(adapters: AdapterSet, results: Sequence[Adapter], *, weights: Floats, n_jobs: int | None) -> Measures:
    """Read every module of adapters and results once.

    Parameters
    ----------
    adapters : AdapterSet
        What went in.
    results : sequence of Adapter
        What came out; none for adapters that were not merged.
    weights : ndarray of shape (n_adapters,)
        Of the mean that a merge is compared with.
    n_jobs : int or None
        Workers of the loop over modules.
    """
    X = AdapterSet([*adapters, *results])
    task = partial(_measured, weights=weights.tolist())
    found: list[_Module] = map_modules(task, X, n_jobs=n_jobs, verbose=0)
    return Measures(
        X.module_names,
        len(adapters),
        np.array([one.gram for one in found]).reshape(len(found), len(X), len(X)),
        [one.spectra for one in found],
        [one.mean for one in found],
        weights,
    )


def _measured(X: AdapterSet, module: str, *, weights: list[float]) -> _Module:
    updates = read_module(X, module, None)
    spectra = [singular_values_of_sum([update], [1.0]).numpy() for update in updates]
    mean = singular_values_of_sum(updates[: len(weights)], weights).numpy() if weights else np.zeros(0)
    return _Module(gram_matrix(X.factors(module)).numpy(), spectra, mean)


def norms(gram: Floats) -> Floats:
    """Norms of the updates whose inner products these are."""
    return np.asarray(np.sqrt(np.maximum(np.diagonal(gram), 0.0)))


def cosines(gram: Floats) -> Floats:
    """Cosines of the updates whose inner products these are; 0 where one is zero."""
    return np.clip(_ratio(gram, np.outer(norms(gram), norms(gram))), -1.0, 1.0)


def agreement(gram: Floats) -> float:
    """Mean cosine of all pairs, each counted by the product of its norms; NaN if no two updates are nonzero.

    1 where all pull in one direction, 0 where they do not meet, below 0 where they work against one another.
    """
    lengths = norms(gram)
    between = float(lengths.sum() ** 2 - (lengths**2).sum())
    return float(gram.sum() - np.trace(gram)) / between if between > 1e-12 * float(lengths.sum() ** 2) else np.nan


def best_mean_cosine(gram: Floats) -> float:
    """The largest mean cosine with all updates that any one update of any rank can have.

    It is the length of the mean of the updates at unit length, which is the update that reaches it.
    """
    there = norms(gram) > 0
    units = cosines(gram)[np.ix_(there, there)]
    return float(np.sqrt(max(units.sum(), 0.0))) / len(units) if len(units) else 0.0


def energy(values: Floats) -> Floats:
    """Share of the squared norm that the k largest singular values hold, for k = 0, 1, ..."""
    kept = np.concatenate([[0.0], np.cumsum(np.square(values))])
    return kept / kept[-1] if kept[-1] else np.ones_like(kept)


def rank_for(values: Floats, share: float) -> int:
    """The smallest rank that keeps a share of the energy."""
    return int(np.searchsorted(energy(values), share - 1e-12)) if values.any() else 0


def _ratio(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.asarray(b) > 0)
