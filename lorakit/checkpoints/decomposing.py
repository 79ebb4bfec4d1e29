"""The decomposition of one module's difference, to a rank that is given or that its singular values choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor

from .._execution import module_rng, one_thread, report_done, to_output
from .._ranks import Rank, RankBudget, RankRule, Spectrum, choose_ranks
from ..factors import LoraFactors
from ..files.checkpoint import Checkpoint
from ..linalg import dense_randomized_svd, dense_svd, split_svd
from .differences import Energy, difference
from .pairing import Compared

Result = TypeVar("Result")

_OVERSAMPLING, _POWER = 16, 6  # within 0.1 % of the least error: docs/results/checkpoints.rst
_FIRST = 128  # singular values that are looked at first where their number depends on them
_NOISE = 5.0  # the largest squared singular values of noise are 4 times their mean, in a square matrix


@dataclass(frozen=True)
class Task:
    """What the work on each module needs to know.

    Parameters
    ----------
    tuned, base : Checkpoint
        The two.
    k : int, float or str
        The rank of every module, or the rule by which each has its own.
    exact : bool
        Whether differences are decomposed in full.
    seed : int
        From which each module's random numbers are derived.
    device : str or None
        Where it is computed.
    dtype : torch.dtype
        Of the factors.
    """

    tuned: Checkpoint
    base: Checkpoint
    k: Rank
    exact: bool
    seed: int
    device: str | None
    dtype: torch.dtype


class Found(NamedTuple):
    """What the difference of one module gives; no factors where there is no more than rounding."""

    energy: Energy
    factors: LoraFactors | None = None
    kept: float = 0.0  # squared norm of what the factors hold
    flat: bool = False


def every(work: Callable[[Compared], Result], pairs: Sequence[Compared], *, n_jobs: int | None) -> list[Result]:
    """Do something for every pair, some at a time in threads: only they share what is read."""
    found: list[Result] = []
    parallel = Parallel(n_jobs=n_jobs, require="sharedmem", return_as="generator")
    for result in parallel(delayed(_alone)(work, pair) for pair in pairs):
        found.append(result)
        report_done(len(found), len(pairs))
    return found


def _alone(work: Callable[[Compared], Result], pair: Compared) -> Result:
    try:
        with one_thread():
            return work(pair)
    except Exception as error:
        error.add_note(f"in tensor {pair.tensor!r}")
        raise


def energies(task: Task, pairs: Iterable[Compared]) -> list[Energy]:
    """Return the energy of each change, nothing decomposed."""
    return [difference(task.tuned, p.tensor, task.base, p.base, keep=False, spans=p.spans)[1] for p in pairs]


def decomposed(task: Task, pair: Compared, ranks: dict[str, int] | None = None) -> Found:
    """Return the factors nearest to the difference: of the rank in ``ranks``, or of the task's own."""
    matrix, energy = _update(task, pair)
    if matrix is None:
        return Found(energy)
    assert pair.module is not None
    k = task.k if ranks is None else ranks[pair.module]
    u, s, vh = _triples(task, pair, matrix, energy, k)
    factors = LoraFactors(*split_svd(u, s, vh, len(s)))
    kept = (s.double() ** 2).sum().item()
    limit = min(matrix.shape)
    flat = 10 * len(s) < limit and kept < _NOISE * len(s) / limit * energy.change
    return Found(energy, to_output(factors, task.dtype, pair.module), kept, flat)


def leading_values(task: Task, pair: Compared, budget: RankBudget) -> Spectrum | None:
    """Return the largest singular values of a module, as many as its rank may be; None if there is nothing to keep."""
    matrix, _ = _update(task, pair)
    if matrix is None:
        return None
    _, s, _ = _leading(task, pair, matrix, budget.max_rank or _FIRST)
    values: Spectrum = s.double().cpu().numpy()
    return values


def _update(task: Task, pair: Compared) -> tuple[Tensor | None, Energy]:
    """Return the difference as an update, (d_out, d_in); None if it is no larger than rounding makes."""
    matrix, energy = difference(task.tuned, pair.tensor, task.base, pair.base, keep=True, spans=pair.spans)
    assert matrix is not None
    if not np.isfinite(energy.change):
        raise ValueError(f"{task.tuned.name}: {pair.tensor!r} minus that of {task.base.name} is not finite")
    if energy.change <= energy.rounding:
        return None, energy
    matrix = matrix.to(task.device or "cpu")
    return (matrix.mT if pair.turned else matrix), energy


def _triples(task: Task, pair: Compared, matrix: Tensor, energy: Energy, k: Any) -> tuple[Tensor, Tensor, Tensor]:
    limit = min(matrix.shape)
    if isinstance(k, (int, np.integer)):
        return _cut(_leading(task, pair, matrix, int(k)), int(k))
    if k == "auto" or (isinstance(k, RankRule) and k.sv_cumulative is not None):  # they need all singular values
        found = dense_svd(matrix)
        s = found[1].double().cpu().numpy()
        return _cut(found, choose_ranks(k, {"": s}, {"": limit}, {})[""])
    q = _FIRST
    while True:
        found = _leading(task, pair, matrix, q)
        s = found[1].double().cpu().numpy()
        rank = _rank_of_leading(s, k, energy.change)
        if rank is not None or len(s) == limit:
            return _cut(found, rank or limit)
        q *= 2


def _rank_of_leading(s: Spectrum, k: float | RankRule, energy: float) -> int | None:
    """Return the rank that a rule chooses by the largest singular values; None if it needs more of them."""
    most = k.max_rank if isinstance(k, RankRule) else None
    if isinstance(k, RankRule) and k.sv_ratio is not None:
        rank = k.choose(s)
        return rank if rank < len(s) or rank == most else None
    share = k.sv_fro**2 if isinstance(k, RankRule) and k.sv_fro is not None else float(k)  # type: ignore[arg-type]
    enough = np.flatnonzero(np.cumsum(s**2) >= share * energy * (1 - 1e-6))
    if not len(enough):
        return most if most is not None and most <= len(s) else None
    return min(int(enough[0]) + 1, most or len(s))


def _leading(task: Task, pair: Compared, matrix: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest singular triples, or all of them if that takes no more time."""
    if task.exact or 2 * (k + _OVERSAMPLING) >= min(matrix.shape):
        return _cut(dense_svd(matrix), k) if task.exact else dense_svd(matrix)
    rng = module_rng(task.seed, pair.tensor)
    noise = torch.from_numpy(rng.standard_normal((matrix.shape[1], k + _OVERSAMPLING))).to(matrix)
    return dense_randomized_svd(matrix, k, noise, n_iter=_POWER)


def _cut(triples: tuple[Tensor, Tensor, Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = triples
    return u[:, :k], s[:k], vh[:k]
