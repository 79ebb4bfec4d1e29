"""Pipelines and other ways to put estimators together."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor, StackingRegressor, VotingClassifier
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from lorakit import AdapterSet, LegoMerger, LegoPruner, NormBalancer, SVDMerger, SVDPruner
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


@pytest.fixture
def X():
    return AdapterSet(make_adapters(ranks=(3, 4, 5, 4), random_state=0))


@pytest.fixture
def pipeline():
    return Pipeline([("prune", SVDPruner(k=3)), ("balance", NormBalancer()), ("merge", SVDMerger(k=4))])


def test_pipeline_merges(pipeline, X):
    (merged,) = pipeline.fit_transform(X)
    assert pipeline.named_steps["merge"].merged_ is merged
    assert pipeline[-1].merged_ is merged
    by_hand = SVDMerger(k=4).fit(NormBalancer().fit_transform(SVDPruner(k=3).fit_transform(X)))
    assert relative_error(merged, by_hand.merged_) < 1e-5
    assert pipeline.score(X) == pytest.approx(by_hand.score(pipeline[:-1].transform(X)))


def test_pipeline_slices(pipeline, X):
    before_merging = pipeline.fit(X)[:-1].transform(X)
    assert before_merging.names == X.names
    assert {adapter.ranks for adapter in before_merging} == {(3,)}
    assert isinstance(pipeline["prune"], SVDPruner)


def test_pipeline_transform_never_merges(pipeline, X):
    pipeline.fit(X[:3])
    (out,) = pipeline.transform(X[3:])
    assert out is pipeline["merge"].merged_


def test_pipeline_passthrough(pipeline, X):
    (skipped,) = clone(pipeline).set_params(prune="passthrough", balance=None).fit_transform(X)
    assert relative_error(skipped, SVDMerger(k=4).fit(X).merged_) < 1e-6


def test_pipeline_nested_parameters(pipeline, X):
    pipeline.set_params(merge__k=2, prune__k=2)
    assert pipeline.get_params()["merge__k"] == 2
    assert pipeline.fit_transform(X)[0].ranks == (2,)
    with pytest.raises(ValueError, match="Invalid parameter 'rank' for estimator SVDMerger"):
        pipeline.set_params(merge__rank=2)


def test_pipeline_memory(X, tmp_path):
    def run():
        return make_pipeline(LegoPruner(k=2, random_state=0), SVDMerger(k=4), memory=str(tmp_path)).fit_transform(X)[0]

    assert relative_error(run(), run()) < 1e-6
    assert len(list(tmp_path.rglob("output.pkl"))) == 1  # the second run has found what the first one kept


def test_make_pipeline(X):
    pipeline = make_pipeline(LegoPruner(k=3, random_state=0), LegoMerger(k=4, random_state=0))
    assert list(pipeline.named_steps) == ["legopruner", "legomerger"]
    assert pipeline.fit_transform(X).names == ("lego",)


def test_pruning_after_merging(X):
    (out,) = make_pipeline(SVDMerger(k=8), SVDPruner(k=2)).fit_transform(X)
    assert out.ranks == (2,)


def test_frozen_estimator(X):
    merger = SVDMerger(k=4).fit(X)
    pipeline = make_pipeline(SVDPruner(k=2), FrozenEstimator(merger))
    (out,) = clone(pipeline).fit(X[:2]).transform(X[:1])
    assert out is merger.merged_


def first_two(adapters):
    return adapters[:2]


def test_function_transformer(X):
    (merged,) = make_pipeline(FunctionTransformer(first_two), SVDMerger()).fit_transform(X)
    assert relative_error(merged, SVDMerger().fit(X[:2]).merged_) < 1e-6
    with pytest.raises(TypeError, match="msus"):
        FunctionTransformer(first_two, validate=True).fit_transform(X)


def test_feature_union(X):
    union = FeatureUnion([("svd", SVDMerger(k=4)), ("lego", LegoMerger(k=4, random_state=0))])
    with pytest.raises((ValueError, TypeError), match=r"1 dimensions, but expected 2|NumPy array"):
        union.fit_transform(X)
    # instead
    both = AdapterSet([SVDMerger(k=4).fit(X).merged_, LegoMerger(k=4, random_state=0).fit(X).merged_])
    assert SVDMerger(weights={"svd": 3, "lego": 1}).fit(both).n_adapters_in_ == 2


def test_column_transformer(X):
    parts = ColumnTransformer([("a", SVDPruner(k=2), [0, 1]), ("b", SVDPruner(k=3), [2, 3])])
    with pytest.raises(IndexError, match=r"no columns.*index it by name or position"):
        parts.fit_transform(X)
    # instead
    joined = AdapterSet([*SVDPruner(k=2).fit_transform(X[:2]), *SVDPruner(k=3).fit_transform(X[2:])])
    assert [adapter.ranks for adapter in joined] == [(2,), (2,), (3,), (3,)]


def test_steps_on_arrays(X):
    for wrong in (make_pipeline(StandardScaler(), SVDMerger()), make_pipeline(SVDPruner(), LogisticRegression())):
        with pytest.raises(TypeError, match=r"an AdapterSet cannot become a NumPy array.*msus"):
            wrong.fit(X, [0, 1, 0, 1])


def test_arrays_for_mergers():
    with pytest.raises(TypeError, match="takes Adapter objects, got ndarray"):
        SVDMerger().fit(np.ones((3, 4)))


def test_voting_and_stacking(X):
    with pytest.raises(ValueError, match="should be a classifier"):
        VotingClassifier([("a", SVDMerger()), ("b", LegoMerger())]).fit(X, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="should be a regressor"):
        StackingRegressor([("a", SVDMerger())]).fit(X, [0, 1, 0, 1])


def test_bagging(X):
    with pytest.raises(ValueError, match="'fit' and 'predict'"):
        BaggingRegressor(SVDMerger()).fit(X, [0, 1, 0, 1])
    # instead
    rng = np.random.RandomState(0)
    drawn = [SVDMerger().fit(X[rng.randint(4, size=4)]).merged_.renamed(f"draw{i}") for i in range(3)]
    assert SVDMerger().fit(drawn).merged_.ranks == (5,)


def test_transformed_target(X):
    with pytest.raises(ValueError, match="'fit' and 'predict'"):
        TransformedTargetRegressor(SVDMerger()).fit(X, np.arange(4))


def test_routing_in_pipelines(pipeline, X):
    plain = pipeline.fit(X).score(X)
    with config_context(enable_metadata_routing=True):
        assert clone(pipeline).fit(X).score(X) == plain
        assert clone(pipeline).fit_transform(X).names == ("svd",)


def test_sample_weight(X):
    with pytest.raises(TypeError, match="sample_weight"):
        SVDMerger().fit(X, sample_weight=np.ones(4))
    with config_context(enable_metadata_routing=True):
        with pytest.raises(UnsetMetadataPassedError, match=r"SVDMerger\.score"):
            make_pipeline(SVDMerger()).fit(X).score(X, sample_weight=np.ones(4))
        with pytest.raises(AttributeError, match="set_fit_request"):
            SVDMerger().set_fit_request(sample_weight=True)
    # instead
    assert SVDMerger(weights=[1, 0, 0, 3]).fit(X).n_adapters_in_ == 4
