"""The cross terms of a direct merge as an adapter, the moments of their entries, and noise drawn to these moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .._execution import base_seed, map_modules, module_rng, read_module
from .._validation import check_adapters, check_equal_ranks, check_weights
from ..adapter_set import AdapterSet
from ..adapters import Adapter, ModuleInfo, made_from
from ..factors import LoraFactors, promoted_dtype
from ..linalg import entry_moments

Weights = ArrayLike | Mapping[str, float] | None


@dataclass(frozen=True)
class EntryMoments:
    """Mean and standard deviation of the entries of a matrix.

    Parameters
    ----------
    mean : float
        Mean over all entries.
    std : float
        Standard deviation over all entries (the population's: divided by their number).
    """

    mean: float
    std: float


def cross_terms(adapters: AdapterSet | Iterable[Adapter], *, weights: Weights = None) -> Adapter:
    r"""Return the cross terms of a direct merge as an adapter.

    .. math:: M = \sum_{i \ne j} w_i w_j B_i A_j
       = \Big(\sum_i w_i B_i\Big) \Big(\sum_i w_i A_i\Big) - \sum_i w_i^2 B_i A_i

    This is M of equation 3 in "LoRA Merging with SVD" [1]_, on the scale of :class:`~lorakit.AverageMerger`. The paper
    sums without weights; for equal weights its M is :math:`T^2` times this one.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        T adapters that share one rank r at each module. A module that one of them lacks is a zero update there.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        As in the mergers: divided by the sum of their absolute values; None weighs all adapters equally.

    Returns
    -------
    Adapter
        Exact, of rank (T + 1) r, in float32 or better.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters differ in rank at a module, or do not fit together.
    ValueError
        If ``weights`` do not fit the adapters, or a weight of an adapter is not finite.

    See Also
    --------
    interference : The norm of M, and its share in the direct merge.
    cross_term_noise : Noise of the same mean and standard deviation.

    References
    ----------
    .. [1] "LoRA Merging with SVD: Understanding Interference and Preserving Performance".

    Examples
    --------
    >>> from lorakit.metrics import cross_terms, interference
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(3, ranks=4, n_modules=1, random_state=0)
    >>> m = cross_terms(adapters)["layer.0"]
    >>> m.rank
    16
    >>> round(m.delta().norm().item() / interference(adapters).cross, 5)
    1.0
    """
    X, w = _checked(adapters, weights)
    modules = {module: _cross_terms(read_module(X.only(module), module, None), w) for module in X.module_names}
    kinds = {module: info.kind for adapter in X for module, info in adapter.infos.items()}
    provenance = made_from(X, f"cross_terms(weights={w})")
    return Adapter(modules, name="cross_terms", kinds=kinds, provenance=provenance)


def cross_term_moments(
    adapters: AdapterSet | Iterable[Adapter], *, weights: Weights = None, n_jobs: int | None = None
) -> dict[str, EntryMoments]:
    """Mean and standard deviation of the entries of the cross terms, module by module.

    No (d_out, d_in) matrix is formed: the mean needs the sums of the columns of B and of the rows of A, and the
    standard deviation the norm of a matrix of at most (R + 1, R + 1), where R is the sum of the ranks.

    Parameters
    ----------
    adapters, weights
        As for :func:`cross_terms`, which also says what is raised.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    dict of str to EntryMoments
        By module.

    Examples
    --------
    >>> from lorakit.metrics import cross_term_moments, cross_terms
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(3, ranks=4, n_modules=1, random_state=0)
    >>> found, dense = cross_term_moments(adapters)["layer.0"], cross_terms(adapters)["layer.0"].delta()
    >>> bool(abs(found.mean - dense.mean()) < 1e-5), bool(abs(found.std - dense.std(correction=0)) < 1e-5)
    (True, True)
    """
    X, w = _checked(adapters, weights)
    found = map_modules(partial(_moments, weights=w), X, n_jobs=n_jobs, verbose=0)
    return dict(zip(X.module_names, found, strict=True))


def cross_term_noise(
    adapters: AdapterSet | Iterable[Adapter],
    *,
    rank: int | None = None,
    weights: Weights = None,
    random_state: int | np.random.RandomState | None = None,
    n_jobs: int | None = None,
) -> Adapter:
    r"""Draw noise with the mean and the standard deviation that the entries of the cross terms have.

    The surrogate of "LoRA Merging with SVD" [1]_, section 3.3: if the cross terms M were harmless, noise of their size
    in their place would hurt as much as they do. The noise is moved and scaled after it was drawn, so that at each
    module the mean and the standard deviation of its entries are those of M, not only in expectation.

    Parameters
    ----------
    adapters : AdapterSet or list of Adapter
        As for :func:`cross_terms`.
    rank : int or None, default=None
        None draws every entry independently from a normal distribution, as the paper does. Such a matrix has full rank,
        so that a factorization of it cannot be thin: one factor of each module is a (d_out, d_in) matrix and the other
        an identity matrix. It is drawn when the module is read, and not kept.

        An int of at least 2 gives thin factors of that rank, and no (d_out, d_in) matrix: one unit holds the mean, the
        others are products of independent normal columns and rows. Two entries are then uncorrelated but not
        independent, and an entry is nearly normal only for large ranks. M itself has at most rank (T + 1) r.
    weights : array-like of shape (n_adapters,) or dict of name to float, default=None
        As for :func:`cross_terms`.
    random_state : int, RandomState or None, default=None
        Seeds the noise. Each module's noise depends on the seed and the module's name alone.
    n_jobs : int or None, default=None
        Workers of the loop over modules, as in the estimators.

    Returns
    -------
    Adapter
        In the dtype of the adapters, but float32 at least.

    Raises
    ------
    IncompatibleAdaptersError
        If the adapters differ in rank at a module, or do not fit together.
    ValueError
        If ``rank`` is below 2, ``weights`` do not fit the adapters, or a weight of an adapter is not finite.

    See Also
    --------
    cross_terms : What the noise stands for.

    References
    ----------
    .. [1] "LoRA Merging with SVD: Understanding Interference and Preserving Performance".

    Examples
    --------
    >>> from lorakit.metrics import cross_term_moments, cross_term_noise
    >>> from lorakit.testing import make_adapters
    >>> adapters = make_adapters(3, ranks=4, n_modules=1, random_state=0)
    >>> cross_term_noise(adapters, random_state=0)
    Adapter('cross_term_noise', modules=1, rank=16, dtype=float32)
    >>> thin = cross_term_noise(adapters, rank=8, random_state=0)["layer.0"]
    >>> moments = cross_term_moments(adapters)["layer.0"]
    >>> round(thin.delta().std(correction=0).item() / moments.std, 4)
    1.0
    """
    if rank is not None and rank < 2:
        raise ValueError(f"rank must be 2 or more, one unit for the mean and one for the noise, or None; got {rank}")
    X, w = _checked(adapters, weights)
    moments = cross_term_moments(X, weights=w, n_jobs=n_jobs)
    known = {module: info for adapter in X for module, info in adapter.infos.items()}
    infos = {m: info._replace(rank=rank or min(info.d_in, info.d_out)) for m, info in known.items()}
    seed = base_seed(random_state)
    reader = _Noise(infos, moments, rank is not None, seed, promoted_dtype([torch.float32, X.dtype]))
    operation = f"cross_term_noise(rank={rank}, weights={w}, random_state={random_state!r})"
    return Adapter.from_reader(reader, name="cross_term_noise", provenance=made_from(X, operation))


class _Noise(NamedTuple):
    """Draws a module's noise when it is read; pickles as the seed and the moments."""

    infos: Mapping[str, ModuleInfo]
    moments: Mapping[str, EntryMoments]
    thin: bool
    seed: int
    dtype: torch.dtype

    def read(self, module: str) -> LoraFactors:
        info, wanted, rng = self.infos[module], self.moments[module], module_rng(self.seed, module)
        draw = _thin_noise if self.thin else _full_noise
        return draw(info, wanted, rng).to(self.dtype)


def _full_noise(info: ModuleInfo, wanted: EntryMoments, rng: np.random.RandomState) -> LoraFactors:
    drawn = torch.from_numpy(rng.standard_normal((info.d_out, info.d_in)))
    drawn -= drawn.mean()
    noise = drawn * _scale(wanted.std, drawn.square().mean().item()) + wanted.mean
    one = torch.eye(info.rank, dtype=noise.dtype)
    return LoraFactors(noise, one) if info.d_out <= info.d_in else LoraFactors(one, noise)


def _thin_noise(info: ModuleInfo, wanted: EntryMoments, rng: np.random.RandomState) -> LoraFactors:
    a = torch.from_numpy(rng.standard_normal((info.rank - 1, info.d_in)))
    b = torch.from_numpy(rng.standard_normal((info.d_out, info.rank - 1)))
    mean, variance = entry_moments((a, b))
    scale = _scale(wanted.std, variance)
    root = scale**0.5
    ones = torch.full((1, info.d_in), wanted.mean - scale * mean, dtype=a.dtype)
    return LoraFactors(torch.cat([root * a, ones]), torch.cat([root * b, torch.ones_like(b[:, :1])], dim=1))


def _scale(std: float, variance: float) -> float:
    return std / variance**0.5 if variance > 0 else 0.0  # one entry alone has no spread, and is to have none


def _checked(adapters: AdapterSet | Iterable[Adapter], weights: Weights) -> tuple[AdapterSet, list[float]]:
    X = check_adapters(adapters)
    check_equal_ranks(X)
    return X, check_weights(weights, X.names, signed=True).tolist()


def _cross_terms(updates: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    """Thin factors of the direct merge less its own terms."""
    present = [(update, w) for update, w in zip(updates, weights, strict=True) if update.rank]
    sum_a = sum(a * w for (a, _), w in present)
    sum_b = sum(b * w for (_, b), w in present)
    own_a, own_b = [a for (a, _), _ in present], [-(w**2) * b for (_, b), w in present]
    return LoraFactors(torch.cat([sum_a, *own_a]), torch.cat([sum_b, *own_b], dim=1))  # type: ignore[list-item]


def _moments(X: AdapterSet, module: str, *, weights: Sequence[float]) -> EntryMoments:
    updates = [update.to(torch.float64) for update in read_module(X, module, None)]
    mean, variance = entry_moments(_cross_terms(updates, weights))
    return EntryMoments(mean, variance**0.5)
