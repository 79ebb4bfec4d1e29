"""Facts about adapters, and about several of them together."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from .. import Adapter, AdapterSet
from .._validation import check_adapters, check_equal_ranks
from ..exceptions import LorakitError
from ..io.formats.known_kinds import FULL_RANK, known_kind
from ..io.names.component import components_of
from ..io.origin import family_of, trainer_of
from ..metrics import cosine_matrix
from ._errors import message
from ._measure import source_bytes
from ._report import ranks_text

# What other commands do with parameters without factors, by the option
_THEN = {
    "refuse": "refused by merge and others, unless --differences keep or drop says what to do",
    "keep": "added up by the methods concat, svd and task_arithmetic, kept by prune and convert, refused by others",
    "drop": "left out",
}
_MOST_COSINES = 20  # a larger matrix is read by nobody


def describe(adapter: Adapter, differences: str = "keep") -> dict[str, Any]:
    """Return what an opened adapter says of itself.

    Parameters
    ----------
    adapter : Adapter
        The adapter, read with its differences of parameters without factors.
    differences : {'refuse', 'keep', 'drop'}
        What other commands are to do with these.
    """
    known = adapter.provenance
    counts = Counter(info.rank for info in adapter.infos.values())
    return {
        "name": adapter.name,
        "path": str(known.sources[0].path),
        "format": known.format,
        "kinds": list(known.stored_as),
        "trainer": trainer_of(adapter),
        "family": family_of(adapter),
        "read_as": read_as(adapter),
        "components": [name for name in components_of(adapter) if name] if known.format == "diffusers" else [],
        "differences": differences_in(adapter, differences),
        "base_model": known.base_model,
        "task_type": known.task_type,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "modules": len(adapter),
        "ranks": {str(rank): counts[rank] for rank in sorted(counts)},
        "scaling": _scaling(adapter),
        "parameters": adapter.n_parameters,
        "bytes": source_bytes(adapter),
    }


def differences_in(adapter: Adapter, policy: str) -> dict[str, Any] | None:
    """Say what an adapter adds to parameters without factors, and what is done with it; None if nothing."""
    if adapter.differences is None:
        return None
    names = list(adapter.differences.infos)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return {
        "parameters": len(names),
        "numbers": sum(prod(shape) for _, shape in adapter.differences.infos.values()),
        "layers": layers,
        "without_factors": sum(layer not in adapter for layer in layers),
        "then": _THEN[policy],
    }


def read_as(adapter: Adapter) -> str:
    """Say what an adapter is to everything that is done with it: a LoRA of which rank, and whether exactly.

    Examples
    --------
    >>> from lorakit.testing import make_adapters
    >>> read_as(make_adapters(1, ranks=(4,), random_state=0)[0])
    'plain LoRA of rank 4, exactly'
    """
    kinds = [known_kind(name) for name in adapter.provenance.stored_as]
    ranks = ranks_text(sorted(set(adapter.ranks)))
    if all(kind.rank == "r" and not kind.needs for kind in kinds):
        return f"plain LoRA of rank {ranks}, exactly"
    if any(kind.rank == FULL_RANK for kind in kinds):
        return f"the change that it makes to the base, of full rank {ranks}; -k cuts it and reports the error"
    how = "; ".join(f"{kind.name}: {kind.rank}" for kind in kinds if kind.rank != "r")
    return f"plain LoRA of rank {ranks}, exactly{f' ({how})' if how else ''}"


def fit_together(adapters: AdapterSet) -> dict[str, Any]:
    """Say whether adapters can be merged, by which kind of method, and how alike their updates are."""
    try:
        check_adapters(adapters, differences=True)
    except LorakitError as error:
        return {"mergeable": False, "reason": message(error), "equal_ranks": None, "cosines": None}
    try:
        check_equal_ranks(adapters)
        equal_ranks = True
    except LorakitError:
        equal_ranks = False
    cosines = cosine_matrix(adapters).tolist() if len(adapters) <= _MOST_COSINES else None
    return {"mergeable": True, "reason": None, "equal_ranks": equal_ranks, "cosines": cosines}


def _scaling(adapter: Adapter) -> list[float] | None:
    """Return the distinct factors alpha / r (or alpha / sqrt(r)) that the files give; None if they give none."""
    scales = {adapter.scale(module) for module in adapter}
    return sorted(scale for scale in scales if scale is not None) or None
