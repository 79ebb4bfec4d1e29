"""The other names under which the modules of an adapter would fit a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from ..adapters import Adapter
from ..files.checkpoint import Checkpoint


def find_renaming(missing: Collection[str], adapter: Adapter, checkpoint: Checkpoint) -> Mapping[str, str]:
    """Find one change of the beginnings of names with which the modules that are missing are all found.

    Only what is sure is proposed: the same change for all of them, and no other that would do as well.

    Returns
    -------
    mapping of str to str
        New names of the missing modules; empty if there is no such change.
    """
    by_end: dict[str, list[str]] = {}
    for module in checkpoint.modules:
        by_end.setdefault(module.rpartition(".")[2], []).append(module)
    votes: Counter[tuple[str, str]] = Counter()
    for module in missing:
        votes.update(_changes(module, by_end.get(module.rpartition(".")[2], []), adapter, checkpoint))
    whole = [change for change, count in votes.items() if count == len(missing)]
    # the same change may be written with more of what follows it
    whole.sort(key=lambda change: len(change[0]))
    if not whole or len({_after(change, module) for change in whole for module in list(missing)[:1]}) > 1:
        return {}
    old, new = whole[0]
    return {module: new + module[len(old) :] for module in missing}


def _after(change: tuple[str, str], module: str) -> str:
    return change[1] + module[len(change[0]) :]


def _changes(
    module: str, candidates: Collection[str], adapter: Adapter, checkpoint: Checkpoint
) -> set[tuple[str, str]]:
    found = set()
    info = adapter.infos[module]
    for candidate in candidates:
        stored = checkpoint.infos.get(f"{candidate}.weight")
        if stored is None or sorted(stored.shape[:2]) != sorted(
            (info.d_out, stored.shape[1] if len(stored.shape) > 2 else info.d_in)
        ):
            continue
        same = _common_end(module, candidate)
        if same.count(".") >= 1:  # two parts of the name, such as 3.query
            found.add((module.removesuffix(same), candidate.removesuffix(same)))
    return found


def _common_end(one: str, other: str) -> str:
    ends = []
    for a, b in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        ends.append(a)
    return ".".join(reversed(ends))
