"""What every pruner promises, and every other step that gives as many adapters as it takes."""

from __future__ import annotations

import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from ..adapter_set import AdapterSet
from ..base import BasePruner, BaseTransformer
from ..exceptions import IncompatibleAdaptersError
from ..merging.lego import LegoMerger
from ..merging.svd import SVDMerger
from ..metrics import relative_error
from ._common_checks import RANK, adapters_for, raises, same_bits, same_update, seeded
from .adapters import make_adapters


def check_pruned(pruner: BasePruner) -> None:
    """As many adapters out as in, same names and modules, each at rank k or the lower one it had."""
    X = adapters_for(pruner)
    out = pruner.set_params(k=RANK).fit_transform(X)
    assert out.names == X.names
    for before, after in zip(X, out, strict=True):
        assert set(before) == set(after)
        assert after.ranks == (min(RANK, *before.ranks),)
    same_update(out[0], X[0])  # of rank 3 already
    assert 0 < relative_error(out[1], X[1]) < 2


def check_pruner_stateless(pruner: BasePruner) -> None:
    """``transform`` prunes what it is given, fitted or not, each adapter on its own."""
    X = adapters_for(pruner)
    seeded(pruner).set_params(k=RANK)
    together = clone(pruner).transform(X)
    for i in range(len(X)):
        (alone,) = clone(pruner).fit(X[1:2]).transform(X[i : i + 1])
        same_bits(alone, together[i])


def check_pruner_idempotent(pruner: BasePruner) -> None:
    """Pruning a second time changes nothing."""
    once = seeded(pruner).set_params(k=RANK).fit_transform(adapters_for(pruner))
    for a, b in zip(once, clone(pruner).fit_transform(once), strict=True):
        same_update(a, b)


def check_transformer_bad_input(transformer: BaseTransformer) -> None:
    """No adapters, other objects and differing widths are refused by name, before fitting and when transforming."""
    for refuse in (clone(transformer).fit, clone(transformer).transform):
        with raises(ValueError, "at least one adapter"):
            refuse([])
        with raises(TypeError, "load_adapters"):
            refuse(["a/path"])
        with raises(IncompatibleAdaptersError, "layer.0"):
            refuse([*adapters_for(transformer), *make_adapters(1, ranks=5, d_in=25, random_state=1)])


def check_transformer_deterministic(transformer: BaseTransformer) -> None:
    """Every call gives equal bits, fitted or not, for any ``n_jobs``."""
    X = adapters_for(transformer)
    seeded(transformer)
    again = clone(transformer)
    if "n_jobs" in again.get_params():
        again.set_params(n_jobs=2)
    for x, y in zip(transformer.fit(X[:2]).transform(X), again.transform(X), strict=True):
        same_bits(x, y)


def check_transformer_keeps(transformer: BaseTransformer) -> None:
    """As many adapters, of the same names and dtypes; modules in their order; sources kept, the operation added."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        X = adapters_for(transformer, dtype=dtype)
        X = AdapterSet([X[0], X[1].select(["layer.1"]), X[2]])
        out = clone(transformer).fit_transform(X)
        assert out.names == X.names
        for before, after in zip(X, out, strict=True):
            assert list(after) == [module for module in before if module in set(after)]
            assert after.dtype == dtype
            assert after.provenance.sources == before.provenance.sources
            assert after.provenance.operations[:-1] == before.provenance.operations
            assert type(transformer).__name__ in after.provenance.operations[-1]
            for module, factors in after.items():
                assert (factors.d_in, factors.d_out) == before.infos[module][1:3]
                assert all(torch.isfinite(x).all() for x in factors)


def check_transformer_in_pipelines(transformer: BaseTransformer) -> None:
    """Before a merger in a pipeline it gives the same as alone."""
    X = adapters_for(transformer)
    seeded(transformer)
    for merger in (LegoMerger(k=RANK, n_init=2, random_state=0), SVDMerger(k=RANK)):
        (merged,) = make_pipeline(clone(transformer), clone(merger)).fit_transform(X)
        same_bits(merged, merger.fit(clone(transformer).transform(X)).merged_)
        names = [operation.split("(")[0] for operation in merged.provenance.operations]
        assert names == [type(transformer).__name__, type(merger).__name__]
