"""Curves over ranks and between adapters."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, LeaveOneOut
from sklearn.pipeline import Pipeline

from lorakit import AllAdapters, LegoMerger, SVDMerger, TSVMerger, rank_path
from lorakit.metrics import mode_connectivity, output_variance_path, relative_error
from lorakit.plotting import ModeConnectivityDisplay, OutputVarianceDisplay, RankCurveDisplay
from lorakit.testing import make_adapters


def test_variance_of_lego(adapters, drawn):
    display = drawn(OutputVarianceDisplay.from_adapters(adapters, ks=[16, 2, 8]))
    raw = rank_path(LegoMerger(output_scale=None, random_state=0), adapters, [2, 8, 16])
    expected = np.median(output_variance_path(raw, adapters).ratio, axis=1)
    line = display.lines_[0]
    assert line.get_label() == "without output reweighting"
    assert line.get_xdata().tolist() == [2, 8, 16]
    assert line.get_ydata() == pytest.approx(expected)
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["2", "8", "16"]


def test_variance_of_paths_of_ones_own(adapters, drawn):
    path = rank_path(SVDMerger(), adapters, [2, 4])
    grams = {module: np.eye(24) for module in adapters.module_names}
    display = drawn(OutputVarianceDisplay.from_paths({"SVD": path}, adapters, grams=grams))
    assert display.variances["SVD"].ratio == pytest.approx(output_variance_path(path, adapters).ratio)


def test_curves_from_arrays(drawn):
    repeats = [[0.5, 0.7], [0.7, 0.7]]
    display = drawn(RankCurveDisplay.from_arrays([8, 4], {"a": [0.9, 0.8], "b": repeats}, errors={"a": [0.1, 0.2]}))
    assert display.curves["a"].scores.tolist() == [0.8, 0.9]  # in the order of the ranks
    assert display.curves["a"].errors.tolist() == [0.2, 0.1]
    assert display.curves["b"].scores == pytest.approx([0.7, 0.6])
    assert display.curves["b"].errors == pytest.approx([0, 0.1])
    assert "2 repeats" in display.ax_.get_title(loc="right")
    assert len(display.lines_) == 2
    single = drawn(RankCurveDisplay.from_arrays([4, 8], [1, 2], score_name="accuracy"))
    assert single.ax_.get_legend() is None
    assert single.ax_.get_ylabel() == "accuracy"


def test_curves_of_a_search(drawn, adapters):
    grid = {"k": [8, 2], "scale": [0.5, 1.0], "n_jobs": [None]}
    search = GridSearchCV(SVDMerger(), grid, cv=LeaveOneOut()).fit(adapters)
    display = drawn(RankCurveDisplay.from_search(search))
    assert list(display.curves) == ["scale=0.5", "scale=1.0"]  # n_jobs never differs
    results = search.cv_results_
    for name, scale in (("scale=0.5", 0.5), ("scale=1.0", 1.0)):
        for k, score, error in zip(*vars(display.curves[name]).values(), strict=True):
            i = results["params"].index({"k": k, "scale": scale, "n_jobs": None})
            assert (score, error) == (results["mean_test_score"][i], results["std_test_score"][i])
    assert "3 folds" in display.ax_.get_title(loc="right")


def test_a_search_over_methods_in_a_pipeline(drawn, adapters):
    def scores(estimator, X):
        return {"mean": estimator[-1].merged_.ranks[0], "worst": -1.0}

    pipeline = Pipeline([("merge", SVDMerger())])
    grids = {"merge": [SVDMerger(), TSVMerger()], "merge__k": [2, 4]}
    search = GridSearchCV(pipeline, grids, scoring=scores, refit="mean", cv=AllAdapters()).fit(adapters)
    display = drawn(RankCurveDisplay.from_search(search))
    assert list(display.curves) == ["merge=SVDMerger", "merge=TSVMerger"]
    assert display.curves["merge=SVDMerger"].scores.tolist() == [2, 4]
    assert display.curves["merge=SVDMerger"].errors is None  # one fold has no spread
    assert display.score_name == "mean"
    worst = RankCurveDisplay.from_search(
        search, metric="worst", label=lambda p: "SVD" if isinstance(p["merge"], SVDMerger) else None
    )
    assert list(worst.curves) == ["SVD"]
    assert worst.curves["SVD"].scores.tolist() == [-1, -1]


def test_connectivity(drawn):
    x, y = make_adapters(2, ranks=4, random_state=0)

    def loss(adapter):
        return relative_error(adapter, x) + 2 * relative_error(adapter, y)

    display = drawn(ModeConnectivityDisplay.from_adapters(x, y, loss, alphas=3, loss_name="loss (nats)"))
    updates, factors = display.curves.values()
    assert (updates.space, factors.space) == ("updates", "factors")
    for line, curve in zip(display.lines_, (updates, factors), strict=True):
        assert line.get_xdata().tolist() == [0, 0.5, 1]
        assert np.array_equal(line.get_ydata(), curve.losses)
        assert line.get_label().endswith(f"barrier {curve.barrier:.3g}")
    chord = next(line for line in display.ax_.lines if line.get_label() == "chord")
    assert chord.get_ydata().tolist() == [updates.losses[0], updates.losses[-1]]
    assert display.ax_.get_ylabel() == "loss (nats)"
    assert "task1 (0) to task0 (1)" in display.ax_.get_xlabel()
    flat = mode_connectivity(x, x.renamed("copy"), loss, alphas=3)
    (line,) = drawn(ModeConnectivityDisplay.from_curves(flat)).lines_
    assert line.get_label().endswith("barrier 0")  # and not 1e-9, which is round-off
    one = drawn(ModeConnectivityDisplay.from_curves(updates))
    assert list(one.curves) == ["updates (multiplied merge)"]


def test_what_is_refused(adapters):
    with pytest.raises(ValueError, match="each of 2 ranks; got shape"):
        RankCurveDisplay.from_arrays([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="pass no errors"):
        RankCurveDisplay.from_arrays([1, 2], [[1, 2], [2, 3]], errors=[1, 1])
    with pytest.raises(NotFittedError):
        RankCurveDisplay.from_search(GridSearchCV(SVDMerger(), {"k": [1]}))
    search = GridSearchCV(SVDMerger(), {"scale": [1, 2]}, cv=AllAdapters()).fit(adapters)
    with pytest.raises(ValueError, match=r"0 parameters called k among \['scale'\]"):
        RankCurveDisplay.from_search(search)
    search = GridSearchCV(SVDMerger(), {"k": [1, 2], "scale": [1, 2]}, cv=AllAdapters()).fit(adapters)
    with pytest.raises(ValueError, match="no score 'mean'; it has \\['score'\\]"):
        RankCurveDisplay.from_search(search, metric="mean")
    with pytest.raises(ValueError, match="'all' has several candidates at one rank"):
        RankCurveDisplay.from_search(search, label=lambda params: "all")
    x, y, z = adapters
    curves = [mode_connectivity(x, other, lambda adapter: 0.0, alphas=2) for other in (y, z)]
    with pytest.raises(ValueError, match="the same two adapters"):
        ModeConnectivityDisplay.from_curves({"a": curves[0], "b": curves[1]})
