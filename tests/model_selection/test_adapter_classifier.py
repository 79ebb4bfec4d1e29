"""The classifier of task data in scikit-learn's hands."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_estimator_repr,
    check_get_params_invariance,
    check_no_attributes_set_in_init,
    check_set_params,
)
from tiny_tasks import (
    CLASSES,
    WIDTH,
    CountedLoader,
    UnhashableLoader,
    class_scores,
    forward,
    lines,
    load_tiny,
    tiny_adapters,
    tiny_tasks,
)

from lorakit import AdapterClassifier, SVDMerger, SVDPruner, TSVMerger, WeightSearch

ADAPTERS = tiny_adapters()
INPUTS, Y = tiny_tasks()["task0"]
MERGED = SVDMerger(k=4).fit(ADAPTERS).merged_
SCORES = class_scores(INPUTS, MERGED)
PROBA = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)


def classifier(merger=None, **options):
    return AdapterClassifier(load_tiny, ADAPTERS, merger or SVDMerger(k=4), forward, **options)


@pytest.mark.parametrize(
    "check",
    [check_estimator_repr, check_get_params_invariance, check_no_attributes_set_in_init, check_set_params],
    ids=lambda check: check.__name__,
)
def test_parameters(check):
    check("AdapterClassifier", classifier())


@pytest.mark.parametrize("batch_size", [None, 1, 50, 1000])
def test_predictions_are_those_of_dense_weights(batch_size):
    fitted = classifier(batch_size=batch_size).fit(INPUTS, Y)
    np.testing.assert_allclose(fitted.decision_function(INPUTS), SCORES, atol=1e-5)
    np.testing.assert_allclose(fitted.predict_proba(INPUTS), PROBA, atol=1e-5)
    np.testing.assert_array_equal(fitted.predict(INPUTS), SCORES.argmax(axis=1))
    np.testing.assert_array_equal(fitted.classes_, range(CLASSES))
    assert fitted.score(INPUTS, Y) == accuracy_score(Y, SCORES.argmax(axis=1))
    assert is_classifier(fitted)


def test_fit_merges_a_clone():
    merger = make_pipeline(SVDPruner(k=2), SVDMerger(k=4))
    fitted = classifier(merger).fit(INPUTS, Y)
    assert not hasattr(merger[-1], "merged_")
    assert fitted.merged_ is fitted.merger_[-1].merged_
    assert clone(fitted).get_params()["merger"] is not merger
    searching = WeightSearch(SVDMerger(k=4), lambda merger, adapters: 1.0, n_iter=2)
    assert classifier(searching).fit(INPUTS, Y).merged_.ranks == (4,)


def test_cross_validation_by_names_of_metrics():
    folds = StratifiedKFold(3)
    metrics = {
        "accuracy": lambda y, s, p: accuracy_score(y, s.argmax(axis=1)),
        "neg_log_loss": lambda y, s, p: -log_loss(y, p),
        "roc_auc_ovr": lambda y, s, p: roc_auc_score(y, p, multi_class="ovr"),
    }
    for name, metric in metrics.items():
        found = cross_val_score(classifier(), INPUTS, Y, cv=folds, scoring=name)
        expected = [metric(Y[test], SCORES[test], PROBA[test]) for _, test in folds.split(INPUTS, Y)]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    found = cross_val_predict(classifier(), INPUTS, Y, cv=folds, method="predict_proba")
    np.testing.assert_allclose(found, PROBA, atol=1e-5)


def test_grid_over_k_and_over_mergers():
    grid = {"merger": [SVDMerger(), TSVMerger(scale="match")], "merger__k": [1, 4]}
    search = GridSearchCV(classifier(), grid, cv=3, scoring=["accuracy", "neg_log_loss"], refit="neg_log_loss")
    search.fit(INPUTS, Y)
    for params, accuracy in zip(search.cv_results_["params"], search.cv_results_["mean_test_accuracy"], strict=True):
        merged = clone(params["merger"]).set_params(k=params["merger__k"]).fit(ADAPTERS).merged_
        assert accuracy == pytest.approx(np.mean(class_scores(INPUTS, merged).argmax(axis=1) == Y))
    assert search.best_score_ == max(search.cv_results_["mean_test_neg_log_loss"])
    assert search.best_estimator_.merged_.ranks == (search.best_params_["merger__k"],)


def test_permutation_importance_finds_the_inputs_that_count():
    """The classes follow from the inputs that an adapter reads: here only the first three of twelve."""
    inputs = INPUTS.copy()
    inputs[:, 3:] = inputs[0, 3:]  # permuting equal entries changes nothing
    fitted = classifier().fit(inputs, Y)
    labels = fitted.predict(inputs)
    found = permutation_importance(fitted, inputs, labels, n_repeats=3, random_state=0).importances_mean
    assert found.shape == (WIDTH,)
    assert (found[:3] > 0).all()
    np.testing.assert_array_equal(found[3:], 0)


def text_forward(model, texts):
    assert all(isinstance(text, str) for text in texts)
    return forward(model, [[float(number) for number in text.split()] for text in texts])


@pytest.mark.parametrize("as_array", [False, True])
def test_texts_with_labels_in_words(as_array):
    texts = [" ".join(map(repr, row)) for row in INPUTS.tolist()]
    words = np.array(["pear", "apple", "fig", "date"])  # columns in this order, not in that of the alphabet
    model = AdapterClassifier(load_tiny, ADAPTERS, SVDMerger(k=4), text_forward, classes=words)
    given = np.array(texts) if as_array else texts
    np.testing.assert_array_equal(cross_val_predict(model, given, words[Y], cv=3), words[SCORES.argmax(axis=1)])
    fitted = model.fit(given, words[Y])
    assert fitted.classes_.tolist() == ["apple", "date", "fig", "pear"]
    np.testing.assert_allclose(fitted.predict_proba(given), PROBA[:, [1, 3, 2, 0]], atol=1e-5)


def two_columns(model, x):
    return forward(model, x)[:, :2]


def test_two_classes():
    y = np.where(SCORES[:, 1] > SCORES[:, 0], "yes", "no")
    fitted = AdapterClassifier(load_tiny, ADAPTERS, SVDMerger(k=4), two_columns).fit(INPUTS, y)
    np.testing.assert_allclose(fitted.decision_function(INPUTS), SCORES[:, 1] - SCORES[:, 0], atol=1e-5)
    assert fitted.predict_proba(INPUTS).shape == (len(INPUTS), 2)
    assert fitted.score(INPUTS, y) == 1.0
    assert cross_val_score(fitted, INPUTS, y, scoring="roc_auc", cv=3).tolist() == [1.0] * 3


class TestTheModel:
    def test_clones_share_it(self):
        model = load_tiny()
        original = AdapterClassifier(model, ADAPTERS, SVDMerger(), forward).fit(INPUTS, Y)
        other = clone(original)
        assert other.base_model is model
        assert other.adapters is ADAPTERS
        assert other.merger is not original.merger
        assert not hasattr(other, "merger_")
        assert original.base_model is model
        assert clone(GridSearchCV(original, {"merger__k": [1]})).estimator.base_model is model

    @pytest.mark.parametrize("loader", [CountedLoader, UnhashableLoader])
    def test_is_loaded_once(self, tmp_path, loader):
        log = tmp_path / "loads"
        model = AdapterClassifier(loader(log), ADAPTERS, SVDMerger(), forward)
        assert not lines(log)
        cross_val_score(model, INPUTS, Y, cv=3)
        sent = pickle.dumps(model.fit(INPUTS, Y))
        expected = model.predict(INPUTS)
        for _ in range(2):
            np.testing.assert_array_equal(pickle.loads(sent).predict(INPUTS), expected)
        np.testing.assert_array_equal(clone(pickle.loads(sent)).fit(INPUTS, Y).predict(INPUTS), expected)
        assert lines(log) == 1

    def test_pickles_with_the_model(self):
        fitted = AdapterClassifier(load_tiny(), ADAPTERS, SVDMerger(k=4), forward).fit(INPUTS, Y)
        back = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(back.decision_function(INPUTS), fitted.decision_function(INPUTS))


class TestErrors:
    def test_not_fitted(self):
        with pytest.raises(NotFittedError):
            classifier().predict(INPUTS)

    def test_a_class_that_the_fold_lacks(self):
        fitted = classifier().fit(INPUTS[Y > 0], Y[Y > 0])
        with pytest.raises(ValueError, match=r"4 columns of class scores, for 3 classes: \[1, 2, 3\]; pass classes="):
            fitted.predict(INPUTS)
        assert classifier(classes=range(CLASSES)).fit(INPUTS[Y > 0], Y[Y > 0]).predict(INPUTS).shape == Y.shape

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"classes": [0, 1, 2]}, r"y has the labels \[3\], which are not among the classes"),
            ({"batch_size": 0}, "batch_size"),
            ({"memory": 3}, "memory"),
            ({"adapters": []}, "at least one adapter"),
            ({"base_model": "bert"}, "base_model"),
        ],
    )
    def test_of_parameters(self, options, message):
        with pytest.raises(ValueError, match=message):
            classifier().set_params(**options).fit(INPUTS, Y)

    def test_of_data(self):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            classifier().fit(INPUTS[1:], Y)
        with pytest.raises(ValueError, match="continuous"):
            classifier().fit(INPUTS, INPUTS[:, 0])

    def test_merger_that_merges_nothing(self):
        with pytest.raises(TypeError, match="no merged adapter"):
            classifier(SVDPruner(k=1)).fit(INPUTS, Y)

    def test_answers_instead_of_scores(self):
        model = AdapterClassifier(load_tiny, ADAPTERS, SVDMerger(), lambda model, x: x[:, 0]).fit(INPUTS, Y)
        with pytest.raises(
            ValueError, match=r"shape \(120,\) of 120 inputs; expected class scores of shape \(120, 4\)"
        ):
            model.predict(INPUTS)
