"""The element-wise rules, adapters for them to merge, and their results as dense updates."""

import pytest
import torch
from sklearn.base import clone

from lorakit import (
    AdapterSet,
    BreadcrumbsMerger,
    DareMerger,
    DellaMerger,
    MagnitudeMerger,
    SCEMerger,
    TaskArithmeticMerger,
    TiesMerger,
)
from lorakit.testing import make_adapters

RULES = [
    TiesMerger(density=0.3),
    TiesMerger(density=0.3, convention="official"),
    MagnitudeMerger(density=0.3),
    TiesMerger(density=0.3, disjoint="max", rescale="l2"),
    BreadcrumbsMerger(density=0.3, gamma=0.1),
    BreadcrumbsMerger(density=0.3, gamma=0.1, trim_scope="row", rescale="l1"),
    DareMerger(random_state=0),
    DareMerger(sign_election=True, random_state=0),
    DareMerger(rescale="l1", random_state=0),
    DellaMerger(random_state=0),
    DellaMerger(sign_election=False, rescale="linf", random_state=0),
    SCEMerger(density=0.3),
    SCEMerger(density=0.3, convention="official"),
    TaskArithmeticMerger(),
]
SPACES = ["delta", "factors", "core", "knots"]
EVERY_RULE = pytest.mark.parametrize("merger", RULES, ids=str)


def adapters(space="delta", **options):
    ranks = (4, 4, 4) if space == "factors" else (3, 5, 4)
    defaults = {"ranks": ranks, "d_in": 21, "d_out": 17, "n_modules": 1, "dtype": torch.float64, "random_state": 0}
    return AdapterSet(make_adapters(**defaults | options))


def dense(merger, X, **params):
    """Dense merged updates by module; at full rank unless ``k`` is given."""
    merger = clone(merger).set_params(**params)
    if "k" not in params:
        limits = [merger._rank_limit([i for i in X.infos(m) if i]) for m in X.module_names]
        merger.set_params(k=max(limits))
    return {module: factors.delta() for module, factors in merger.fit(X).merged_.items()}


def distance(x, y):
    return max(float((x[m] - y[m]).norm() / y[m].norm()) for m in y)
