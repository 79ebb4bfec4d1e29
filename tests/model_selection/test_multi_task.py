"""The scorer measures what it says, of every kind of estimator, and leaves the model as it was."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import accuracy_score, f1_score, log_loss, make_scorer, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    LeaveOneOut,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.pipeline import Pipeline, make_pipeline
from tiny_tasks import (
    CLASSES,
    INPUTS,
    CountedLoader,
    UnhashableLoader,
    class_scores,
    forward,
    lines,
    load_tiny,
    slow_forward,
    tiny_adapters,
    tiny_tasks,
)

from lorakit import AllAdapters, LegoMerger, MultiTaskScorer, SVDMerger, SVDPruner, TSVMerger, WeightSearch

TASKS = tiny_tasks()
NAMES = list(TASKS)
NEG_LOG_LOSS = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba")
X = tiny_adapters()


def scorer(**options):
    return MultiTaskScorer(load_tiny, TASKS, forward, **options)


def by_hand(adapter):
    return {name: np.mean(class_scores(x, adapter).argmax(axis=1) == y) for name, (x, y) in TASKS.items()}


def test_scores_are_those_of_dense_weights():
    merger = SVDMerger(k=4, scale=2.0).fit(X)
    expected = by_hand(merger.merged_)
    assert len(set(expected.values())) == 3  # nothing is mixed up
    scores = scorer()(merger, X)
    assert list(scores) == [*NAMES, "mean", "worst"]
    assert scores == pytest.approx(
        expected | {"mean": np.mean(list(expected.values())), "worst": min(expected.values())}
    )
    assert scorer(output="mean")(merger, X) == pytest.approx(scores["mean"])
    assert scorer(output="worst")(merger) == pytest.approx(scores["worst"])
    assert scorer(batch_size=7)(merger) == pytest.approx(scores)


def test_evaluating_adapters_and_the_base_model():
    for name in NAMES:
        assert scorer().evaluate(X[name])[name] == 1.0  # its own adapter is right
        assert scorer().evaluate(X[name], [name]) == {name: 1.0}
    assert scorer().evaluate() == pytest.approx(by_hand(None))
    with pytest.raises(ValueError, match=r"no tasks \['other'\]"):
        scorer().evaluate(None, ["other"])


def mergers():
    mean = scorer(output="mean")
    return {
        "merger": SVDMerger(k=4),
        "pipeline": make_pipeline(SVDPruner(k=2), SVDMerger(k=4)),
        "nested": make_pipeline(SVDPruner(k=2), Pipeline([("merge", SVDMerger(k=4))])),
        "weights": WeightSearch(SVDMerger(k=4), mean, n_iter=3),
        "search": GridSearchCV(SVDMerger(), {"k": [2, 4]}, scoring=mean, cv=AllAdapters()),
        "search over weights": GridSearchCV(
            WeightSearch(SVDMerger(), mean, n_iter=2), {"merger__k": [2, 4]}, scoring=mean, cv=AllAdapters()
        ),
    }


@pytest.mark.parametrize("kind", mergers())
def test_every_estimator_with_a_merged_adapter(kind):
    estimator = mergers()[kind].fit(X)
    (merged,) = estimator.transform(X)
    assert scorer()(estimator, X) == scorer().evaluate(merged) | {
        "mean": scorer(output="mean")(estimator),
        "worst": scorer(output="worst")(estimator),
    }


@pytest.mark.parametrize(
    "estimator",
    [
        SVDMerger(),
        make_pipeline(SVDPruner(k=2), SVDMerger()),
        make_pipeline(SVDMerger(), "passthrough"),
        GridSearchCV(SVDMerger(), {"k": [2]}, scoring=scorer(), refit=False, cv=AllAdapters()).fit(X),
    ],
)
def test_estimators_without_one(estimator):
    with pytest.raises(TypeError, match="has no merged adapter; expected a fitted merger"):
        scorer()(estimator, X)


def test_one_grid_over_k_reweightings_and_classes():
    """The searches that the user guide shows."""
    pipeline = Pipeline([("merge", LegoMerger())])
    ks = [2, 4]
    grids = [
        {"merge": [LegoMerger(random_state=0)], "merge__norm": ["inf", None], "merge__k": ks},
        {"merge": [SVDMerger(), TSVMerger(scale="match")], "merge__k": ks},
    ]
    search = GridSearchCV(pipeline, grids, scoring=scorer(), refit="mean", cv=AllAdapters()).fit(X)
    results = search.cv_results_
    assert len(results["params"]) == 8
    best = np.argmax(results["mean_test_mean"])
    assert search.best_params_ == results["params"][best]
    assert search.best_score_ == results["mean_test_mean"][best]
    for i, params in enumerate(results["params"]):
        merged = clone(pipeline).set_params(**params).fit(X)[-1].merged_
        for name, score in by_hand(merged).items():
            assert results[f"mean_test_{name}"][i] == pytest.approx(score)
        assert results["mean_test_worst"][i] == pytest.approx(min(by_hand(merged).values()))
    assert scorer().evaluate(search.best_estimator_[-1].merged_) == pytest.approx(
        {name: results[f"mean_test_{name}"][best] for name in NAMES}
    )


def test_searches_that_want_one_number():
    options = {"scoring": scorer(output="mean"), "cv": AllAdapters()}
    randomized = RandomizedSearchCV(SVDMerger(), {"k": range(1, 5)}, n_iter=3, random_state=0, **options).fit(X)
    assert randomized.best_score_ == pytest.approx(np.mean(list(by_hand(randomized.best_estimator_.merged_).values())))
    halving = HalvingGridSearchCV(
        LegoMerger(random_state=0), {"k": [1, 2, 3, 4]}, resource="n_init", max_resources=4, factor=2, **options
    ).fit(X)
    assert halving.n_resources_ == [1, 2, 4]
    assert halving.best_score_ == pytest.approx(np.mean(list(by_hand(halving.best_estimator_.merged_).values())))


class TestMetrics:
    merger = SVDMerger(k=4).fit(X)

    def scores_and_labels(self):
        for name, (x, y) in TASKS.items():
            scores = class_scores(x, self.merger.merged_)
            exp = np.exp(scores - scores.max(axis=1, keepdims=True))
            yield name, y, scores, exp / exp.sum(axis=1, keepdims=True)

    @pytest.mark.parametrize(
        ("metric", "expected"),
        [
            ("accuracy", lambda y, s, p: accuracy_score(y, s.argmax(1))),
            ("f1_macro", lambda y, s, p: f1_score(y, s.argmax(1), average="macro")),
            ("neg_log_loss", lambda y, s, p: -log_loss(y, p)),
            ("roc_auc_ovr", lambda y, s, p: roc_auc_score(y, p, multi_class="ovr")),
            (lambda y, labels: -np.abs(y - labels).sum(), lambda y, s, p: -np.abs(y - s.argmax(1)).sum()),
            (NEG_LOG_LOSS, lambda y, s, p: -log_loss(y, p)),
            (make_scorer(lambda y, s: s[0, 0], response_method="decision_function"), lambda y, s, p: s[0, 0]),
        ],
    )
    def test_metric(self, metric, expected):
        scores = scorer(metric=metric)(self.merger)
        for name, *given in self.scores_and_labels():
            assert scores[name] == pytest.approx(expected(*given))

    def test_log_loss_of_a_task_that_lacks_a_class(self):
        x, y = TASKS["task0"]
        x, y = x[y != 2], y[y != 2]
        lacking = MultiTaskScorer(load_tiny, {"lacking": (x, y)}, forward, metric="neg_log_loss")
        scores = class_scores(x, self.merger.merged_)
        expected = scores[np.arange(len(y)), y] - np.log(np.exp(scores).sum(axis=1))
        assert lacking(self.merger)["lacking"] == pytest.approx(expected.mean())

    def test_one_metric_and_head_a_task(self):
        metric = {"task0": "accuracy", "task1": "f1_macro", "task2": accuracy_score}
        heads = {name: (lambda model, x, i=i: forward(model, x).roll(i, dims=1)) for i, name in enumerate(NAMES)}
        mixed = MultiTaskScorer(load_tiny(), TASKS, heads, metric=metric)(self.merger)
        given = {
            name: (y, np.roll(s, i, axis=1).argmax(1)) for i, (name, y, s, _) in enumerate(self.scores_and_labels())
        }
        assert mixed["task0"] == pytest.approx(accuracy_score(*given["task0"]))
        assert mixed["task1"] == pytest.approx(f1_score(*given["task1"], average="macro"))
        assert mixed["task2"] == pytest.approx(accuracy_score(*given["task2"]))

    def test_labels_in_an_order_of_the_columns_own(self):
        """The AUC takes columns to be in the order of the labels, which they are not here."""
        words = np.array(["pear", "apple", "fig", "date"])
        tasks = {name: (x, words[y]) for name, (x, y) in TASKS.items()}
        for metric in ("accuracy", "roc_auc_ovr", "neg_log_loss"):
            named = MultiTaskScorer(load_tiny, tasks, forward, metric=metric, classes=words)
            assert named(self.merger) == pytest.approx(scorer(metric=metric)(self.merger))

    def test_two_classes(self):
        x, _ = TASKS["task0"]
        scores = class_scores(x, self.merger.merged_)[:, :2]
        y = np.where(np.arange(INPUTS) % 3, "yes", "no")
        two = MultiTaskScorer(load_tiny, {"two": (x, y)}, lambda model, x: forward(model, x)[:, :2], metric="roc_auc")
        assert two(self.merger)["two"] == pytest.approx(roc_auc_score(y == "yes", scores[:, 1] - scores[:, 0]))

    def test_answers_that_are_not_classes(self):
        x, _ = TASKS["task0"]
        target = class_scores(x, X["task0"])[:, 0]
        options = {"metric": "r2"}
        numbers = MultiTaskScorer(load_tiny, {"n": (x, target)}, lambda m, x: forward(m, x)[:, 0], **options)
        assert numbers.evaluate(X["task0"])["n"] == pytest.approx(1)
        assert numbers.evaluate()["n"] < 0.9
        texts = MultiTaskScorer(
            load_tiny, {"t": (["a", "b"], ["A", "B"])}, lambda m, x: [s.upper() for s in x], metric="accuracy"
        )
        assert texts.evaluate() == {"t": 1.0}


class TestReference:
    def test_scores_are_divided(self):
        merger = SVDMerger(k=4).fit(X)
        reference = {"task0": 1.0, "task1": 0.5, "task2": 0.25}
        plain, divided = scorer()(merger), scorer(reference=reference)(merger)
        for name in NAMES:
            assert divided[name] == pytest.approx(plain[name] / reference[name])
        assert divided["mean"] == pytest.approx(np.mean([divided[name] for name in NAMES]))
        assert divided["worst"] == min(divided[name] for name in NAMES)

    @pytest.mark.parametrize("bad", [{"task0": 1.0}, {"task0": 1, "task1": -0.5, "task2": 1}])
    def test_bad(self, bad):
        with pytest.raises(ValueError, match="reference"):
            scorer(reference=bad)


class TestTasksOf:
    def test_left_out_adapters(self):
        """Leave-one-out: merged of the others, judged on the task of the one left out, or on the others'."""
        for tasks_of in ("fold", "rest"):
            found = cross_val_score(
                SVDMerger(k=4), X, cv=LeaveOneOut(), scoring=scorer(tasks_of=tasks_of, output="mean")
            )
            expected = []
            for left_out in range(3):
                others = [i for i in range(3) if i != left_out]
                scores = by_hand(SVDMerger(k=4).fit(X[others]).merged_)
                judged = [left_out] if tasks_of == "fold" else others
                expected.append(np.mean([scores[NAMES[i]] for i in judged]))
            np.testing.assert_allclose(found, expected)

    def test_in_a_search(self):
        """Tasks differ from fold to fold, so that their columns would; those of the summaries do not."""
        options = {"scoring": scorer(tasks_of="fold"), "refit": "worst", "cv": LeaveOneOut()}
        for adapters in (X, list(X)):
            search = GridSearchCV(SVDMerger(), {"k": [2, 4]}, **options).fit(adapters)
            assert {"split2_test_mean", "std_test_worst"} < set(search.cv_results_)
            assert "mean_test_task0" not in search.cv_results_
            assert np.isfinite(search.best_score_)

    def test_nothing_to_judge(self):
        merger = SVDMerger(k=4).fit(X)
        with pytest.raises(ValueError, match=r"leaves no task: X has the adapters \['other'\]"):
            scorer(tasks_of="fold")(merger, [X[0].renamed("other")])
        with pytest.raises(ValueError, match="leaves no task"):
            scorer(tasks_of="rest")(merger, X)
        with pytest.raises(ValueError, match="got none"):
            scorer(tasks_of="fold")(merger)


class TestTheModel:
    def test_stays_as_it_was(self):
        model = load_tiny()
        model.train()
        model.layer.eval()  # frozen apart
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]

        def failing(model, x):
            assert not model.drop.training
            raise RuntimeError("out of memory")

        MultiTaskScorer(model, TASKS, forward)(SVDMerger(k=4).fit(X))
        with pytest.raises(RuntimeError, match="out of memory"):
            MultiTaskScorer(model, TASKS, failing)(SVDMerger(k=4).fit(X))
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())

    def test_dropout_is_off(self):
        model = load_tiny().train()
        assert MultiTaskScorer(model, TASKS, forward).evaluate(X[0])["task0"] == 1.0

    def test_threads_take_turns(self):
        """Without a lock, each would see the other's adapters on the model as well."""
        grid = {"k": [1, 2, 3, 4], "scale": [0.5, 1.0, 2.0]}
        scoring = MultiTaskScorer(load_tiny(), TASKS, slow_forward)
        search = GridSearchCV(SVDMerger(), grid, scoring=scoring, refit=False, cv=AllAdapters(), n_jobs=4)
        with joblib.parallel_config("threading"):
            threaded = clone(search).fit(X).cv_results_
        serial = search.set_params(n_jobs=1).fit(X).cv_results_
        for name in (*NAMES, "mean", "worst"):
            np.testing.assert_array_equal(threaded[f"mean_test_{name}"], serial[f"mean_test_{name}"])

    @pytest.mark.parametrize("loader", [CountedLoader, UnhashableLoader])
    def test_is_loaded_once_and_not_copied(self, tmp_path, loader):
        log = tmp_path / "loads"
        scoring = MultiTaskScorer(loader(log), TASKS, forward)
        assert not lines(log)  # not before it is needed
        sent = pickle.dumps(scoring)
        for again in (scoring, clone(scoring), pickle.loads(sent), pickle.loads(sent)):
            again(SVDMerger(k=4).fit(X))
        assert lines(log) == 1
        model = load_tiny()
        scoring = MultiTaskScorer(model, TASKS, forward)
        search = GridSearchCV(SVDMerger(), {"k": [1]}, scoring=scoring)
        assert clone(search).scoring is scoring

    def test_functions_that_differ_load_their_own(self):
        def zeroed(shift):
            model = load_tiny()
            model.layer[0].weight.data *= 0
            model.layer[0].bias.data = torch.eye(CLASSES, dtype=torch.float64)[shift]
            return model

        for shift in (0, 1, 0):
            found = MultiTaskScorer(lambda shift=shift: zeroed(shift), TASKS, forward).evaluate()["task0"]
            assert found == np.mean(TASKS["task0"][1] == shift)

    def test_loader_of_something_else(self):
        with pytest.raises(TypeError, match="base_model=dict must return a torch module, and returned a dict"):
            MultiTaskScorer(dict, TASKS, forward).evaluate()

    def test_prefix(self):
        model = torch.nn.ModuleDict({"inner": load_tiny()})
        scoring = MultiTaskScorer(model, TASKS, lambda model, x: forward(model["inner"], x), prefix="inner.")
        assert scoring.evaluate(X[0]) == pytest.approx(by_hand(X[0]))


def test_pickle():
    scoring = scorer(metric="neg_log_loss", output="worst")
    merger = SVDMerger(k=4).fit(X)
    assert pickle.loads(pickle.dumps(scoring))(merger, X) == scoring(merger, X)
    assert repr(scoring) == "MultiTaskScorer(['task0', 'task1', 'task2'], metric='neg_log_loss', output='worst')"


class TestErrors:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (lambda model, x: forward(model, x)[1:], r"shape \(119, 4\) of 120 inputs"),
            (lambda model, x: forward(model, x)[:, :3], "y has the labels .3., which are not among the classes"),
            (lambda model, x: forward(model, x) * float("nan"), "NaN of 120 of 120 inputs, first of the one at 0"),
            (lambda model, x: 1 / 0, "division"),
        ],
    )
    def test_name_the_task(self, bad, message):
        scoring = MultiTaskScorer(load_tiny, TASKS, {"task0": forward, "task1": bad, "task2": forward})
        with pytest.raises((ValueError, ZeroDivisionError), match=message) as caught:
            scoring(SVDMerger(k=4).fit(X))
        assert caught.value.__notes__[0].startswith("in task 'task1', on Adapter('svd'")

    def test_are_shown_by_searches(self):
        scoring = MultiTaskScorer(load_tiny, TASKS, lambda model, x: 1 / 0)
        search = GridSearchCV(SVDMerger(), {"k": [2]}, scoring=scoring, refit=False, cv=AllAdapters())
        with pytest.warns(UserWarning, match="non-finite"), pytest.warns(UserWarning, match="in task 'task0'"):
            search.fit(X)

    def test_scores_that_are_no_numbers(self):
        with pytest.raises(ValueError, match="gave nan on 120 inputs"):
            scorer(metric=lambda y, p: float("nan")).evaluate()

    def test_classes_for_all_columns(self):
        tasks = {"a": (np.zeros((2, 12)), ["x", "y"])}
        with pytest.raises(ValueError, match=r"4 columns of class scores, for 2 classes: \['x', 'y'\]; pass classes="):
            MultiTaskScorer(load_tiny, tasks, forward).evaluate()

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"base_model": "bert"}, TypeError, "base_model must be a torch module"),
            ({"tasks": {}}, TypeError, "at least one name"),
            ({"tasks": [([1], [2])]}, TypeError, "must map"),
            ({"tasks": {"a": [1, 2, 3]}}, TypeError, "'a' must be a pair"),
            ({"tasks": {"a": ([1, 2], [1])}}, ValueError, "2 inputs and 1 entries"),
            ({"tasks": {"a": ([], [])}}, ValueError, "n at least 1"),
            ({"tasks": {"worst": ([1], [1])}}, ValueError, "cannot be called 'worst'"),
            ({"forward": None}, TypeError, "forward of task 'task0'"),
            ({"forward": {"task0": forward}}, ValueError, r"forward names \['task0'\]"),
            ({"metric": "no_such"}, ValueError, "no_such"),
            ({"metric": 3}, TypeError, "metric of task 'task0'"),
            ({"output": "median"}, ValueError, "output must be one of"),
            ({"tasks_of": "X"}, ValueError, "tasks_of must be one of"),
            ({"batch_size": 0}, ValueError, "batch_size"),
        ],
    )
    def test_of_parameters(self, options, kind, message):
        defaults = {"base_model": load_tiny, "tasks": TASKS, "forward": forward}
        with pytest.raises(kind, match=message):
            MultiTaskScorer(**defaults | options)
