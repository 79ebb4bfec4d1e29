"""Fisher-weighted averages against dense float64 loops, and what they promise."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneOut
from sklearn.pipeline import make_pipeline

from lorakit import Adapter, AdapterSet, AverageMerger, FisherMerger, LoraFactors, ModuleSelector, SVDPruner
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.gradients import Fisher
from lorakit.metrics import relative_error
from lorakit.testing import MERGER_CHECKS, make_adapters


def tasks(seed=0, **options):
    """Adapters of one rank, and moments of very different sizes, from task to task and from entry to entry."""
    X = AdapterSet(make_adapters(**{"ranks": (5, 5, 5), "random_state": seed, "dtype": torch.float64} | options))
    rng = np.random.RandomState(seed)

    def moments(factors, size):
        return tuple(size * rng.standard_normal(x.shape) ** 8 for x in factors)

    fisher = {a.name: Fisher({m: moments(f, 1000.0**i) for m, f in a.items()}) for i, a in enumerate(X)}
    return X, fisher


def by_entry(matrices, moments, weights):
    """The formula, one entry at a time."""
    out = np.empty(matrices[0].shape)
    for place in np.ndindex(*out.shape):
        shares = [w * float(f[place]) for w, f in zip(weights, moments, strict=True)]
        shares = shares if sum(shares) > 0 else weights
        out[place] = sum(s * float(x[place]) for s, x in zip(shares, matrices, strict=True)) / sum(shares)
    return out


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 4]])
def test_against_dense(normalize, weights):
    X, fisher = tasks()
    merged = FisherMerger(fisher=fisher, normalize=normalize, weights=weights).fit(X).merged_
    norms = [np.sqrt(sum((x.numpy() ** 2).sum() for f in fisher[name].values() for x in f)) for name in X.names]
    for module in X.module_names:
        parts = []
        for part in ("A", "B"):
            matrices = [getattr(a[module], part) for a in X]
            moments = [
                getattr(fisher[name][module], part) / (norm if normalize else 1)
                for name, norm in zip(X.names, norms, strict=True)
            ]
            parts.append(by_entry(matrices, moments, weights))
        np.testing.assert_allclose(merged[module].A, parts[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(merged[module].B, parts[1], rtol=1e-9, atol=1e-12)


def test_real_adapters(real_adapter_paths):
    from lorakit import load_adapters

    X = load_adapters([real_adapter_paths[name] for name in ("icd10", "wn_pos", "deb_section")])
    module = "encoder.layer.3.attention.self.value"
    X = AdapterSet(adapter.select([module]) for adapter in X)
    fisher = {a.name: Fisher({module: (a[module].A ** 2, a[module].B ** 4)}) for a in X}
    merged = FisherMerger(fisher=fisher, normalize=False).fit(X).merged_[module]
    a = by_entry([x[module].A.double() for x in X], [x[module].A.double() ** 2 for x in X], [1, 1, 1])
    b = by_entry([x[module].B.double() for x in X], [x[module].B.double() ** 4 for x in X], [1, 1, 1])
    np.testing.assert_allclose(merged.A, a, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(merged.B, b, rtol=1e-4, atol=1e-6)


def test_equal_moments_give_the_average():
    X, _ = tasks()
    fisher = {a.name: Fisher({m: (0 * f.A + 3, 0 * f.B + 3) for m, f in a.items()}) for a in X}
    weights = [1, 2, 4]
    expected = AverageMerger(weights=weights).fit(X).merged_
    for normalize in (True, False):
        merged = FisherMerger(fisher=fisher, weights=weights, normalize=normalize).fit(X).merged_
        assert relative_error(merged, expected) < 1e-7


def test_nothing_known_gives_the_average():
    X, _ = tasks()
    fisher = {a.name: Fisher({m: (0 * f.A, 0 * f.B) for m, f in a.items()}) for a in X}
    assert relative_error(FisherMerger(fisher=fisher).fit(X).merged_, AverageMerger().fit(X).merged_) < 1e-7


def test_who_alone_depends_on_an_entry_decides_it():
    X, _ = tasks()
    only = {}
    for i, adapter in enumerate(X):
        masks = {m: [0 * x for x in f] for m, f in adapter.items()}
        for a, b in masks.values():
            a[:, i::3], b[i::3] = 1, 1
        only[adapter.name] = Fisher({m: tuple(pair) for m, pair in masks.items()})
    merged = FisherMerger(fisher=only).fit(X).merged_
    for i, adapter in enumerate(X):
        for module, (a, b) in merged.items():
            torch.testing.assert_close(a[:, i::3], adapter[module].A[:, i::3])
            torch.testing.assert_close(b[i::3], adapter[module].B[i::3])


def test_the_size_of_a_tasks_gradients_does_not_matter_under_normalize():
    X, fisher = tasks()
    louder = {**fisher, "task1": Fisher({m: (1e6 * a, 1e6 * b) for m, (a, b) in fisher["task1"].items()})}
    same = [FisherMerger(fisher=known).fit(X).merged_ for known in (fisher, louder)]
    assert relative_error(*same) < 1e-7
    other = [FisherMerger(fisher=known, normalize=False).fit(X).merged_ for known in (fisher, louder)]
    assert relative_error(*other) > 0.1


def test_an_adapter_that_lacks_a_module_has_no_say_there():
    X, fisher = tasks()
    lacking = AdapterSet([X[0].select(["layer.0"]), X[1], X[2]])
    merged = FisherMerger(fisher=fisher).fit(lacking).merged_
    pair = FisherMerger(fisher=fisher).fit(X[1:]).merged_
    assert relative_error(merged.select(["layer.1"]), pair.select(["layer.1"])) < 1e-7


def test_moments_that_are_too_small_for_single_precision_count():
    X, _ = tasks(dtype=torch.float32)
    tiny = {
        a.name: Fisher({m: (f.A.double() ** 2 * 1e-60, f.B.double() ** 2 * 1e-60) for m, f in a.items()}) for a in X
    }
    large = {a.name: Fisher({m: (f.A.double() ** 2, f.B.double() ** 2) for m, f in a.items()}) for a in X}
    merged = [FisherMerger(fisher=known, normalize=False).fit(X).merged_ for known in (tiny, large)]
    assert relative_error(*merged) < 1e-6


NOT_FOR_IT = {"check_in_pipeline": "pruning changes the factors that the moments belong to; see the test below"}


@pytest.mark.parametrize(
    "check", [c for c in MERGER_CHECKS if c.__name__ not in NOT_FOR_IT], ids=lambda check: check.__name__
)
@pytest.mark.parametrize("normalize", [True, False])
def test_contract(check, normalize):
    """The contract of all mergers, given moments for the adapters that its checks make."""
    _, fisher = tasks()
    check(FisherMerger(fisher={**fisher, "lacking": fisher["task0"]}, normalize=normalize))


def test_in_pipelines_and_searches():
    X, fisher = tasks()
    merger = FisherMerger(fisher=fisher)
    alone = merger.fit(AdapterSet(a.select(["layer.1"]) for a in X)).merged_
    (merged,) = make_pipeline(ModuleSelector(["layer.1"]), clone(merger)).fit_transform(X)
    assert relative_error(merged, alone) == 0
    with pytest.raises(IncompatibleAdaptersError, match=r"rank 3.* in adapter 'task0', and rank 5.* after any step"):
        make_pipeline(SVDPruner(k=3), clone(merger)).fit(X)
    search = GridSearchCV(clone(merger), {"normalize": [True, False]}, cv=LeaveOneOut()).fit(X)
    assert search.best_estimator_.fisher["task0"] is fisher["task0"]  # shared by all clones
    again = pickle.loads(pickle.dumps(merger)).fit(X)
    threads = clone(merger).set_params(n_jobs=2).fit(X)
    for module in X.module_names:
        assert torch.equal(again.merged_[module].A, threads.merged_[module].A)
    assert "Fisher(modules=2, rank=5)" in again.merged_.provenance.operations[-1]


def test_wrong_moments_are_refused_by_name():
    X, fisher = tasks()
    with pytest.raises(ValueError, match=r"fisher=\{adapter.name: collect_fisher.*AverageMerger"):
        FisherMerger().fit(X)
    with pytest.raises(ValueError, match=r"no moments for the adapters \['task1'\]"):
        FisherMerger(fisher={name: fisher[name] for name in ("task0", "task2")}).fit(X)
    partial = {**fisher, "task1": Fisher({"layer.0": fisher["task1"]["layer.0"]})}
    with pytest.raises(ValueError, match=r"fisher\['task1'\] has no moments for module 'layer.1'"):
        FisherMerger(fisher=partial).fit(X)
    with pytest.raises(TypeError, match=r"fisher\['task1'\] is a dict; expected a lorakit.gradients.Fisher"):
        FisherMerger(fisher={**fisher, "task1": {}}).fit(X)
    with pytest.raises(ValueError, match="'normalize' parameter"):
        FisherMerger(fisher=fisher, normalize="yes").fit(X)
    with pytest.raises(IncompatibleAdaptersError, match="needs one rank"):
        FisherMerger(fisher=fisher).fit([X[0], *make_adapters(1, ranks=4)])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_moments_are_squares(bad):
    good = np.ones((2, 3))
    with pytest.raises(ValueError, match="module 'm': second moments are squares"):
        Fisher({"m": (good * bad, np.ones((4, 2)))})
    with pytest.raises(ValueError, match="with one r"):
        Fisher({"m": (good, np.ones((4, 3)))})


def test_weight_zero_is_absence_also_of_moments():
    X, fisher = tasks()
    without = {name: fisher[name] for name in ("task0", "task2")}
    merged = FisherMerger(fisher=without, weights=[1, 0, 3]).fit(X).merged_
    assert relative_error(merged, FisherMerger(fisher=without, weights=[1, 3]).fit(X[[0, 2]]).merged_) < 1e-7


def test_factors_of_a_merge_are_new():
    X, fisher = tasks()
    merged = FisherMerger(fisher=fisher).fit(X[:1]).merged_
    assert relative_error(merged, X[0]) < 1e-12
    assert isinstance(merged, Adapter)
    assert all(isinstance(f, LoraFactors) for f in merged.values())
