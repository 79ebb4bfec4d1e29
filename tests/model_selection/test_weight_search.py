"""The search finds weights that are known, within the merges it is given."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_estimator_repr,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_set_params,
)

from lorakit import (
    AdapterSet,
    AverageMerger,
    ConcatMerger,
    LegoMerger,
    SVDMerger,
    SVDPruner,
    WeightSearch,
    load_adapters,
)
from lorakit.linalg import inner_product
from lorakit.testing import make_adapters

HIDDEN = np.array([0.6, 0.1, 0.3])


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(2, 3, 2), n_modules=1, random_state=0))


class Near:
    """Minus the distance of the merged update to a weighted sum of the updates, relative to it; perhaps in steps."""

    def __init__(self, X, weights, steps=None):
        self.wanted = sum(w * f.delta() for w, f in zip(weights, X.factors("layer.0"), strict=True))
        self.steps, self.calls = steps, 0

    def __call__(self, merger, adapters):
        self.calls += 1
        (merged,) = merger.transform(adapters)
        score = -float((merged["layer.0"].delta() - self.wanted).norm() / self.wanted.norm())
        return score if self.steps is None else np.floor(score * self.steps) / self.steps


@pytest.mark.parametrize(("method", "n_iter", "tolerance"), [("nelder-mead", 80, 0.01), ("random", 150, 0.1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hidden_weights_are_recovered(X, method, n_iter, tolerance, seed):
    scoring = Near(X, HIDDEN)
    search = WeightSearch(SVDMerger(k=7), scoring, method=method, n_iter=n_iter, random_state=seed).fit(X)
    np.testing.assert_allclose(list(search.best_weights_.values()), HIDDEN, atol=tolerance)
    assert sum(search.best_weights_.values()) == pytest.approx(1)
    assert scoring.calls == len(search.results_["score"]) <= n_iter


def test_default_crosses_the_plateaus_of_accuracy(X):
    """20 steps, as many as accuracy on 20 examples has."""
    for hidden in (HIDDEN, HIDDEN[::-1], [0.05, 0.9, 0.05]):
        scoring = Near(X, hidden, steps=20)
        assert scoring(SVDMerger(k=7).fit(X), X) < -0.3
        assert WeightSearch(SVDMerger(k=7), scoring).fit(X).best_score_ >= -0.1


def test_signed_weights_and_scale_as_lorahub_has_them(X):
    hidden = [0.9, -0.4, 0.2]
    options = {"normalize": False, "bounds": (-1.5, 1.5), "n_iter": 150, "random_state": 0}
    search = WeightSearch(ConcatMerger(), Near(X, hidden), **options).fit(X)
    np.testing.assert_allclose(list(search.best_weights_.values()), hidden, atol=0.05)
    # the merge itself is the sum, not the mean
    merged = search.merged_["layer.0"].delta()
    expected = sum(search.best_weights_[a.name] * a["layer.0"].delta() for a in X)
    assert float((merged - expected).norm() / expected.norm()) < 1e-5


def test_regularization_draws_the_weights_in(X):
    options = {"normalize": False, "bounds": (-1.5, 1.5), "n_iter": 60, "random_state": 0}
    sizes = []
    for strength in (0.0, 0.5, 50.0):
        search = WeightSearch(ConcatMerger(), Near(X, [0.9, -0.4, 0.2]), regularization=strength, **options).fit(X)
        sizes.append(sum(map(abs, search.best_weights_.values())))
        trials = search.results_
        np.testing.assert_allclose(
            trials["objective"], trials["score"] - strength * abs(trials["weights"]).mean(axis=1)
        )
        assert search.best_index_ == np.argmax(trials["objective"])
        assert search.best_score_ == trials["score"][search.best_index_]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 0.2


def test_weights_of_zero_are_the_base_model_or_nothing(X):
    """At the corner of the bounds no weight is left: a merge of zero if the scale counts, no trial if it does not."""
    norms = []

    def smallest(merger, adapters):
        norms.append(float(merger.transform(adapters)[0]["layer.0"].delta().norm()))
        return -norms[-1]

    options = {"n_iter": 40, "random_state": 0}
    search = WeightSearch(ConcatMerger(), smallest, normalize=False, **options).fit(X)
    assert set(search.best_weights_.values()) == {0.0}
    assert min(norms) == 0
    norms.clear()
    WeightSearch(ConcatMerger(), smallest, bounds=(-1.0, 0.0), n_iter=20, random_state=0).fit(X)
    assert min(norms) > 0


def test_starts_from_the_mergers_own_weights(X):
    search = WeightSearch(SVDMerger(k=7), Near(X, HIDDEN), n_iter=1).fit(X)
    np.testing.assert_allclose(search.results_["weights"], [[1 / 3] * 3])
    own = {"task0": 6, "task1": 1, "task2": 3}
    search = WeightSearch(SVDMerger(k=7, weights=own), Near(X, HIDDEN), n_iter=1).fit(X)
    np.testing.assert_allclose(search.results_["weights"], [HIDDEN])
    assert search.best_score_ == pytest.approx(0, abs=1e-5)


def test_keeps_the_very_merge_that_was_scored(X):
    """Without a seed of its own the merger would give another one if it were fitted again."""
    merger = LegoMerger(k=3, n_init=1, max_iter=1)  # random_state=None
    search = WeightSearch(merger, Near(X, HIDDEN), n_iter=15, random_state=0).fit(X)
    assert search.score(X) == search.best_score_
    assert search.transform(X)[0] is search.merged_
    assert list(search.best_weights_) == list(X.names)
    assert search.best_estimator_.weights == pytest.approx(search.best_weights_)
    assert not hasattr(merger, "merged_")
    light = clone(search).set_params(refit=False).fit(X)
    assert not hasattr(light, "best_estimator_")
    assert not hasattr(light, "merged_")
    with pytest.raises(AttributeError, match="refit=False"):
        light.transform(X)
    with pytest.raises(NotFittedError):
        clone(search).transform(X)


def test_in_pipelines(X):
    pipeline = make_pipeline(SVDPruner(k=2), SVDMerger(k=6))
    search = WeightSearch(pipeline, Near(X, HIDDEN), n_iter=10, normalize=False, random_state=0).fit(X)
    assert search.best_estimator_.get_params()["svdmerger__weights"] == pytest.approx(
        {name: w / sum(search.best_weights_.values()) for name, w in search.best_weights_.items()}
    )
    assert search.merged_.ranks == (6,)
    (merged,) = make_pipeline(SVDPruner(k=2), WeightSearch(SVDMerger(k=6), Near(X, HIDDEN), n_iter=3)).fit_transform(X)
    assert float(inner_product(merged["layer.0"], merged["layer.0"])) > 0


def test_follows_scikit_learns_rules(X):
    search = WeightSearch(SVDMerger(k=7), Near(X, HIDDEN), n_iter=12, method="random", random_state=3)
    for check in (
        check_no_attributes_set_in_init,
        check_get_params_invariance,
        check_set_params,
        check_estimator_repr,
    ):
        check("WeightSearch", clone(search))
    assert search.get_params()["merger__k"] == 7
    first, again = clone(search).fit(X), clone(search).fit(X)
    np.testing.assert_array_equal(first.results_["weights"], again.results_["weights"])
    other = clone(search).set_params(random_state=4).fit(X)
    assert not np.array_equal(first.results_["weights"], other.results_["weights"])
    assert pickle.loads(pickle.dumps(first)).best_weights_ == first.best_weights_
    assert "WeightSearch" in first._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (1.0, 0.0)}, "bounds must be two finite numbers"),
        ({"bounds": (0.0, np.inf)}, "bounds must be two finite numbers"),
        ({"regularization": 0.1}, "normalize=True leaves nothing"),
        ({"merger": SVDMerger(scale="match"), "normalize": False}, "scale='match' sets"),
        ({"merger": SVDPruner()}, "has 0 parameters called 'weights'"),
        ({"merger": LegoMerger(), "bounds": (-1.0, 1.0), "n_iter": 50}, "negative"),
        ({"scoring": lambda merger, adapters: np.nan}, "scoring gave nan for the weights"),
        ({"n_iter": 0}, "'n_iter'"),
        ({"method": "gradient"}, "'method'"),
        ({"scoring": "accuracy"}, "'scoring'"),
    ],
)
def test_nonsense_is_refused(X, options, message):
    defaults = {"merger": SVDMerger(), "scoring": Near(X, HIDDEN), "random_state": 0}
    with pytest.raises(ValueError, match=message):
        WeightSearch(**defaults | options).fit(X)


@pytest.mark.parametrize("pruned", [False, True])
def test_lorahubs_own_rule(pruned):
    """(sum_i w_i B_i) (sum_i w_i A_i), with negative weights, at the size that the weights give."""
    X = AdapterSet(make_adapters(ranks=(3, 3, 3), n_modules=1, dtype=torch.float64, random_state=0))
    merged = []

    def scoring(estimator, adapters):
        merged.append(estimator.transform(adapters)[0]["layer.0"].delta())
        return -float(merged[-1].norm())

    merger = make_pipeline(SVDPruner(k=2), AverageMerger()) if pruned else AverageMerger()
    search = WeightSearch(
        merger, scoring, normalize=False, bounds=(-1.5, 1.5), method="random", n_iter=12, random_state=0
    ).fit(X)
    units = (SVDPruner(k=2).fit_transform(X) if pruned else X).factors("layer.0")
    a, b = (torch.stack([getattr(f, half) for f in units]) for half in "AB")
    assert (search.results_["weights"] < 0).any(axis=1).sum() > 5
    for weights, update in zip(torch.from_numpy(search.results_["weights"]), merged, strict=True):
        wanted = torch.einsum("t,tor->or", weights, b) @ torch.einsum("t,tri->ri", weights, a)
        torch.testing.assert_close(update, wanted, rtol=1e-12, atol=1e-12)


def test_names_must_differ(X):
    with pytest.raises(ValueError, match="these repeat"):
        WeightSearch(SVDMerger(), Near(X, HIDDEN)).fit([X[0], X[0].renamed("task1"), X[1]])


@pytest.fixture(scope="module")
def real():
    """Three trained adapters of rank 8 that ship with the project, at three of their modules."""
    folder = Path(__file__).parents[2] / "examples" / "adapters"
    loaded = load_adapters([folder / name for name in ("icd10", "wn_noun", "wn_pos")])
    return AdapterSet(adapter.select(list(adapter)[::12]) for adapter in loaded)


def test_lorahubs_own_rule_on_trained_adapters(real):
    """Each trial, restated in float64: the sum of the weighted B times that of the weighted A, whatever the signs."""
    merged = []

    def scoring(estimator, adapters):
        merged.append(estimator.transform(adapters)[0])
        return -sum(float(f.delta().norm()) for f in merged[-1].values())

    search = WeightSearch(
        AverageMerger(), scoring, normalize=False, bounds=(-1.5, 1.5), method="random", n_iter=8, random_state=1
    ).fit(real)
    weights = search.results_["weights"]
    assert (weights < 0).any(axis=1).sum() >= 4
    for w, adapter in zip(torch.from_numpy(weights), merged, strict=True):
        for module, factors in adapter.items():
            a, b = (torch.stack([getattr(f, half).double() for f in real.factors(module)]) for half in "AB")
            wanted = torch.einsum("t,tor->or", w, b) @ torch.einsum("t,tri->ri", w, a)
            error = float((factors.B.double() @ factors.A.double() - wanted).norm() / wanted.norm())
            assert error < 1e-6, (module, w)


def test_lorahubs_rule_recovers_weights_of_trained_adapters(real):
    """Nelder and Mead from LoraHub's bounds, to a sum of signs that no average gives."""
    hidden = (0.9, -0.5, 0.3)
    (module, *_) = real[0]
    one = AdapterSet(adapter.select([module]) for adapter in real)

    def updates(given, weights):
        a, b = (torch.stack([getattr(f, half).double() for f in given.factors(module)]) for half in "AB")
        w = torch.tensor(weights, dtype=torch.float64)
        return torch.einsum("t,tor->or", w, b) @ torch.einsum("t,tri->ri", w, a)

    wanted = updates(real, hidden)

    def near(merger, adapters):
        found = merger.merged_[module]
        return -float((found.B.double() @ found.A.double() - wanted).norm() / wanted.norm())

    search = WeightSearch(AverageMerger(), near, normalize=False, bounds=(-1.5, 1.5), n_iter=250).fit(one)
    found = np.array([search.best_weights_[name] for name in real.names])
    # (-B)(-A) is B A: the weights are known but for a common sign
    assert search.best_score_ > -0.02
    np.testing.assert_allclose(found * np.sign(found[0]), hidden, atol=0.03)


def test_weights_that_sum_beyond_any_float(real):
    huge = SVDMerger(k=8, weights=[1e308, 1e308, 1e308]).fit(real).merged_
    for module, factors in SVDMerger(k=8).fit(real).merged_.items():
        torch.testing.assert_close(huge[module].delta(), factors.delta())
        assert factors.delta().norm() > 0
