"""What every merger promises."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from ..adapters import Adapter
from ..base import BaseMerger
from ..exceptions import IncompatibleAdaptersError, ParameterError, ZeroMergeWarning
from ..factors import LoraFactors
from ..metrics import relative_error
from ..model_selection.rank_path import rank_path
from ..pruning.svd import SVDPruner
from ._common_checks import RANK, adapters_for, raises, same_bits, same_update, seeded
from .adapters import make_adapters


def check_merged(merger: BaseMerger) -> None:
    """``merged_`` has every module, the inputs' widths, and rank k."""
    X = adapters_for(merger)
    merged = merger.set_params(k=RANK).fit(X).merged_
    assert set(merged) == set(X.module_names)
    for module, factors in merged.items():
        assert (factors.d_in, factors.d_out, factors.rank) == (24, 16, RANK), module
    assert merged.provenance.sources == tuple(source for adapter in X for source in adapter.provenance.sources)
    assert type(merger).__name__ in merged.provenance.operations[-1]


def check_transform_never_merges(merger: BaseMerger) -> None:
    """``transform`` returns ``merged_`` for adapters it has not seen, and refuses other modules."""
    with raises(NotFittedError, "not fitted"):
        merger.transform(adapters_for(merger))
    merger.fit(adapters_for(merger))
    (out,) = merger.transform(adapters_for(merger, random_state=1)[:2])
    assert out is merger.merged_
    with raises(IncompatibleAdaptersError, "other"):
        merger.transform([adapters_for(merger)[0].rename_modules(lambda module: f"other.{module}")])


def check_score(merger: BaseMerger) -> None:
    """``score`` is minus a relative error: at most 0, finite, also on left-out adapters."""
    X = adapters_for(merger)
    merger.fit(X[:2])
    assert -1e3 < merger.score(X) <= 0
    assert np.isfinite(merger.score(X[2:]))


def check_adapter_order(merger: BaseMerger) -> None:
    """The order of the adapters changes nothing but round-off."""
    seeded(merger).set_params(k=RANK)
    X = adapters_for(merger, dtype=torch.float64)
    same_update(clone(merger).fit(X[[2, 0, 1]]).merged_, clone(merger).fit(X).merged_, 1e-6)


def check_weights(merger: BaseMerger) -> None:
    """A weight of zero is absence, only ratios count, names work as positions do, invalid weights are refused."""
    seeded(merger).set_params(k=RANK)
    X = adapters_for(merger, dtype=torch.float64)

    def merged(weights, adapters=X):
        return clone(merger).set_params(weights=weights).fit(adapters).merged_

    assert relative_error(merged([5, 1, 1]), merged([1, 1, 5])) > 1e-6, "the weights change nothing"
    same_update(merged([1, 0, 3]), merged([1, 3], X[[0, 2]]), 1e-6)
    same_update(merged([1, 0, 3]), merged([2, 0, 6]), 1e-6)
    same_bits(merged([1, 0, 3]), merged({"task0": 1, "task1": 0, "task2": 3, "another": 9}))
    for bad in ([1, 2], [1, 2, np.nan], [0, 0, 0], {"task0": 1}):
        with raises(ValueError, "weight"):
            merged(bad)


def check_strengths(merger: BaseMerger) -> None:
    """A strength multiplies the adapter's update before the merge; strengths of 1 give a mean's sum; 0 is absence."""
    assert "strengths" in merger.get_params(), "the constructor takes no strengths"
    seeded(merger).set_params(k=RANK)
    X = adapters_for(merger, dtype=torch.float64)
    c = (0.7, -0.5, 1.5)

    def merged(strengths, adapters=X):
        return clone(merger).set_params(strengths=strengths).fit(adapters).merged_

    multiplied = [Adapter({m: f.scaled(x) for m, f in a.items()}, name=a.name) for x, a in zip(c, X, strict=True)]
    ones = merged([1, 1, 1], multiplied)
    same_update(merged(c), ones, 1e-6)
    plain = clone(merger).fit(multiplied).merged_
    size = len(X) ** merger._weights_degree if merger.averages else 1
    if merger.get_params().get("coefficient", 1) is not None:  # else strengths stand for it
        same_update(ones, Adapter({m: f.scaled(size) for m, f in plain.items()}), 1e-6)
    same_bits(merged([0.7, 0, 1.5]), merged([0.7, 1.5], X[[0, 2]]))
    same_bits(merged(c), merged({"task0": 0.7, "task1": -0.5, "task2": 1.5, "another": 9}))
    for bad in ([1, 2], [1, 2, np.inf], [0, 0, 0], {"task0": 1}):
        with raises(ValueError, "strength"):
            merged(bad)
    with raises(ParameterError, "weights are shares"):
        clone(merger).set_params(weights=[1, 1, 1], strengths=[1, 1, 1]).fit(X)


def check_left_out(merger: BaseMerger) -> None:
    """An adapter of weight zero has no say in the ranks or in the dtype."""
    seeded(merger)
    X = adapters_for(merger)
    wide = make_adapters(1, ranks=9, dtype=torch.float64, random_state=7)[0].renamed("lacking")
    for options in ({}, {"k": 0.9}, {"scale": "match"}):
        fitted = clone(merger).set_params(weights=[1, 3, 0], **options).fit([*X[:2], wide])
        alone = clone(merger).set_params(weights=[1, 3], **options).fit(X[:2]).merged_
        same_bits(fitted.merged_, alone)
        assert fitted.merged_.dtype == alone.dtype


def check_copies(merger: BaseMerger) -> None:
    """A weight of 2 equals listing the adapter twice, or does not, as ``weights_as_copies`` says."""
    seeded(merger).set_params(k=RANK)
    X = adapters_for(merger, dtype=torch.float64)
    weighted = clone(merger).set_params(weights=[2, 1, 1]).fit(X).merged_
    listed = clone(merger).fit([X[0].renamed("lacking"), *X]).merged_
    if merger.weights_as_copies:
        same_update(weighted, listed, 1e-6)
    else:
        assert relative_error(weighted, listed) > 1e-4, "a weight of 2 equals listing the adapter twice"


def check_negative_weights(merger: BaseMerger) -> None:
    """A negative weight is refused by name, or counts as the adapter negated."""
    seeded(merger).set_params(k=RANK)
    X = adapters_for(merger, dtype=torch.float64)
    signed = clone(merger).set_params(weights=[2, -1, 1])
    if not merger._signed_weights:
        with raises(ValueError, "negative weights"):
            signed.fit(X)
        return
    both = merger._weights_degree == 2  # the weights act on A and on B
    units = {m: LoraFactors(-f.A, -f.B) if both else f.scaled(-1) for m, f in X[1].items()}
    negated = [X[0], Adapter(units, name=X[1].name), X[2]]
    plain = clone(merger).set_params(weights=[2, 1, 1]).fit(negated).merged_
    same_update(signed.fit(X).merged_, plain, 1e-6)


def check_zero(merger: BaseMerger) -> None:
    """A merge that comes out as zero is zero at every scale, and warns."""
    # as training begins: A is random, and B is zero
    X = [Adapter({m: LoraFactors(f.A, 0 * f.B) for m, f in a.items()}, name=a.name) for a in adapters_for(merger)]
    for options in ({}, {"k": RANK}, {"scale": "match"}, {"scale": "match", "scale_scope": "model"}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = seeded(clone(merger)).set_params(**options).fit(X).merged_
        assert not any(factors.delta().any() for factors in merged.values())
        said = [str(w.message) for w in caught if issubclass(w.category, ZeroMergeWarning)]
        assert any(type(merger).__name__ in text for text in said), "a merge that is zero did not warn"


def check_scale(merger: BaseMerger) -> None:
    """``scale`` multiplies the update; 'match' sets its norm."""
    seeded(merger).set_params(k=RANK)
    X = adapters_for(merger, dtype=torch.float64)
    plain = clone(merger).set_params(scale=1.0).fit(X).merged_
    doubled = clone(merger).set_params(scale=2.0).fit(X).merged_
    same_update(doubled, Adapter({m: f.scaled(2) for m, f in plain.items()}), 1e-6)
    for scope in ("module", "model"):
        matched = clone(merger).set_params(scale="match", scale_target=1.5, scale_scope=scope).fit(X).merged_
        scopes = [(m,) for m in X.module_names] if scope == "module" else [X.module_names]
        for modules in scopes:

            def norm(adapter, modules=modules):
                return float(sum((f.delta() ** 2).sum() for m, f in adapter.items() if m in modules) ** 0.5)

            wanted = 1.5 * np.mean([norm(adapter) for adapter in X])
            assert abs(norm(matched) / wanted - 1) < 1e-6


def check_missing_module(merger: BaseMerger) -> None:
    """An adapter may lack a module: the others' merge is there, at a rank they allow."""
    X = adapters_for(merger)
    lacking = Adapter({"layer.0": X[0]["layer.0"]}, name="lacking")
    merged = merger.fit([lacking, X[1], X[2]]).merged_
    assert set(merged) == {"layer.0", "layer.1"}
    assert all(torch.isfinite(x).all() for factors in merged.values() for x in factors)
    assert float(merged["layer.1"].delta().norm()) > 0


def check_rank_path(merger: BaseMerger) -> None:
    """A fit at several ranks at once gives and learns the same as a fit at each rank alone."""
    X = adapters_for(merger, dtype=torch.float64)
    for k, swept in rank_path(seeded(merger), X, [RANK, 2, None]).items():
        alone = clone(merger).set_params(k=k).fit(X)
        same_update(swept.merged_, alone.merged_, 1e-6)
        assert swept.merged_.ranks == alone.merged_.ranks
        assert swept.merged_.provenance == alone.merged_.provenance
        assert vars(swept).keys() == vars(alone).keys()
        for name, learned in vars(alone).items():
            if isinstance(learned, dict) and name.endswith("_"):
                for module, value in learned.items():
                    assert _alike(vars(swept)[name][module], value), f"{name} of module {module!r} at k={k} differs"


def _alike(x: object, y: object) -> bool:
    try:
        return bool(np.allclose(x, y, rtol=1e-6, atol=1e-6))  # type: ignore[arg-type]  # hence the try
    except TypeError:
        return True  # no numbers


def check_in_pipeline(merger: BaseMerger) -> None:
    """After a pruner in a pipeline it gives the same as alone; scores work with and without metadata routing."""
    X = adapters_for(merger)
    pruner = SVDPruner(k=3)  # all of one rank, for mergers that need equal ranks
    seeded(merger).set_params(k=3)
    alone = clone(merger).fit(pruner.fit_transform(X))
    for routing in (False, True):
        with config_context(enable_metadata_routing=routing):
            pipeline = make_pipeline(pruner, clone(merger)).fit(X)
            (out,) = pipeline.transform(X[:1])
            same_bits(out, alone.merged_)
            assert pipeline.score(X) == alone.score(pruner.transform(X))
