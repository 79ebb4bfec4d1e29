"""The score without labels, against counting by hand."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from tiny_heads import toy_forward, toy_inputs, toy_model

from lorakit import AdapterSet, AgreementScorer, AllAdapters, SVDMerger, TSVMerger, applied, collect_targets
from lorakit.testing import make_adapters


@pytest.fixture(scope="module")
def X():
    return AdapterSet(make_adapters(ranks=(3, 5, 5), dtype=torch.float64, random_state=0))


def scorer_of(X, inputs, **options):
    return AgreementScorer(
        toy_model(), inputs, toy_forward, collect_targets(toy_model(), X, inputs, toy_forward), **options
    )


def test_counts_the_pairs_of_an_input_and_a_head(X):
    inputs, model = toy_inputs(50), toy_model()
    merger = SVDMerger(k=4).fit(X)
    agreed = 0
    for adapter in X:
        with torch.no_grad(), applied(model, adapter):
            own = toy_forward(model, inputs)[adapter.name].argmax(1)
        with torch.no_grad(), applied(model, merger.merged_):
            merged = toy_forward(model, inputs)[adapter.name].argmax(1)
        agreed += int((own == merged).sum())
    assert 15 < agreed < 150
    for batch_size in (7, 500):
        assert scorer_of(X, inputs, batch_size=batch_size)(merger) == agreed / 150


def test_an_adapter_agrees_with_itself_and_the_base_model_less(X):
    scorer = scorer_of(X[:1], toy_inputs())
    assert scorer.evaluate(X[0]) == 1
    assert scorer.evaluate() < 0.9


def test_in_a_grid_over_methods_and_norms(X):
    scorer = scorer_of(X, toy_inputs())
    grid = [{"scale_target": [0.5, 1.0, 1.5]}]
    search = GridSearchCV(TSVMerger(k=6, scale="match"), grid, scoring=scorer, cv=AllAdapters()).fit(X)
    by_hand = [scorer(TSVMerger(k=6, scale="match", scale_target=t).fit(X)) for t in (0.5, 1.0, 1.5)]
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], by_hand)
    assert cross_val_score(SVDMerger(), X, cv=AllAdapters(), scoring=scorer, n_jobs=2).shape == (1,)
    assert clone(scorer, safe=False) is scorer
    assert repr(scorer) == "AgreementScorer(Targets(adapters=3, inputs=60))"


def test_targets_of_other_inputs_or_classes_are_refused(X):
    inputs = toy_inputs()
    targets = collect_targets(toy_model(), X, inputs, toy_forward)
    with pytest.raises(ValueError, match="not the 60 given"):
        AgreementScorer(toy_model(), inputs + 1, toy_forward, targets)
    scorer = AgreementScorer(toy_model(), inputs, lambda m, x: toy_forward(m, x)["task0"][:, :3], targets)
    with pytest.raises(ValueError, match="'task0' made scores of 3 classes, its targets have 5"):
        scorer.evaluate()
