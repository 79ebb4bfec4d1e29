"""What every estimator on adapters promises, and helpers that the checks of all kinds share."""

from __future__ import annotations

import pickle
from typing import Any
from unittest import TestCase

import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.utils import estimator_html_repr

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..base import BaseMerger, BasePruner
from ..exceptions import IncompatibleAdaptersError
from ..metrics import relative_error
from .adapters import make_adapters

RANK = 4
raises = TestCase().assertRaisesRegex  # the standard library's, so that users need no pytest


def adapters_for(estimator: BaseMerger | BasePruner, **options: Any) -> AdapterSet:
    equal = getattr(estimator, "needs_equal_ranks", False)
    defaults: dict[str, Any] = {"ranks": (5, 5, 5) if equal else (3, 5, 5), "random_state": 0}
    return AdapterSet(make_adapters(**defaults | options))


def seeded(estimator):
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    return estimator


def same_update(x: Adapter, y: Adapter, tolerance: float = 1e-5) -> None:
    assert set(x) == set(y)
    error = relative_error(x, y)
    assert error < tolerance, f"updates differ by {error:.1e} of their norm"


def same_bits(x: Adapter, y: Adapter) -> None:
    assert set(x) == set(y)
    for module in x:
        for a, b in zip(x[module], y[module], strict=True):
            assert torch.equal(a, b), f"module {module!r} differs"


def check_input_unchanged(estimator: BaseMerger | BasePruner) -> None:
    """Neither the adapters nor the parameters change."""
    X = adapters_for(estimator)
    before, params = pickle.dumps(X), str(estimator.get_params())
    seeded(estimator)
    params = str(estimator.get_params())
    estimator.fit_transform(X)
    assert pickle.dumps(X) == before
    assert str(estimator.get_params()) == params


def check_bad_input(estimator: BaseMerger | BasePruner) -> None:
    """No adapters, other objects, differing widths and impossible ranks are refused by name."""
    with raises(ValueError, "at least one adapter"):
        clone(estimator).fit([])
    with raises(TypeError, "load_adapters"):
        clone(estimator).fit(["a/path"])
    wide = make_adapters(1, ranks=5, d_in=25, random_state=1)
    with raises(IncompatibleAdaptersError, "layer.0"):
        clone(estimator).fit([*adapters_for(estimator), *wide])
    elsewhere = adapters_for(estimator)[2].rename_modules(lambda module: f"model.{module}")
    with raises(IncompatibleAdaptersError, "removeprefix"):
        clone(estimator).fit([*adapters_for(estimator)[:2], elsewhere])
    with raises(ValueError, "k=1000 is above"):
        clone(estimator).set_params(k=1000).fit(adapters_for(estimator))
    with raises(ValueError, "'k' parameter"):
        clone(estimator).set_params(k=0).fit(adapters_for(estimator))


def check_deterministic(estimator: BaseMerger | BasePruner) -> None:
    """Equal seeds give equal bits, for any ``n_jobs`` and whatever other modules the adapters have."""
    seeded(estimator)
    X = adapters_for(estimator)
    (first, *_) = clone(estimator).fit(X).transform(X)
    (again, *_) = clone(estimator).set_params(n_jobs=2).fit(X).transform(X)
    same_bits(first, again)
    one_module = AdapterSet(Adapter({"layer.1": a["layer.1"]}, name=a.name) for a in X)
    (alone, *_) = clone(estimator).fit(one_module).transform(one_module)
    same_bits(alone, Adapter({"layer.1": first["layer.1"]}))


def check_dtypes(estimator: BaseMerger | BasePruner) -> None:
    """The result has the inputs' dtype, is finite, and half precision is only rounded, not computed in."""
    seeded(estimator).set_params(k=RANK)
    exact = adapters_for(estimator, dtype=torch.float64)
    (reference, *_) = clone(estimator).fit_transform(exact)
    assert reference.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        (out, *_) = clone(estimator).fit_transform(adapters_for(estimator, dtype=dtype))
        assert out.dtype == dtype
        assert all(torch.isfinite(x).all() for factors in out.values() for x in factors)


def check_pickle(estimator: BaseMerger | BasePruner) -> None:
    """A fitted estimator survives pickling."""
    X = adapters_for(estimator)
    seeded(estimator).fit(X)
    for before, after in zip(estimator.transform(X), pickle.loads(pickle.dumps(estimator)).transform(X), strict=True):
        same_bits(before, after)


def check_html(estimator: BaseMerger | BasePruner) -> None:
    """scikit-learn's diagram shows it, before and after fitting."""
    name = type(estimator).__name__
    assert name in estimator_html_repr(estimator)
    assert name in estimator_html_repr(estimator.fit(adapters_for(estimator)))


def check_set_output(estimator: BaseMerger | BasePruner) -> None:
    """``set_output`` refuses tables; scikit-learn's global setting does not change the output."""
    X = adapters_for(estimator)
    with raises(ValueError, "AdapterSet"):
        estimator.set_output(transform="pandas")
    assert estimator.set_output(transform="default") is estimator
    with config_context(transform_output="pandas"):
        assert isinstance(estimator.fit_transform(X), AdapterSet)
