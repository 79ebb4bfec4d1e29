"""Ranks chosen from singular values: by energy, effective rank or a rule, or by spreading a budget over the modules."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

_LARGEST_MEAN = 1e9  # above the width of any layer
_LARGEST_SIZE = 10**18  # bytes
_ROUND_OFF = 1e-12  # of comparisons, so that equal singular values count as equal
Spectrum = NDArray[np.float64]  # singular values, descending
Rank: TypeAlias = "int | float | Literal['auto'] | RankBudget | RankRule | None"


_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Bytes of a file's header: for one module, whose name is seldom longer than 100 letters, and for the record of how the
# file was made
_HEADER, _RECORD = 320, 4096


def _given(rule: Any) -> str:
    """Return what a budget or a rule was given, as a message says it."""
    given = ((field.name, getattr(rule, field.name)) for field in fields(rule))
    return ", ".join(f"{name} {value}" for name, value in given if value is not None) or "nothing"


@dataclass(frozen=True, repr=False)
class RankBudget:
    """A budget of ranks for the whole model: modules with the largest singular values get the most.

    Pass it as ``k`` of any merger or pruner, or of :func:`~lorakit.extract_adapter`. Every module keeps at least rank
    1. Give either ``mean`` or ``size``.

    Parameters
    ----------
    mean : float, optional
        Mean rank of the modules. With modules of equal widths this fixes the size of the result.
    max_rank : int or None, default=None
        Largest rank of a module. A file in the portable layout is padded to the largest rank, and servers have a
        largest rank that they accept.
    size : int or str, optional
        Size of the file in bytes, or a text such as ``'50MiB'`` or ``'50MB'``. It applies to files in the compact
        layout, which are not padded. Each rank goes to the module where it adds most for its bytes: where the next
        singular value over the square root of ``d_in + d_out`` is largest.

    Examples
    --------
    >>> from lorakit import RankBudget, SVDMerger
    >>> from lorakit.testing import make_adapters
    >>> merger = SVDMerger(k=RankBudget(mean=5)).fit(make_adapters(ranks=(4, 8), random_state=0))
    >>> sum(factors.rank for factors in merger.merged_.values())
    10
    """

    mean: float | None = None
    max_rank: int | None = None
    size: int | str | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) == (self.size is None):
            raise ValueError(f"a budget of ranks needs either mean or size; got {_given(self)}")
        if (self.mean is not None and not 1 <= self.mean <= _LARGEST_MEAN) or (
            self.max_rank is not None and self.max_rank < 1
        ):
            raise ValueError(
                f"a budget of ranks needs mean and max_rank of 1 or more, and a mean below 1e9; got {_given(self)}"
            )
        if self.size is not None and not 1 <= self.n_bytes <= _LARGEST_SIZE:
            raise ValueError(f"a budget of ranks needs a size of 1 byte or more, and below 1e18; got {_given(self)}")

    @property
    def n_bytes(self) -> int:
        """The size in bytes; 0 where only the mean is given."""
        if not isinstance(self.size, str):
            return self.size or 0
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", self.size)
        if found is None or found[2] not in _UNITS:
            raise ValueError(
                f"a size is a number of bytes, or one with a unit ({', '.join(_UNITS)[2:]}); got {self.size!r}"
            )
        return int(min(float(found[1]) * _UNITS[found[2]], 2.0 * _LARGEST_SIZE))  # infinity is no int

    def __repr__(self) -> str:
        size = "" if self.size is None else f", size={self.size!r}"
        return f"RankBudget(mean={self.mean}, max_rank={self.max_rank}{size})"


@dataclass(frozen=True)
class RankRule:
    """A rule that chooses the rank of each module by its singular values, as image tools have them.

    Pass it as ``k`` of any merger or pruner, or of :func:`~lorakit.extract_adapter`. Every module keeps at least rank
    1. Give one of the three rules.

    Parameters
    ----------
    sv_ratio : float, optional
        The smallest rank whose next singular value is below the largest one over this number, which is at least 1.
    sv_fro : float, optional
        The smallest rank that keeps this share, between 0 and 1, of the Frobenius norm. It is the rule of ``k=0.81``,
        a share of the energy, for ``sv_fro=0.9``.
    sv_cumulative : float, optional
        The smallest rank that keeps this share, between 0 and 1, of the sum of the singular values.
    max_rank : int, optional
        Largest rank of a module.

    Notes
    -----
    The rules have the names that they have in sd-scripts' ``resize_lora.py``. There a singular value that equals the
    largest one over ``sv_ratio`` is dropped; here it is kept. There one singular value is always dropped; here none
    needs to be.

    Examples
    --------
    >>> import torch
    >>> from lorakit import RankRule, SVDPruner
    >>> from lorakit.testing import make_adapters
    >>> (adapter,) = make_adapters(1, ranks=8, n_modules=1, random_state=0)
    >>> [round(float(s), 1) for s in torch.linalg.svdvals(adapter["layer.0"].delta())[:8]]
    [31.7, 26.7, 22.4, 14.8, 13.9, 11.5, 7.7, 5.3]
    >>> SVDPruner(k=RankRule(sv_ratio=2)).fit_transform([adapter])[0].ranks
    (3,)
    """

    sv_ratio: float | None = None
    sv_fro: float | None = None
    sv_cumulative: float | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        shares = [share for share in (self.sv_fro, self.sv_cumulative) if share is not None]
        if len(shares) + (self.sv_ratio is not None) != 1:
            raise ValueError(f"a rule of ranks needs one of sv_ratio, sv_fro and sv_cumulative; got {_given(self)}")
        if any(not 0 < share < 1 for share in shares):
            raise ValueError(f"a rule of ranks needs a share between 0 and 1; got {_given(self)}")
        if self.sv_ratio is not None and not (self.sv_ratio >= 1 and math.isfinite(self.sv_ratio)):
            raise ValueError(f"a rule of ranks needs a finite sv_ratio of 1 or more; got {_given(self)}")
        if self.max_rank is not None and self.max_rank < 1:
            raise ValueError(f"a rule of ranks needs a max_rank of 1 or more; got {_given(self)}")

    def choose(self, s: Spectrum) -> int:
        """Return the rank for singular values, descending."""
        if self.sv_ratio is not None:
            rank = int((s >= s[0] / self.sv_ratio * (1 - _ROUND_OFF)).sum()) if s.any() else 1
        elif self.sv_fro is not None:
            rank = _rank_of_share(s**2, self.sv_fro**2)
        else:
            assert self.sv_cumulative is not None  # one of three is given
            rank = _rank_of_share(s, self.sv_cumulative)
        return min(rank, self.max_rank or rank)


RANK_WORDS = ("mean", "size", "sv_ratio", "sv_fro", "sv_cumulative")  # before the colon of a rule as a text


def rank_of_words(word: str, amount: str, max_rank: int | None) -> RankBudget | RankRule:
    """Return what ``mean:16``, ``size:50MiB`` or ``sv_ratio:10`` stands for.

    Raises
    ------
    ValueError
        If the amount is not one.

    Examples
    --------
    >>> rank_of_words("mean", "16", None), rank_of_words("sv_fro", ".9", 32)
    (RankBudget(mean=16.0, max_rank=None), RankRule(sv_ratio=None, sv_fro=0.9, sv_cumulative=None, max_rank=32))
    """
    if word == "size":
        return RankBudget(size=amount, max_rank=max_rank)
    if word == "mean":
        return RankBudget(float(amount), max_rank)
    return RankRule(**{word: float(amount)}, max_rank=max_rank)


def words_of_rank(params: Mapping[str, Any]) -> str:
    """Return a RankBudget or RankRule, as the parameters that it was made with, as a text.

    Examples
    --------
    >>> words_of_rank({"sv_ratio": 10.0, "max_rank": 32}), words_of_rank({"size": "50MiB", "mean": None})
    ('sv_ratio:10.0,max:32', 'size:50MiB')
    """
    word = next(word for word in RANK_WORDS if params.get(word) is not None)
    most = "" if params.get("max_rank") is None else f",max:{params['max_rank']}"
    return f"{word}:{params[word]}{most}"


def needs_spectra(k: Rank) -> bool:
    """Whether this ``k`` chooses the ranks by the singular values."""
    return k is not None and not isinstance(k, (int, np.integer))


def choose_ranks(
    k: Rank, spectra: Mapping[str, Spectrum], limits: Mapping[str, int], costs: Mapping[str, int]
) -> dict[str, int]:
    """Choose a rank for every module.

    Parameters
    ----------
    k : float, 'auto', RankBudget or RankRule
        A float keeps that share of each module's energy (squared singular values). 'auto' takes each module's
        effective rank, ``exp(entropy(s / sum(s)))`` rounded up [1]_.
    spectra : mapping of str to ndarray
        Singular values by module, descending.
    limits : mapping of str to int
        Largest rank of each module.
    costs : mapping of str to int
        Bytes that one more rank of each module takes.

    Returns
    -------
    dict of str to int
        Between 1 and the limit.

    References
    ----------
    .. [1] O. Roy and M. Vetterli, "The effective rank: A measure of effective dimensionality", EUSIPCO 2007.
    """
    if isinstance(k, RankBudget):
        return _spread(k, spectra, limits, costs)
    if isinstance(k, RankRule):
        choose = k.choose
    else:
        choose = _effective_rank if k == "auto" else partial(_rank_of_energy, share=float(k))  # type: ignore[arg-type]
    return {module: max(1, min(choose(s), limits[module])) for module, s in spectra.items()}


def _effective_rank(s: Spectrum) -> int:
    p = s[s > 0] / s.sum() if s.any() else np.ones(1)
    # rounded first: n equal singular values have an effective rank of n, not of n plus round-off
    return math.ceil(round(float(np.exp(-(p * np.log(p)).sum())), 6))


def _rank_of_energy(s: Spectrum, share: float) -> int:
    return _rank_of_share(s**2, share)


def _rank_of_share(values: Spectrum, share: float) -> int:
    """Return how many of the values have a share of their sum."""
    kept = np.cumsum(values)
    return int(np.searchsorted(kept, share * kept[-1] * (1 - _ROUND_OFF))) + 1


def _spread(
    budget: RankBudget, spectra: Mapping[str, Spectrum], limits: Mapping[str, int], costs: Mapping[str, int]
) -> dict[str, int]:
    """Give every module rank 1, then give each further rank to the largest remaining singular value for its price."""
    highest = {
        module: max(1, min(limit, len(spectra[module]), budget.max_rank or limit)) for module, limit in limits.items()
    }
    ranks = dict.fromkeys(spectra, 1)
    if budget.mean is not None:
        prices: Mapping[str, int] = dict.fromkeys(spectra, 1)
        left = int(budget.mean * len(spectra)) - len(spectra)
    else:
        prices = costs
        left = budget.n_bytes - _RECORD - sum(_HEADER + costs[module] for module in spectra)
        if left < 0:
            raise ValueError(
                f"{budget} is too small: rank 1 in each of {len(spectra)} modules takes {budget.n_bytes - left} bytes; "
                "expected that or more, or fewer modules"
            )
    # (minus the next singular value for its price, module): ties go by name, whatever the order of the modules
    queue = [(-s[1] / prices[module] ** 0.5, module) for module, s in spectra.items() if highest[module] > 1]
    heapq.heapify(queue)
    while left > 0 and queue:
        _, module = heapq.heappop(queue)
        if prices[module] > left:  # narrower modules may still have room
            continue
        ranks[module] += 1
        left -= prices[module]
        if ranks[module] < highest[module]:
            heapq.heappush(queue, (-spectra[module][ranks[module]] / prices[module] ** 0.5, module))
    return ranks


def bytes_of_rank(d_in: int, d_out: int, itemsize: int) -> int:
    """Return the bytes that one more rank of a module takes in a file."""
    return (d_in + d_out) * itemsize
