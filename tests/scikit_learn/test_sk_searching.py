"""Searches, curves and splitters."""

import numpy as np
import pytest
from scipy.stats import loguniform, randint
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    LeaveOneOut,
    ParameterGrid,
    RandomizedSearchCV,
    ShuffleSplit,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    train_test_split,
    validation_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils import resample, shuffle

from lorakit import AdapterSet, AllAdapters, LegoMerger, SVDMerger, SVDPruner, WeightSearch
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


@pytest.fixture
def X():
    return AdapterSet(make_adapters(ranks=(3, 4, 5, 4), random_state=0))


def test_grid_search_all_adapters(X):
    wanted = SVDMerger(k=3).fit(X).merged_

    def near(merger, adapters):
        assert len(adapters) == 4
        return -relative_error(merger.merged_, wanted)

    search = GridSearchCV(SVDMerger(), {"k": [2, 3, 4]}, scoring=near, cv=AllAdapters()).fit(X)
    assert search.best_params_ == {"k": 3}
    assert search.transform(X[:1])[0] is search.best_estimator_.merged_
    assert search.n_splits_ == 1


def test_grid_search_leave_one_out(X):
    search = GridSearchCV(SVDMerger(), {"k": [2, 8]}, cv=LeaveOneOut()).fit(X)
    assert search.n_splits_ == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_grid_search_default_cv(X):
    with pytest.raises(ValueError, match="n_splits=5 greater than the number of samples: n_samples=4"):
        GridSearchCV(SVDMerger(), {"k": [2, 4]}).fit(X)


def test_grid_search_of_a_pipeline(X):
    grid = [{"svdpruner__k": [2, 3], "svdmerger__k": [2, 4]}, {"svdpruner": ["passthrough"], "svdmerger__k": [4]}]
    search = GridSearchCV(make_pipeline(SVDPruner(), SVDMerger()), grid, cv=AllAdapters()).fit(X)
    assert len(search.cv_results_["params"]) == 5
    assert search.best_params_["svdmerger__k"] == 4


def test_grid_over_methods(X):
    pipeline = make_pipeline(SVDPruner(k=3), SVDMerger())
    grid = {"svdmerger": [SVDMerger(k=4), LegoMerger(k=4, random_state=0)]}
    assert GridSearchCV(pipeline, grid, cv=AllAdapters()).fit(X).best_params_["svdmerger"].k == 4


def test_grid_of_weights_under_folds(X):
    by_name = {f"task{i}": i + 1 for i in range(4)}
    GridSearchCV(SVDMerger(), {"weights": [None, by_name]}, cv=LeaveOneOut(), error_score="raise").fit(X)
    with pytest.raises(ValueError, match="one number for each of 3 adapters"):
        GridSearchCV(SVDMerger(), {"weights": [[1, 2, 3, 4]]}, cv=LeaveOneOut(), error_score="raise").fit(X)


def test_grid_search_of_a_pruner(X):
    with pytest.raises(TypeError, match="should have a 'score' method"):
        GridSearchCV(SVDPruner(), {"k": [2, 3]}, cv=AllAdapters()).fit(X)

    def kept(pruner, adapters):
        return -np.mean([relative_error(p, a) for p, a in zip(pruner.transform(adapters), adapters, strict=True)])

    search = GridSearchCV(SVDPruner(), {"k": [1, 2]}, scoring=kept, cv=AllAdapters()).fit(X)
    assert search.best_params_ == {"k": 2}


def test_scoring_by_name(X):
    search = GridSearchCV(SVDMerger(), {"k": [2]}, scoring="accuracy", cv=AllAdapters(), error_score="raise")
    with pytest.raises(TypeError, match="y_true"):
        search.fit(X)
    with pytest.raises(AttributeError, match="SVDMerger"):
        search.fit(X, y=[0, 1, 0, 1])


def test_several_scores(X):
    def rank(merger, adapters):
        return merger.merged_.ranks[0]

    def error(merger, adapters):
        return merger.score(adapters)

    search = GridSearchCV(
        SVDMerger(), {"k": [2, 4]}, scoring={"rank": rank, "error": error}, refit="rank", cv=AllAdapters()
    ).fit(X)
    assert search.best_params_ == {"k": 4}
    assert {"mean_test_rank", "mean_test_error"} <= set(search.cv_results_)


def test_randomized_search(X):
    space = {"k": randint(1, 8), "scale": loguniform(0.1, 1)}
    search = RandomizedSearchCV(SVDMerger(), space, n_iter=5, cv=AllAdapters(), random_state=0).fit(X)
    assert len(search.cv_results_["params"]) == 5
    assert search.best_estimator_.merged_.ranks == (search.best_params_["k"],)


def test_halving_over_a_parameter(X):
    search = HalvingGridSearchCV(
        LegoMerger(random_state=0),
        {"k": [2, 3, 4, 5]},
        resource="n_init",
        min_resources=1,
        max_resources=4,
        factor=2,
        cv=AllAdapters(),
    ).fit(X)
    assert search.n_resources_ == [1, 2, 4]
    assert search.best_params_["n_init"] == 4


def test_halving_over_adapters(X):
    seen = []

    class Watched(SVDMerger):
        def fit(self, X, y=None):
            seen.append(len(X))
            return super().fit(X, y)

    grid = {"k": [2, 3, 4]}
    with pytest.raises(ValueError, match=r"min_resources_=10 is greater than max_resources_=4"):
        HalvingGridSearchCV(SVDMerger(), grid).fit(X)
    HalvingGridSearchCV(Watched(), grid, cv=AllAdapters(), min_resources=1, random_state=0).fit(X)
    assert 1 in seen  # "merged" one adapter in the first round: another problem, not a cheaper one


def test_parameter_grid(X):
    tried = [clone(SVDMerger()).set_params(**p).fit(X) for p in ParameterGrid({"k": [2, 4], "scale": [0.5, 1.0]})]
    assert [m.merged_.ranks for m in tried] == [(2,), (2,), (4,), (4,)]


def test_cross_validate(X):
    found = cross_validate(SVDMerger(), X, cv=LeaveOneOut(), return_train_score=True, return_estimator=True)
    assert [merger.n_adapters_in_ for merger in found["estimator"]] == [3] * 4
    assert (found["train_score"] > found["test_score"]).all()


def test_cross_val_score(X):
    scores = cross_val_score(SVDMerger(), X, cv=2)
    assert scores.shape == (2,)
    assert (scores < 0).all()


def test_cross_val_predict(X):
    for method in ("predict", "transform"):
        with pytest.raises(ValueError, match="'fit' and 'predict'"):
            cross_val_predict(SVDMerger(), X, cv=2, method=method)


def test_learning_curve(X):
    sizes, train, test = learning_curve(SVDMerger(), X, None, cv=LeaveOneOut(), train_sizes=[1, 2, 3])
    assert sizes.tolist() == [1, 2, 3]
    assert train.shape == test.shape == (3, 4)
    np.testing.assert_allclose(train[0], 0, atol=1e-3)  # one adapter is its own mean


def test_validation_curve(X):
    train, test = validation_curve(SVDMerger(), X, None, param_name="k", param_range=[1, 4], cv=LeaveOneOut())
    assert (train[1] > train[0]).all()
    assert test.shape == (2, 4)


def test_permutation_test(X):
    with pytest.raises(TypeError, match="NoneType"):
        permutation_test_score(SVDMerger(), X, None, cv=2, n_permutations=2)


def test_train_test_split(X):
    train, test = train_test_split(X, test_size=1, random_state=0)
    assert isinstance(train, AdapterSet)
    assert isinstance(test, AdapterSet)
    assert sorted((*train.names, *test.names)) == list(X.names)


def test_shuffle_and_resample(X):
    assert sorted(shuffle(X, random_state=0).names) == list(X.names)
    assert len(resample(X, n_samples=6, random_state=0)) == 6


def test_splitters(X):
    groups = ["a", "a", "b", "b"]
    for cv, n in ((KFold(2), 2), (GroupKFold(2), 2), (ShuffleSplit(3, random_state=0), 3), (LeaveOneOut(), 4)):
        given = groups if isinstance(cv, GroupKFold) else None
        assert len(cross_val_score(SVDMerger(), X, cv=cv, groups=given)) == n
    by_group = GridSearchCV(SVDMerger(), {"k": [2]}, cv=GroupKFold(2)).fit(X, groups=groups)
    assert by_group.n_splits_ == 2


def test_sequential_feature_selector(X):
    with pytest.raises(TypeError, match="cannot become a NumPy array"):
        SequentialFeatureSelector(SVDMerger(), n_features_to_select=2, cv=AllAdapters()).fit(X)
    # instead
    wanted = SVDMerger(weights=[0, 1, 0, 0]).fit(X).merged_
    search = WeightSearch(SVDMerger(), lambda merger, _: -relative_error(merger.merged_, wanted), n_iter=60).fit(X)
    assert max(search.best_weights_, key=search.best_weights_.get) == "task1"


def test_calibrated_classifier(X):
    with pytest.raises(ValueError, match="'predict_proba'"):
        CalibratedClassifierCV(SVDMerger(), cv=2).fit(X, [0, 1, 0, 1])


def test_routing_in_searches(X):
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(SVDPruner(k=3), SVDMerger())
        search = GridSearchCV(pipeline, {"svdmerger__k": [2, 4]}, cv=AllAdapters(), error_score="raise").fit(X)
        assert search.best_params_ == {"svdmerger__k": 4}
        scores = cross_val_score(SVDMerger(), X, cv=GroupKFold(2), params={"groups": ["a", "a", "b", "b"]})
        assert np.isfinite(scores).all()
