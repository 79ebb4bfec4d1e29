"""SVC and isotropy after a merge, against dense float64 algebra written out plainly, and what the wrappers promise."""

import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from test_spectral import ROOT, SETS, random_set, svd

from lorakit import (
    Adapter,
    AdapterSet,
    AllAdapters,
    AverageMerger,
    ConcatMerger,
    DareMerger,
    IsoMerger,
    Isotropizer,
    LegoMerger,
    LoraFactors,
    RegMeanMerger,
    SVCCalibrator,
    SVCMerger,
    SVDMerger,
    SVDPruner,
    TiesMerger,
    TSVMerger,
    WeightSearch,
    load_adapters,
    rank_path,
)
from lorakit.activations import Grams
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters, parametrize_with_checks

FIRST = [
    None,
    SVDMerger(k=5),
    TiesMerger(k=16),
    TSVMerger(),
    LegoMerger(k=6, random_state=0),
    DareMerger(space="core", random_state=0),
]
each_first = pytest.mark.parametrize("first", FIRST, ids=str)
each_set = pytest.mark.parametrize("X", SETS.values(), ids=SETS)
WEIGHTS = (1, 2, 4)


def apart(x, y):
    """Relative distance of two adapters from dense updates: relative_error ends where squares lose their digits."""
    assert set(x) == set(y)
    gap, size = (
        sum(part(m).norm() ** 2 for m in y) for part in (lambda m: x[m].delta() - y[m].delta(), lambda m: y[m].delta())
    )
    return float((gap / size) ** 0.5)


def dense_svc(w, updates, shares, alpha):
    """The authors' formula: each singular value over the weighted mean of the tasks' responses, floored by alpha."""
    rank = int(torch.linalg.matrix_rank(w, rtol=1e-9))
    u, s, v = svd(w, rank)
    out = torch.zeros_like(w)
    for u_r, s_r, v_r in zip(u.T, s, v.T, strict=True):
        counts = [float((u_r @ w) @ (u_r @ x) / ((u_r @ x) @ (u_r @ x))) for x in updates]
        eta = sum(share * max(alpha, count) for share, count in zip(shares, counts, strict=True))
        out += torch.outer(u_r, v_r) * s_r / eta
    return out


def dense_isotropic(w, n):
    u, s, v = svd(w, int(torch.linalg.matrix_rank(w, rtol=1e-9)))
    return s.sum() / n * u @ v.T


def merged_first(first, X):
    return clone(first or ConcatMerger()).set_params(weights=WEIGHTS).fit(X).merged_


@each_first
@each_set
@pytest.mark.parametrize("alpha", [None, 0.7])
def test_calibration_against_dense(first, X, alpha):
    whole, shares = merged_first(first, X), [x / sum(WEIGHTS) for x in WEIGHTS]
    merged = SVCCalibrator(first, alpha=alpha, weights=WEIGHTS).fit(X).merged_
    for module in X.module_names:
        updates = [f.delta() for f in X.factors(module)]
        expected = dense_svc(whole[module].delta(), updates, shares, alpha or 1 / 3)
        assert (merged[module].delta() - expected).norm() < 1e-7 * expected.norm()


@each_first
@each_set
def test_isotropy_against_dense(first, X):
    whole = merged_first(first, X)
    merged = Isotropizer(first, weights=WEIGHTS).fit(X).merged_
    for module in X.module_names:
        n = min(whole[module].rank, *whole[module].delta().shape)
        expected = dense_isotropic(whole[module].delta(), n)
        assert (merged[module].delta() - expected).norm() < 1e-7 * expected.norm()


@each_set
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_calibration_of_the_mean_is_svc(X, alpha):
    """SVCMerger counts from the sum, the calibrator from the mean: alpha is a third."""
    expected = SVCMerger(alpha=alpha, weights=WEIGHTS).fit(X).merged_
    merged = SVCCalibrator(alpha=alpha / 3, weights=WEIGHTS).fit(X).merged_
    assert apart(merged, expected) < 1e-9
    if alpha == 1:
        assert apart(SVCCalibrator(weights=WEIGHTS).fit(X).merged_, expected) < 1e-9


@each_set
def test_isotropy_of_the_sum_is_iso(X):
    expected = IsoMerger(weights=WEIGHTS).fit(X).merged_
    assert apart(Isotropizer(weights=WEIGHTS, scale=3.0).fit(X).merged_, expected) < 1e-9
    assert apart(Isotropizer(ConcatMerger(scale=3.0), weights=WEIGHTS).fit(X).merged_, expected) < 1e-9


@pytest.fixture(scope="module")
def real_set():
    names = ("icd10", "langid_r16", "wn_noun_r4", "wn_pos", "deb_section")
    X = load_adapters([ROOT / "examples" / "adapters" / name for name in names])
    modules = ("encoder.layer.0.attention.self.query", "encoder.layer.5.output.dense")
    return AdapterSet(Adapter({m: adapter[m].to(torch.float64) for m in modules}, name=adapter.name) for adapter in X)


@pytest.mark.parametrize("first", [None, SVDMerger(k=8), TiesMerger(k=44, space="core")], ids=str)
def test_real_adapters(first, real_set):
    X = real_set
    whole = clone(first or ConcatMerger()).fit(X).merged_
    calibrated, isotropic = SVCCalibrator(first).fit(X).merged_, Isotropizer(first).fit(X).merged_
    for module in X.module_names:
        w, updates = whole[module].delta(), [f.delta() for f in X.factors(module)]
        expected = dense_svc(w, updates, [0.2] * 5, 0.2)
        assert (calibrated[module].delta() - expected).norm() < 1e-7 * expected.norm()
        expected = dense_isotropic(w, whole[module].rank)
        assert (isotropic[module].delta() - expected).norm() < 1e-7 * expected.norm()
    assert apart(SVCCalibrator().fit(X).merged_, SVCMerger().fit(X).merged_) < 1e-9
    assert apart(Isotropizer(scale=5.0).fit(X).merged_, IsoMerger().fit(X).merged_) < 1e-9


CONTRACT = [
    SVCCalibrator(TiesMerger(space="factors")),
    SVCCalibrator(LegoMerger(random_state=0), alpha=0.5),
    Isotropizer(TiesMerger(k=12)),
    Isotropizer(AverageMerger()),
]


@parametrize_with_checks(
    CONTRACT,
    expected_failed_checks={CONTRACT[1]: {"check_copies": "no over-counting is above this alpha, so nothing differs"}},
)
def test_contract(estimator, check):
    """The contract of the wrappers over mergers that draw, need equal ranks, or depend on the factorization."""
    check(estimator)


def test_a_negative_weight_is_the_negated_update():
    X = random_set()
    negated = AdapterSet([*X[:2], Adapter({m: f.scaled(-1) for m, f in X[2].items()}, name="negated")])
    for wrapper in (SVCCalibrator, Isotropizer):
        signed = wrapper(SVDMerger(k=8), weights=[1, 2, -1]).fit(X).merged_
        assert apart(signed, wrapper(SVDMerger(k=8), weights=[1, 2, 1]).fit(negated).merged_) < 1e-9
        with pytest.raises(ValueError, match="no negative weights"):
            wrapper(TiesMerger(), weights=[1, 2, -1]).fit(X)


@pytest.mark.parametrize("wrapper", [SVCCalibrator, Isotropizer])
def test_the_first_merge_is_not_rounded_to_half_precision(wrapper):
    X = random_set(dtype=torch.float16)
    wide = AdapterSet(adapter.astype(torch.float32) for adapter in X)
    in_half, in_single = wrapper(TiesMerger(k=9)).fit(X).merged_, wrapper(TiesMerger(k=9)).fit(wide).merged_
    assert (in_half.dtype, in_single.dtype) == (torch.float16, torch.float32)
    for module in in_half:
        for half, single in zip(in_half[module], in_single[module], strict=True):
            assert torch.equal(half, single.half())


@pytest.mark.parametrize("wrapper", [SVCCalibrator, Isotropizer])
def test_in_searches_and_pipelines(wrapper):
    X = random_set(ranks=(3, 5, 4), n_modules=2)
    grid = {"merger__density": [0.2, 0.9], "merger__k": [4, 8], "k": [2, 3]}
    search = GridSearchCV(wrapper(TiesMerger()), grid, cv=AllAdapters()).fit(X)
    assert len(search.cv_results_["params"]) == 8
    assert search.best_estimator_.merged_.ranks == (search.best_params_["k"],)
    pipeline = Pipeline([("prune", SVDPruner(k=3)), ("merge", wrapper(TiesMerger(k=6)))]).set_params(merge__k=2)
    alone = wrapper(TiesMerger(k=6), k=2).fit(SVDPruner(k=3).fit_transform(X)).merged_
    assert apart(pipeline.fit_transform(X)[0], alone) == 0


class Counted(SVDMerger):
    """Notes every fit."""

    fits: ClassVar[list] = []

    def fit(self, X, y=None):
        self.fits.append(self.k)
        return super().fit(X, y)


def test_in_a_search_for_weights():
    """The weights that are searched are the wrapper's, not those of the merger in it."""
    X = random_set(ranks=(4, 4))
    wanted = Isotropizer(SVDMerger(k=4), weights=[0.2, 0.8]).fit(X).merged_

    def near(merger, adapters):
        return -relative_error(merger.merged_, wanted)

    search = WeightSearch(Isotropizer(SVDMerger(k=4)), near).fit(X)
    assert search.best_weights_["task0"] == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("wrapper", [SVCCalibrator, Isotropizer])
def test_a_sweep_of_ranks_merges_once(wrapper):
    Counted.fits.clear()
    path = rank_path(wrapper(Counted(k=7)), random_set(n_modules=2), [2, 5, None])
    assert Counted.fits == [7]
    assert [fitted.merged_.ranks for fitted in path.values()] == [(2,), (5,), (7,)]
    assert pickle.loads(pickle.dumps(path[5])).merged_.ranks == (5,)


def test_the_merge_and_its_parameters_are_recorded():
    X = random_set()
    estimator = SVCCalibrator(TiesMerger(density=0.3), alpha=0.5)
    before = str(estimator.get_params())
    (operation,) = estimator.fit(X).merged_.provenance.operations
    assert operation.startswith("SVCCalibrator(merger=TiesMerger(k=None, density=0.3, space='delta', ")
    assert "), k=None, alpha=0.5, " in operation
    assert str(estimator.get_params()) == before
    assert not hasattr(estimator.merger, "merged_")


def test_after_a_merge_that_needs_data():
    X = make_adapters(2, ranks=4, random_state=0, dtype=torch.float64)
    grams = {a.name: Grams({m: np.eye(24) for m in a}) for a in X}
    mean = SVDMerger(k=8).fit(X).merged_
    merged = Isotropizer(RegMeanMerger(k=8, grams=grams)).fit(X).merged_
    expected = Isotropizer(SVDMerger(k=8)).fit(X).merged_
    assert relative_error(merged, expected) < 1e-6
    assert relative_error(merged, mean) > 0.1
    with pytest.raises(ValueError, match="collect_grams"):
        Isotropizer(RegMeanMerger()).fit(X)


def test_wrong_arguments():
    X = random_set()
    with pytest.raises(ValueError, match="SVDMerger was given weights of its own; give them to Isotropizer"):
        Isotropizer(SVDMerger(weights=[1, 2, 3])).fit(X)
    with pytest.raises(ValueError, match="k=9 is above 5, the largest rank of what the method svd made"):
        Isotropizer(SVDMerger(k=5), k=9).fit(X)
    for wrong in (SVDPruner(), "ties", SVDMerger):
        with pytest.raises(ValueError, match="'merger' parameter of SVCCalibrator"):
            SVCCalibrator(wrong).fit(X)
    for alpha in (0.0, -1.0):
        with pytest.raises(ValueError, match="'alpha' parameter"):
            SVCCalibrator(alpha=alpha).fit(X)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")
def test_a_merge_of_nothing_stays_nothing():
    X = [Adapter({"m": LoraFactors(torch.ones(2, 3), torch.zeros(4, 2))}, name=name) for name in "ab"]
    for wrapper in (SVCCalibrator, Isotropizer):
        assert wrapper().fit(X).merged_["m"].delta().abs().max() == 0
