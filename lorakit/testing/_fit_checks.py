"""What fitting promises: which state it leaves, and what its result does not depend on."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..factors import LoraFactors
from ..io import load_adapters, save_adapter
from ._common_checks import RANK, adapters_for, raises, same_bits, same_update, seeded
from .adapters import make_adapters
from .changes import Gauge


def _with_rank(estimator: Any, k: int) -> Any:
    return estimator.set_params(k=k) if "k" in estimator.get_params() else estimator


def _same_outputs(x: Any, y: Any) -> None:
    for before, after in zip(x, y, strict=True):
        same_bits(before, after)


def check_fit_returns_self(estimator: Any) -> None:
    """``fit`` returns self and takes a plain list as well as an AdapterSet."""
    assert estimator.fit(list(adapters_for(estimator))) is estimator
    assert estimator.n_adapters_in_ == 3
    assert estimator.module_names_in_ == ("layer.0", "layer.1")


def check_fit_transform(estimator: Any) -> None:
    """``fit_transform(X)`` is ``fit(X).transform(X)``."""
    X = adapters_for(estimator)
    seeded(estimator)
    together, apart = clone(estimator).fit_transform(X), clone(estimator).fit(X).transform(X)
    assert isinstance(together, AdapterSet)
    assert isinstance(apart, AdapterSet)
    _same_outputs(together, apart)


def check_y_is_ignored(estimator: Any) -> None:
    """``fit`` and ``fit_transform`` take a y, as scikit-learn's pipelines and searches pass one, and ignore it."""
    X = adapters_for(estimator)
    seeded(estimator)
    plain = clone(estimator).fit_transform(X)
    _same_outputs(plain, clone(estimator).fit(X, [2, 0, 1]).transform(X))
    _same_outputs(plain, clone(estimator).fit_transform(X, y=[2, 0, 1]))


def check_fitted_state(estimator: Any) -> None:
    """Fitting adds attributes that end in an underscore, and nothing else; transforming adds and changes none."""
    X = adapters_for(estimator)
    if estimator.__sklearn_tags__().requires_fit:
        with raises(NotFittedError, "not fitted"):
            check_is_fitted(estimator)
    before = set(vars(estimator))
    estimator.fit(X)
    check_is_fitted(estimator)
    added = set(vars(estimator)) - before
    public = sorted(name for name in added if not name.startswith("_") and not name.endswith("_"))
    assert not public, f"fit sets {public}; what is learned ends in an underscore"
    state = dict(vars(estimator))
    estimator.transform(X)
    assert vars(estimator).keys() == state.keys(), "transform adds or removes attributes"
    changed = [name for name, value in vars(estimator).items() if value is not state[name]]
    assert not changed, f"transform changes {changed}"


def check_refit(estimator: Any) -> None:
    """Fitting anew, with other parameters and other adapters, leaves nothing of the first fit."""
    X = adapters_for(estimator)
    other = AdapterSet(adapter.select(["layer.1"]) for adapter in X[1:])
    seeded(estimator)
    used = _with_rank(clone(estimator), RANK).fit(X)
    used = _with_rank(used, RANK - 1).fit(other)
    fresh = _with_rank(clone(estimator), RANK - 1).fit(other)
    assert vars(used).keys() == vars(fresh).keys()
    for name, value in vars(fresh).items():
        if isinstance(value, dict) and name.endswith("_"):
            assert vars(used)[name].keys() == value.keys(), f"{name} keeps modules of the first fit"
    _same_outputs(used.transform(other), fresh.transform(other))


def check_one_adapter(estimator: Any) -> None:
    """One adapter is enough; the result has its modules and widths."""
    X = adapters_for(estimator)[:1]
    (out,) = seeded(estimator).fit(X).transform(X)
    for module, factors in out.items():
        assert factors.rank > 0, module
        assert (factors.d_out, factors.d_in) == X[0].infos[module][2:0:-1], module
        assert all(torch.isfinite(x).all() for x in factors), module


def check_origin(estimator: Any) -> None:
    """Adapters in files, read when they are needed, give the bits that adapters in memory give."""
    X = adapters_for(estimator)
    seeded(estimator)
    in_memory = clone(estimator).fit_transform(X)
    from_files = clone(estimator).fit_transform(load_adapters(list(_saved(X[0].ranks))))
    _same_outputs(from_files, in_memory)
    # tensors that are not contiguous are summed in another order
    strided = clone(estimator).fit_transform([_strided(adapter) for adapter in X])
    for x, y in zip(strided, in_memory, strict=True):
        same_update(x, y)


@cache
def _saved(ranks: tuple[int, ...]) -> tuple[Path, ...]:
    """Files of the adapters that ``adapters_for`` makes, written once a process, as each write waits for the disk."""
    folder = Path(mkdtemp(prefix="lorakit-contract-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    X = make_adapters(ranks=(*ranks, 5, 5), random_state=0)
    return tuple(save_adapter(adapter, folder / adapter.name) for adapter in X)


def _strided(adapter: Adapter) -> Adapter:
    """The same adapter in tensors that are not contiguous."""
    modules = {m: LoraFactors(f.A.T.contiguous().T, f.B.T.contiguous().T) for m, f in adapter.items()}
    return Adapter(modules, name=adapter.name)


def check_gauges(estimator: Any) -> None:
    """Reparametrizations of the factors that ``invariances`` names leave the resulting updates as they are."""
    X = adapters_for(estimator, dtype=torch.float64)
    _with_rank(seeded(estimator), RANK)
    plain = clone(estimator).fit_transform(X)
    for kind in sorted(estimator.invariances):
        for x, y in zip(clone(estimator).fit_transform(Gauge(kind, seed=7)(X)), plain, strict=True):
            try:
                same_update(x, y, 1e-6)
            except AssertionError as error:
                raise AssertionError(f"{kind!r} is in `invariances`, but {error}") from None


def check_float64(estimator: Any) -> None:
    """float64 inputs are computed in float64: the result is not what float32 could hold."""
    X = adapters_for(estimator, dtype=torch.float64)
    _with_rank(seeded(estimator), RANK)
    for adapter in estimator.fit_transform(X):
        for module, factors in adapter.items():
            assert factors.dtype == torch.float64, module
            rounded = all(torch.equal(x, x.float().double()) for x in factors)
            assert not rounded, f"module {module!r} was computed in float32 and converted"


def check_not_finite(estimator: Any) -> None:
    """A value that is not a number is refused, with the module's name."""
    X = adapters_for(estimator)
    a, b = X[2]["layer.1"]
    bad = a.clone()
    bad[0, 0] = torch.nan
    broken = Adapter({"layer.0": X[2]["layer.0"], "layer.1": LoraFactors(bad, b)}, name=X[2].name)
    try:
        seeded(estimator).fit_transform([*X[:2], broken])
    except Exception as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", [])])
        assert "layer.1" in said, f"the error does not name the module: {said}"
    else:
        raise AssertionError("a NaN in the input raised no error")
