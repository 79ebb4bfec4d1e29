"""What LoRA-LEGO's clusters hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..adapter_set import AdapterSet
from ..metrics import cluster_composition, norm_decay


class Clusters(NamedTuple):
    """Of one module, or of all modules together."""

    n: int
    units: int
    purity: float
    mixed: float  # share of the units in clusters of more than one adapter
    alone: float  # share of the clusters that hold one unit
    kept: float  # centroid's norm over the mean norm of its members; mean over units


def clusters_of(merger: Any, adapters: AdapterSet) -> tuple[dict[str, Clusters], list[list[int]]] | None:
    """Describe the clusters of a fitted LegoMerger, by module; None for other mergers.

    Returns
    -------
    by_module : dict of str to Clusters
        By module.
    sizes : list of list of int
        How many clusters hold units of 1, 2, ... adapters, as numbers of clusters and of units.
    """
    if not hasattr(merger, "labels_") or not hasattr(merger, "owners_"):
        return None
    composition, decay = cluster_composition(merger, adapters), norm_decay(merger, adapters)
    purity, mixed, ratio = composition.purity, composition.mixed, decay.ratio
    found = {}
    counts = np.zeros((len(adapters), 2), dtype=int)
    for module, table in composition.counts.items():
        sizes = table.sum(axis=1)
        if not sizes.sum():
            continue
        held = (table > 0).sum(axis=1)
        for shared in range(1, len(adapters) + 1):
            counts[shared - 1] += (int((held == shared).sum()), int(sizes[held == shared].sum()))
        weights = decay.sizes[module]
        kept = float((ratio[module] * weights).sum() / weights.sum())
        alone = float((sizes == 1).sum() / max((sizes > 0).sum(), 1))
        found[module] = Clusters(int((sizes > 0).sum()), int(sizes.sum()), purity[module], mixed[module], alone, kept)
    return found, counts.tolist()
