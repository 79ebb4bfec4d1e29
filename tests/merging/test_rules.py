"""The element-wise rules against dense float64 algebra, in every space; what only one of them promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from published import entrywise
from published.cases import ENTRYWISE, EVERY_SPACE, expected_entrywise
from published.spaces import draws_of
from safetensors.torch import load_file
from sklearn.base import clone

from lorakit import (
    Adapter,
    AdapterSet,
    BreadcrumbsMerger,
    DareMerger,
    DellaMerger,
    LoraFactors,
    MagnitudeMerger,
    SCEMerger,
    SVDMerger,
    TaskArithmeticMerger,
    TiesMerger,
)
from lorakit.testing import make_adapters

pytestmark = pytest.mark.usefixtures("one_blas_thread")

CASES = sorted((Path(__file__).parents[1] / "data").glob("*.safetensors"))

RULES = ENTRYWISE
SPACES = ["delta", "factors", "core", "knots"]
WEIGHTS = np.array([1.0, 2.0, 4.0])  # which no split makes equal: a vote by number is never undecided


def adapters(space, **options):
    ranks = (4, 4, 4) if space == "factors" else (3, 5, 4)
    defaults = {"ranks": ranks, "d_in": 21, "d_out": 17, "n_modules": 1, "dtype": torch.float64, "random_state": 0}
    return make_adapters(**defaults | options)


def full_rank(merger, X):
    """The largest k that the merger takes: nothing is cut off."""
    return merger._rank_limit([adapter.infos["layer.0"] for adapter in X])


def distance(x, y):
    """Largest relative difference of two adapters' updates, from dense ones: precise to the last digits."""
    return max(float((x[m].delta() - y[m].delta()).norm() / y[m].delta().norm()) for m in y)


def seeded(merger, seed=0, **params):
    random = {"random_state": seed} if "random_state" in merger.get_params() else {}
    return clone(merger).set_params(**random, **params)


def merged(merger, X, **params):
    return seeded(merger, **params).set_params(k=full_rank(seeded(merger, **params), X)).fit(X).merged_


@pytest.mark.parametrize("space", EVERY_SPACE)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_against_dense_algebra(case, space):
    if case.rule is entrywise.task_arithmetic and space not in ("delta", "factors"):
        return  # a sum, which is the same in every space
    X = AdapterSet(adapters(space))
    result = merged(case.merger, X, space=space, weights=WEIGHTS)["layer.0"].delta()
    expected = expected_entrywise(case, X, "layer.0", space, WEIGHTS)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    mean = sum(w * f.delta() for w, f in zip(WEIGHTS / 7, X.factors("layer.0"), strict=True))
    assert (result - mean).norm() > 0.1 * mean.norm()  # the rule did something


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["ties", "dare", "della", "magnitude", "breadcrumbs", "task arithmetic"])
def test_the_result_is_cut_by_svd(name, space):
    merger, X = RULES[name][0], adapters(space)
    whole = merged(merger, X, space=space)["layer.0"].delta()
    cut = seeded(merger, k=3, space=space).fit(X).merged_["layer.0"]
    assert cut.rank == 3
    torch.testing.assert_close((cut.delta() - whole).norm(), torch.linalg.svdvals(whole)[3:].norm())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", RULES)
def test_adapter_order_changes_nothing(name, space):
    """Also between updates of one norm, and copies of one update under different weights."""
    (x, y, z) = adapters(space)
    x, y = x["layer.0"], y["layer.0"]
    negated = LoraFactors(x.A, -x.B)
    flipped = LoraFactors(x.A.flip(1), x.B)
    pool = {"x": x, "negated": negated, "flipped": flipped, "y": y, "z": z["layer.0"], "again": LoraFactors(-x.A, -x.B)}
    weights = {"x": 1, "negated": 2, "flipped": 1, "y": 2, "z": 2, "again": 3}
    if space == "factors":  # else y and z differ in rank
        pool = {key: pool[key] for key in ("x", "flipped", "y", "z")}
    results = []
    for seed in range(3):
        order = np.random.RandomState(seed).permutation(list(pool))
        X = AdapterSet(Adapter({"layer.0": pool[key]}, name=key) for key in order)
        results.append(merged(RULES[name][0], X, space=space, weights=weights))
    for other in results[1:]:
        assert distance(other, results[0]) < 1e-9


@pytest.mark.parametrize("name", ["dare", "dare elected", "della"])
def test_seeds_and_modules_draw_differently(name):
    X = adapters("delta", n_modules=2)
    same = [Adapter({"layer.0": a["layer.0"], "layer.1": a["layer.0"]}, name=a.name) for a in X]
    first = merged(RULES[name][0], same, seed=0)
    assert distance(merged(RULES[name][0], same, seed=1), first) > 0.1
    assert (first["layer.0"].delta() - first["layer.1"].delta()).norm() > 0.1 * first["layer.0"].delta().norm()


def test_adapters_draw_differently():
    X = AdapterSet(adapters("delta"))
    draws = draws_of(DareMerger(random_state=0), X, "layer.0", "delta")
    assert all((draws[i] != draws[j]).any() for i in range(3) for j in range(i))


@pytest.mark.parametrize("space", ["delta", "core", "knots"])
def test_dare_is_unbiased(space):
    """Over seeds, the mean of the merges is the mean of the updates, within standard error."""
    X, n = adapters(space, d_in=8, d_out=9, ranks=(2, 3)), 200
    k = full_rank(DareMerger(space=space), X)
    draws = torch.stack(
        [DareMerger(k=k, space=space, random_state=s).fit(X).merged_["layer.0"].delta() for s in range(n)]
    )
    error = draws.std(dim=0) / n**0.5
    mean = sum(a["layer.0"].delta() for a in X) / 2
    z = (draws.mean(dim=0) - mean) / error
    assert z.abs().max() < 5
    assert 0.5 < z.std() < 1.6  # not only because the error is large


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.interop
def test_magnitude_as_in_peft(path):
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    tensors = load_file(path)
    t = sum(key.endswith(".A") for key in tensors)
    X = [Adapter({"layer.0": LoraFactors(tensors[f"in.{i}.A"], tensors[f"in.{i}.B"])}, name=str(i)) for i in range(t)]
    dense = [a["layer.0"].delta() for a in X]
    for density in (0.5, 0.13):
        expected = merge_utils.magnitude_prune(dense, torch.full((t,), 1 / t, dtype=torch.float64), density)
        result = merged(MagnitudeMerger(density=density), X)["layer.0"].delta()
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_task_arithmetic_counts_every_adapter_once(space):
    X = adapters(space)

    def fitted(adapters, **params):
        return TaskArithmeticMerger(k=4, space=space, **params).fit(adapters).merged_

    power = 2 if space == "factors" else 1
    one = fitted(X[2:], coefficient=0.5)["layer.0"].delta()
    torch.testing.assert_close(one, 0.5**power * X[2]["layer.0"].delta())
    assert distance(fitted(X, weights=[7, 7, 7]), fitted(X)) < 1e-12
    assert distance(fitted(X, weights=[7, 0, 7]), fitted([X[0], X[2]])) < 1e-12
    twice = Adapter({"layer.0": fitted(X, coefficient=0.3)["layer.0"].scaled(2**power)})
    assert distance(fitted(X, coefficient=0.6), twice) < 1e-12
    heavier = fitted(X, weights=[1, 2, 3], coefficient=1.0)["layer.0"].delta()
    factors = [a["layer.0"] for a in X]
    counts = [0.5, 1.0, 1.5]

    def total(tensors):
        return sum(c * x for c, x in zip(counts, tensors, strict=True))

    if space == "factors":
        expected = total(f.B for f in factors) @ total(f.A for f in factors)
    else:
        u, s, vh = torch.linalg.svd(total(f.delta() for f in factors))
        expected = u[:, :4] @ torch.diag(s[:4]) @ vh[:4]
    torch.testing.assert_close(heavier, expected)


def test_task_arithmetic_is_the_svd_merge_times_p_and_the_number():
    X = adapters("delta")
    expected = SVDMerger(k=5, scale=0.4 * 3).fit(X).merged_
    assert distance(TaskArithmeticMerger(k=5).fit(X).merged_, expected) < 1e-12


def test_task_arithmetic_subtracts():
    X = adapters("delta")
    result = merged(TaskArithmeticMerger(coefficient=1.0), X, weights=[1, -1, 1])["layer.0"].delta()
    w = [a["layer.0"].delta() for a in X]
    torch.testing.assert_close(result, w[0] - w[1] + w[2])
    with pytest.raises(ValueError, match="no negative weights"):
        TaskArithmeticMerger(space="factors", weights=[1, -1, 1]).fit(adapters("factors"))


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.1, 0.3), (0.95, 0.06), (1.0, 0.01)])
def test_della_refuses_probabilities_that_are_none(density, epsilon):
    with pytest.raises(ValueError, match=r"probabilities .* choose an epsilon below"):
        DellaMerger(density=density, epsilon=epsilon).fit(adapters("delta"))


def test_probabilities_and_shares_may_reach_one():
    X = adapters("delta")
    mean = SVDMerger(k=12).fit(X).merged_
    assert distance(merged(DareMerger(density=1.0), X), mean) < 1e-12
    assert distance(merged(MagnitudeMerger(density=1.0), X), mean) < 1e-12
    assert distance(merged(BreadcrumbsMerger(density=1.0, gamma=0), X), mean) < 1e-12
    ties = merged(TiesMerger(density=1.0), X)
    assert distance(merged(DellaMerger(density=1.0, epsilon=0), X), ties) < 1e-12
    for density in (0.9, 0.7, 0.55):  # sums that are one but for round-off
        DellaMerger(density=density, epsilon=1 - density).fit(X)
        BreadcrumbsMerger(density=density, gamma=1 - density).fit(X)


def test_breadcrumbs_refuses_shares_above_all():
    with pytest.raises(ValueError, match=r"choose a gamma of at most 0.1"):
        BreadcrumbsMerger(density=0.9, gamma=0.2).fit(adapters("delta"))


def test_breadcrumbs_without_outliers_is_magnitude():
    X = adapters("delta")
    expected = merged(MagnitudeMerger(density=0.3), X)
    assert distance(merged(BreadcrumbsMerger(density=0.3, gamma=0), X), expected) < 1e-12
    assert distance(merged(BreadcrumbsMerger(density=0.3, gamma=0.02), X), expected) > 0.05


def test_sce_of_one_adapter_or_of_copies_is_that_adapter():
    """No entry varies, so there is nothing to select by."""
    (x, *_) = adapters("delta")
    for X in ([x], [x, x.renamed("again"), x.renamed("and again")]):
        assert distance(merged(SCEMerger(), X), x) < 1e-12


def test_sce_weighs_small_updates_by_their_squares_too():
    """mergekit gives up below 1e-6, where updates of trained adapters often are."""
    X = adapters("delta")
    small = [Adapter({m: f.scaled(1e-6) for m, f in a.items()}, name=a.name) for a in X]
    expected = Adapter({m: f.scaled(1e-6) for m, f in merged(SCEMerger(), X).items()})
    assert distance(merged(SCEMerger(), small), expected) < 1e-9


def test_sce_keeps_the_sign_of_the_larger_update():
    (x, *_) = adapters("delta")
    minor = Adapter({m: f.scaled(-0.1) for m, f in x.items()}, name="minor")
    merge = merged(SCEMerger(density=1.0), [x, minor])
    assert distance(merge, x) < 1e-12  # what the smaller one has is erased


def test_rescaled_rules_give_back_the_norm():
    (x, *_) = adapters("delta")
    for merger in (TiesMerger(), MagnitudeMerger(), BreadcrumbsMerger(), DareMerger(), DellaMerger()):
        for norm in ("l1", "l2"):
            result = merged(clone(merger).set_params(rescale=norm), [x])["layer.0"].delta()
            size = {"l1": lambda w: w.abs().sum(), "l2": torch.linalg.norm}[norm]
            torch.testing.assert_close(size(result), size(x["layer.0"].delta()))


def test_breadcrumbs_has_the_defaults_of_its_authors():
    assert {name: BreadcrumbsMerger().get_params()[name] for name in ("density", "gamma")} == {
        "density": 0.15,
        "gamma": 0.006,
    }
