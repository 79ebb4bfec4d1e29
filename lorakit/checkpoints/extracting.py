"""Taking an adapter out of a fine-tuned checkpoint: the best one of a rank, module by module."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from .._execution import base_seed, one_thread
from .._ranks import Rank, RankBudget, RankRule, bytes_of_rank, choose_ranks
from .._recipes import recipe_of, recipe_text
from ..adapters import Adapter, Made, Provenance, Source, Step
from ..exceptions import IncompatibleAdaptersError, ParameterError, Setting, Words
from ..factors import promoted_dtype
from ..files.checkpoint import Checkpoint, FileCheckpoint
from ..files.open_checkpoint import Base, open_checkpoint
from ..files.safetensors import FLOAT_DTYPES
from ..readers import MemoryReader
from .decomposing import Found, Task, decomposed, energies, every, leading_values
from .differences import Energy, difference
from .extraction import ExtractedModule, Extraction, LeftOut
from .naming import Format, trainer_names
from .pairing import NOT_CHOSEN, Alone, Compared, chooser, pair_up

__all__ = ["ExtractedAdapter", "ExtractedModule", "Extraction", "LeftOut", "extract_adapter"]

RECIPE = "extract_adapter"
_SHOWN = 4  # tensors that a message names
_LARGE = 0.5  # a change of more than half of the weights is no fine-tune


@dataclass(frozen=True)
class Rules:
    """What of the arguments of :func:`extract_adapter` bears on the result; written into files, to do it again."""

    k: Rank
    modules: str | tuple[str, ...] | None
    rest: Literal["refuse", "drop"]
    exact: bool
    random_state: Any
    format: Format | None = None


class ExtractedAdapter(Adapter):
    """The adapter that :func:`extract_adapter` returns: as any other, with a ``report``.

    Attributes
    ----------
    report : Extraction
        Ranks, energy kept, rounding, and what was left out.
    """

    report: Extraction


def extract_adapter(
    tuned: Base,
    base: Base,
    k: Rank,
    *,
    modules: str | Iterable[str] | None = None,
    rest: Literal["refuse", "drop"] = "refuse",
    exact: bool = False,
    dtype: torch.dtype | None = None,
    name: str = "extracted",
    random_state: Any = 0,
    n_jobs: int | None = None,
    device: str | None = None,
    format: Format | None = None,
) -> ExtractedAdapter:
    """Take a LoRA adapter out of a fine-tuned model: the nearest to ``tuned - base`` of a rank.

    Both are read tensor by tensor; a module's difference is in memory while it is decomposed. Modules whose tensors are
    the same in both, or differ by no more than rounding makes, are not in the adapter.

    Parameters
    ----------
    tuned, base : str, PathLike or mapping of str to Tensor
        The fine-tuned model and the one that it began as: safetensors files, folders, or state dicts.
    k : int, float in (0, 1), 'auto', RankBudget or RankRule
        Rank of each module. A float keeps that share of the energy (squared norm) of each module's difference; 'auto'
        takes its effective rank, a :class:`~lorakit.RankRule` that of its rule ('auto' and ``sv_cumulative`` need all
        singular values, which takes longer). A :class:`~lorakit.RankBudget` spreads ranks, or the bytes of a file, over
        all modules; both checkpoints are then read twice.
    modules : str or iterable of str, optional
        Regular expressions, one of which must match the whole name of a module. Defaults to all linear layers,
        embeddings and convolutions.
    rest : {'refuse', 'drop'}, default='refuse'
        What to do with changes that no LoRA can hold: of norms and biases, new rows of a vocabulary, tensors that only
        one side has. 'drop' leaves them out, and the report names them with their share.
    exact : bool, default=False
        Decompose each difference in full. Otherwise by randomised subspace iteration, whose error is within 0.1 % of
        the least, in a fraction of the time and memory.
    dtype : torch.dtype, optional
        Of the factors. Defaults to that of ``tuned``.
    name : str, default='extracted'
        Name of the adapter.
    random_state : int, RandomState or None, default=0
        Seed of the randomised decomposition.
    n_jobs : int, optional
        Modules at a time, each with a difference in memory. Never changes the result.
    device : str, optional
        Where to decompose, as torch names it.
    format : {'kohya', 'diffusers'}, optional
        Name the modules as files of this format do, which trainers and programs read: of a diffusion model, in a single
        file or a folder of diffusers. Layers that are fused here and apart there become modules of their own, each of
        its own rank; so do those of OpenCLIP. ``modules`` then chooses by these names. Defaults to the names of the
        tensors.

    Returns
    -------
    ExtractedAdapter
        In memory. Its modules have the names of the tensors, without ``.weight``, or those of ``format``. Its
        ``report`` gives the ranks, the energy kept, the share of rounding, and what was left out.

    Raises
    ------
    IncompatibleAdaptersError
        If nothing differs, or something differs that no LoRA can hold and ``rest='refuse'``.
    LorakitError
        If a checkpoint cannot be read.
    ValueError
        If a parameter is not one of those above.

    Warns
    -----
    UserWarning
        If the differences are as flat as noise, or as large as the weights: ``tuned`` does not look like a fine-tune of
        ``base``.

    References
    ----------
    .. [1] N. Halko, P. G. Martinsson and J. A. Tropp, "Finding structure with randomness: Probabilistic algorithms for
       constructing approximate matrix decompositions", SIAM Review 53 (2011).

    Examples
    --------
    >>> import torch
    >>> from lorakit import Adapter, LoraFactors, bake, extract_adapter
    >>> generator = torch.Generator().manual_seed(0)
    >>> base = {"query.weight": torch.randn(40, 30, generator=generator)}
    >>> adapter = Adapter({"query": LoraFactors(torch.ones(1, 30), torch.full((40, 1), 0.1))})
    >>> again = extract_adapter(bake(base, adapter), base, k=1)
    >>> torch.allclose(again["query"].delta(), adapter["query"].delta(), atol=1e-5)
    True
    """
    _check_k(k)
    if rest not in ("refuse", "drop"):
        raise ValueError(f"rest must be 'refuse' or 'drop', got {rest!r}")
    if format not in (None, "kohya", "diffusers"):
        raise ValueError(f"format must be 'kohya', 'diffusers' or None, got {format!r}")
    new, old = open_checkpoint(tuned), open_checkpoint(base)
    named = None if format is None else trainer_names(new, format)
    pairs, alone = pair_up(new, old, chooser(modules), named)
    wanted = [pair for pair in pairs if pair.module is not None]
    stored = [FLOAT_DTYPES[new.infos[pair.tensor].dtype] for pair in wanted]
    task = Task(new, old, k, exact, base_seed(random_state), device, dtype or promoted_dtype(stored))
    with one_thread():
        others = [pair for pair in pairs if pair.module is None]
        changes = energies(task, others)
        if rest == "refuse":
            _refuse_rest(task, wanted, others, changes, alone)
        ranks = _spread(task, k, wanted, n_jobs) if isinstance(k, RankBudget) else None
        found = every(partial(decomposed, task, ranks=ranks), wanted, n_jobs=n_jobs)
    _require_change(task, wanted, found)
    report = _report(task, wanted, found, others, changes, alone)
    patterns = modules if modules is None or isinstance(modules, str) else tuple(modules)
    recipe = recipe_of(Rules(k, patterns, rest, exact, random_state, format)) | {"class": RECIPE}
    _warn(task, report, found)
    return _adapter(task, wanted, found, report, name, recipe, format)


def _check_k(k: Rank) -> None:
    whole = isinstance(k, (int, np.integer)) and not isinstance(k, bool) and k >= 1
    share = isinstance(k, float) and 0 < k < 1
    if not (whole or share or isinstance(k, RankBudget | RankRule) or k == "auto"):
        forms = "must be a rank of 1 or more, a share of the energy below 1,"
        raise ParameterError(
            Words(
                f"k {forms} 'auto', a RankBudget or a RankRule; got {k!r}",
                f"-k {forms} auto, or a budget or rule such as mean:16; got {k}",
            ),
            remedy="choose one of these",
        )


def _spread(task: Task, budget: RankBudget, wanted: Sequence[Compared], n_jobs: int | None) -> dict[str, int]:
    """Return the rank of each module that has something to keep; the others need none."""
    values = every(partial(leading_values, task, budget=budget), wanted, n_jobs=n_jobs)
    spectra = {pair.module: s for pair, s in zip(wanted, values, strict=True) if s is not None and pair.module}
    infos = {pair.module: pair.info(task.tuned) for pair in wanted if pair.module in spectra}
    limits = {module: min(info.d_in, info.d_out) for module, info in infos.items() if module}
    size = task.dtype.itemsize
    costs = {module: bytes_of_rank(info.d_in, info.d_out, size) for module, info in infos.items() if module}
    return choose_ranks(budget, spectra, limits, costs)


def _refuse_rest(
    task: Task,
    wanted: Sequence[Compared],
    others: Sequence[Compared],
    changes: Sequence[Energy],
    alone: Sequence[Alone],
) -> None:
    changed = {
        pair: energy.change
        for pair, energy in zip(others, changes, strict=True)
        if energy.change > 0 and pair.why != NOT_CHOSEN
    }
    if not changed and not alone:
        return
    total = sum(energy.change for energy in (*changes, *energies(task, wanted)))
    named = [f"{a.tensor!r} ({a.why})" for a in alone[:_SHOWN]]
    by_size = sorted(changed, key=lambda pair: -changed[pair])
    named += [f"{p.tensor!r} ({p.why}, {changed[p] / total:.2g} of the change)" for p in by_size[: _SHOWN - len(named)]]
    count = len(changed) + len(alone)
    raise IncompatibleAdaptersError(
        f"differs from {task.base.name} in {count} tensors that no LoRA can hold: {', '.join(named)}"
        f"{' and more' if count > len(named) else ''}"
        + (
            f"; together the vectors and parameters are {sum(changed.values()) / total:.2g} of the change"
            if changed
            else ""
        ),
        path=task.tuned.name,
        expected="changes of linear layers, embeddings and convolutions only",
        remedy=[Setting("rest", "drop"), " to leave these out"],
    )


def _require_change(task: Task, wanted: Sequence[Compared], found: Sequence[Found]) -> None:
    if all(one.factors is None for one in found):
        how = "no tensor that was chosen is in both" if not wanted else "no module differs by more than rounding makes"
        raise IncompatibleAdaptersError(
            f"{how}, of {len(wanted)} that were compared with {task.base.name}",
            path=task.tuned.name,
            expected="a fine-tune of that base",
        )


def _report(
    task: Task,
    wanted: Sequence[Compared],
    found: Sequence[Found],
    others: Sequence[Compared],
    changes: Sequence[Energy],
    alone: Sequence[Alone],
) -> Extraction:
    total = sum(energy.change for energy in changes) + sum(one.energy.change for one in found)
    modules, left = [], [LeftOut(one.tensor, one.why, _share_alone(task, one, total)) for one in alone]
    unchanged = 0
    for pair, one in zip(wanted, found, strict=True):
        energy = one.energy
        if one.factors is not None and pair.module is not None:
            size = (energy.change / energy.base) ** 0.5 if energy.base else float("inf")
            kept, rounding = min(1.0, one.kept / energy.change), energy.rounding / energy.change
            modules.append(ExtractedModule(pair.module, one.factors.rank, size, kept, rounding, one.flat))
        elif energy.change:
            left.append(LeftOut(pair.tensor, "no more than rounding makes", energy.change / total))
        else:
            unchanged += 1
    for pair, energy in zip(others, changes, strict=True):
        if energy.change:
            left.append(LeftOut(pair.tensor, pair.why, energy.change / total))
        else:
            unchanged += 1
    inside = [one for one in found if one.factors is not None]
    change = sum(one.energy.change for one in inside)
    kept, rounding = sum(one.kept for one in inside), sum(one.energy.rounding for one in inside)
    return Extraction(tuple(modules), tuple(left), unchanged, min(1.0, kept / change), rounding / change)


def _share_alone(task: Task, one: Alone, total: float) -> float | None:
    if one.side != "both":
        return None
    change = difference(task.tuned, one.tensor, task.base, one.tensor, keep=False)[1].change
    return change / (total + change) if total + change else 0.0


def _warn(task: Task, report: Extraction, found: Sequence[Found]) -> None:
    inside = [one for one in found if one.factors is not None]
    change, weights = sum(one.energy.change for one in inside), sum(one.energy.base for one in inside)
    flat = sum(one.energy.change for one in inside if one.flat)
    reason = ""
    if change > _LARGE**2 * weights:
        reason = (
            f"the change is {(change / weights) ** 0.5 if weights else float('inf'):.2g} times as large as the weights"
        )
    elif flat > change / 2:
        reason = (
            f"the singular values of the change are as even as those of noise, and the adapter holds {report.kept:.2g} "
            "of its energy"
        )
    if reason:
        warnings.warn(
            f"{task.tuned.name} does not look like a fine-tune of {task.base.name}: {reason}", UserWarning, stacklevel=3
        )


def _adapter(
    task: Task,
    wanted: Sequence[Compared],
    found: Sequence[Found],
    report: Extraction,
    name: str,
    recipe: Mapping[str, Any],
    format: Format | None,
) -> ExtractedAdapter:
    modules, kinds = {}, {}
    for pair, one in zip(wanted, found, strict=True):
        if one.factors is not None and pair.module is not None:
            modules[pair.module], kinds[pair.module] = one.factors, pair.kind
    sources = tuple(_source(checkpoint) for checkpoint in (task.tuned, task.base))
    step = Step(recipe_text(recipe), tuple((source.name, source) for source in sources), recipe)
    provenance = Provenance(
        format=format or "peft",
        base_model=_model_name(task.base),
        fan_in_fan_out=any(p.turned and p.kind.name == "linear" and p.module in modules for p in wanted),
        sources=sources,
        operations=(step.operation,),
        made=Made(step),
    )
    reader = MemoryReader(modules, kinds, task.dtype)
    adapter = ExtractedAdapter.from_reader(reader, name=name, provenance=provenance)
    assert isinstance(adapter, ExtractedAdapter)
    adapter.report = report
    return adapter


def _source(checkpoint: Checkpoint) -> Source:
    if not isinstance(checkpoint, FileCheckpoint):
        return Source(checkpoint.name)
    version = checkpoint.shards[0].version if len(checkpoint.shards) == 1 else None  # of a single file, which is hashed
    return Source(checkpoint.path.name, checkpoint.path, opened=(version, None))


def _model_name(base: Checkpoint) -> str | None:
    named: Mapping[str, Any] = base.config
    recorded = named.get("_name_or_path")
    if isinstance(recorded, str) and recorded:
        return recorded
    return base.path.name if isinstance(base, FileCheckpoint) else None
