"""Estimators written elsewhere: correct ones keep the contract, each mistake is caught by the check that names it."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

from lorakit import LoraFactors
from lorakit.base import BaseMerger, BasePruner
from lorakit.linalg import split_svd, svd_of_sum
from lorakit.testing import check_merger, check_pruner, estimator_checks, parametrize_with_checks


class MeanMerger(BaseMerger):
    """The weighted mean of the updates, truncated."""

    method = "mean"

    def __init__(self, k=None, *, weights=None, strengths=None, scale=1.0, scale_target=1.0, scale_scope="module",
                 random_state=None, n_jobs=None, device=None, verbose=0):  # fmt: skip
        self.k = k
        self.weights = weights
        self.strengths = strengths
        self.scale = scale
        self.scale_target = scale_target
        self.scale_scope = scale_scope
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _merge_module_path(self, updates, weights, ks, rng):
        u, s, vh = svd_of_sum(updates, list(weights))
        own = max(update.rank for update in updates)
        return [(LoraFactors(*split_svd(u, s, vh, k or own)), {}) for k in ks]


class InPlace(MeanMerger):
    def _merge_module_path(self, updates, weights, ks, rng):
        for update in updates:
            update.A.mul_(1.0 + 1e-3)
        return super()._merge_module_path(updates, weights, ks, rng)


class FirstCounts(MeanMerger):
    def _merge_module_path(self, updates, weights, ks, rng):
        return super()._merge_module_path(updates, weights * np.arange(len(weights), 0, -1), ks, rng)


class NoWeights(MeanMerger):
    def _merge_module_path(self, updates, weights, ks, rng):
        return super()._merge_module_path(updates, np.full(len(updates), 1 / len(updates)), ks, rng)


class Sums(MeanMerger):
    """Grows with the number of adapters, yet says that a weight of 2 equals listing the adapter twice (the default)."""

    def _merge_module_path(self, updates, weights, ks, rng):
        return super()._merge_module_path(updates, weights * len(weights), ks, rng)


class TooModest(MeanMerger):
    """Says that a weight of 2 does not equal listing the adapter twice, though it does."""

    weights_as_copies = False


class HidesZeros(MeanMerger):
    def fit(self, X, y=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().fit(X)


class SinglePrecision(MeanMerger):
    def _merge_module_path(self, updates, weights, ks, rng):
        merged = super()._merge_module_path([u.to(torch.float32) for u in updates], weights, ks, rng)
        return [(factors.to(updates[0].dtype), learned) for factors, learned in merged]


class WrongDtype(MeanMerger):
    def fit(self, X, y=None):
        super().fit(X)
        self.merged_ = type(self.merged_)({m: f.to(torch.float64) for m, f in self.merged_.items()})
        return self


class LooksAround(MeanMerger):
    """Scales by the number of modules."""

    def _prepared(self, X, weights, ranks, seed):
        other = clone(self)
        other.n_ = len(X.module_names)
        return other

    def _merge_module_path(self, updates, weights, ks, rng):
        merged = super()._merge_module_path(updates, weights, ks, rng)
        return [(factors.scaled(self.n_), learned) for factors, learned in merged]


class Eager(MeanMerger):
    """Logic in the constructor."""

    def __init__(self, k=None, *, weights=None, strengths=None, scale=1.0, scale_target=1.0, scale_scope="module",
                 random_state=None, n_jobs=None, device=None, verbose=0):  # fmt: skip
        super().__init__(k, weights=weights, scale=scale, scale_target=scale_target, scale_scope=scale_scope,
                         random_state=random_state, n_jobs=n_jobs, device=device, verbose=verbose)  # fmt: skip
        self.equal = weights is None


class GlobalDice(MeanMerger):
    def _merge_module_path(self, updates, weights, ks, rng):
        merged = super()._merge_module_path(updates, weights, ks, rng)
        return [(factors.scaled(0.9 + 0.1 * float(torch.rand(()))), learned) for factors, learned in merged]


class MoreThanItKeeps(MeanMerger):
    """Averages A and B apart, yet says that it depends on the updates alone (the default)."""

    needs_equal_ranks = True

    def _merge_module_path(self, updates, weights, ks, rng):
        present = [(w, u) for w, u in zip(weights, updates, strict=True) if u.rank]
        mean = LoraFactors(sum(w * u.A for w, u in present), sum(w * u.B for w, u in present))
        return super()._merge_module_path([mean], np.ones(1), ks, rng)


class Remembers(MeanMerger):
    """Keeps what an earlier fit has learned."""

    def fit(self, X, y=None):
        before = getattr(self, "seen_", {})
        super().fit(X)
        self.seen_ = {**before, **dict.fromkeys(self.module_names_in_)}
        return self


class MergesAgain(MeanMerger):
    def transform(self, X):
        return clone(self).fit(X).fit(X) and type(X)([clone(self).fit(X).merged_])


class NoScale(MeanMerger):
    def fit(self, X, y=None):
        scale, self.scale = self.scale, 1.0
        super().fit(X)
        self.scale = scale
        return self


class Untidy(MeanMerger):
    def fit(self, X, y=None):
        super().fit(X)
        self.norms = {}
        return self


class HidesNaN(MeanMerger):
    def fit(self, X, y=None):
        clean = [{m: LoraFactors(torch.nan_to_num(f.A), torch.nan_to_num(f.B)) for m, f in x.items()} for x in X]
        return super().fit([type(x)(modules, name=x.name) for x, modules in zip(X, clean, strict=True)])


MISTAKES = {
    InPlace: "check_input_unchanged",
    FirstCounts: "check_adapter_order",
    NoWeights: "check_weights",
    Sums: "check_copies",
    TooModest: "check_copies",
    HidesZeros: "check_zero",
    SinglePrecision: "check_float64",
    WrongDtype: "check_dtypes",
    LooksAround: "check_deterministic",
    Eager: "check_no_attributes_set_in_init",
    GlobalDice: "check_deterministic",
    MoreThanItKeeps: "check_gauges",
    Remembers: "check_refit",
    MergesAgain: "check_transform_never_merges",
    NoScale: "check_scale",
    Untidy: "check_fitted_state",
    HidesNaN: "check_not_finite",
}


@parametrize_with_checks([MeanMerger(), MeanMerger(k=3, scale=0.5)])
def test_a_correct_merger(estimator, check):
    check(estimator)


def test_in_one_line():
    check_merger(MeanMerger())


@pytest.mark.parametrize(("cls", "name"), MISTAKES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_the_named_check_catches(cls, name):
    ((estimator, check),) = [pair for pair in estimator_checks(cls()) if pair[1].__name__ == name]
    with pytest.raises(AssertionError):
        check(estimator)


def test_the_error_says_which_promise_is_broken():
    with pytest.raises(AssertionError) as caught:
        check_merger(NoWeights())
    (note,) = caught.value.__notes__
    assert note.startswith("check_weights of NoWeights(): A weight of zero is absence")


class HalfPruner(BasePruner):
    """Keeps the first MSUs, whatever they are, of a whole set at once."""

    method = "half"

    @property
    def invariances(self):
        return frozenset({"sign", "rescaling"})

    def __init__(self, k=None, *, n_jobs=None, device=None, verbose=0):
        self.k = k
        self.n_jobs = n_jobs
        self.device = device
        self.verbose = verbose

    def _prune_module(self, update, k, rng):
        return LoraFactors(update.A[:k], update.B[:, :k])


class LeaksPruner(HalfPruner):
    """Lets the adapters beside one change it."""

    def transform(self, X):
        out = super().transform(X)
        return type(out)(a.renamed(a.name) if len(X) == 1 else _doubled(a) for a in out)


def _doubled(adapter):
    modules = {m: f.scaled(2.0) for m, f in adapter.items()}
    return type(adapter)(modules, name=adapter.name, provenance=adapter.provenance)


def test_pruners():
    check_pruner(HalfPruner())
    ((estimator, check),) = [p for p in estimator_checks(LeaksPruner()) if p[1].__name__ == "check_pruner_stateless"]
    with pytest.raises(AssertionError, match="differs"):
        check(estimator)
