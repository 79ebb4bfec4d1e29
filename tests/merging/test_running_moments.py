"""RegMean of adapters that come some at a time is RegMean of all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit import (
    Adapter,
    AdapterSet,
    LoraFactors,
    RegMeanMerger,
    RegMeanPlusMerger,
    load_adapter,
    save_adapter,
)
from lorakit.activations import Gram, Grams
from lorakit.adapters import ModuleKind
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.metrics import relative_error
from lorakit.testing import make_adapters


def gram_of(rng, d_in, form):
    inputs = rng.standard_normal((5, d_in))
    if form == "dense":
        return Gram(5, inputs.T @ inputs / 5)
    factor = inputs / 5**0.5
    if form == "thin":
        return Gram(5, diagonal=np.full(d_in, 0.1), factor=factor)
    return Gram(5, diagonal=(factor * factor).sum(axis=0), factor=np.zeros((0, d_in)))


def grams_for(X, seed, forms=("dense",)):
    rng = np.random.RandomState(seed)
    rng = np.random.default_rng(rng.randint(2**31))
    return {
        adapter.name: Grams({m: gram_of(rng, info.d_in, forms[i % len(forms)]) for m, info in adapter.infos.items()})
        for i, adapter in enumerate(X)
    }


def in_parts(merger, X, grams, parts, weights=None):
    for part in np.array_split(np.arange(len(X)), parts):
        some = AdapterSet(X[i] for i in part)
        own = None if weights is None else np.asarray(weights)[part]
        merger = merger.partial_fit(some, grams={name: grams[name] for name in some.names}, weights=own)
    return merger


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    parts=st.integers(1, 6),
    forms=st.sampled_from([("dense",), ("thin",), ("diagonal",), ("dense", "thin", "diagonal")]),
    ridge=st.sampled_from([1e-3, 0.1]),
    offdiagonal=st.sampled_from([0.0, 0.5, 1.0]),
    match=st.booleans(),
)
def test_parts_are_the_whole(seed, parts, forms, ridge, offdiagonal, match):
    """Ranks sum to more than d_out, so that the columns become the identity on the way."""
    X = make_adapters(6, ranks=(2, 3, 2, 1, 3, 2), d_in=10, d_out=8, random_state=seed)
    grams, weights = grams_for(X, seed, forms), np.random.RandomState(seed).uniform(0.1, 3, size=6)
    options = {"k": 5, "ridge": ridge, "offdiagonal": offdiagonal}
    options |= {"scale": "match", "scale_target": 0.7} if match else {"scale": -0.5}
    whole = RegMeanMerger(**options, grams=grams, weights=weights).fit(X)
    merger = in_parts(RegMeanMerger(**options), X, grams, parts, weights)
    assert relative_error(merger.merged_, whole.merged_) < 1e-5
    for module, values in whole.singular_values_.items():
        count = min(len(values), len(merger.singular_values_[module]))
        np.testing.assert_allclose(merger.singular_values_[module][:count], values[:count], atol=1e-6 * values[0])
        assert merger.truncation_error_[module] == pytest.approx(whole.truncation_error_[module], abs=1e-6 * values[0])


def test_it_is_the_solution_of_the_least_squares():
    """Against dense float64 algebra written afresh."""
    X = AdapterSet(make_adapters(3, ranks=2, d_in=9, d_out=7, n_modules=1, random_state=1))
    grams = grams_for(X, 1)
    merger = in_parts(RegMeanMerger(k=7, ridge=0.01, offdiagonal=0.8), X, grams, 3, [1.0, 2.0, 5.0])
    (module,) = X.module_names
    moments = [grams[name][module].dense for name in X.names]
    moments = [0.8 * g + 0.2 * np.diag(np.diag(g)) for g in moments]
    weights = np.array([1.0, 2.0, 5.0]) / 8
    load = 0.01 * sum(w * np.trace(g) for w, g in zip(weights, moments, strict=True)) / 9
    numerator = sum(
        w * x[module].delta().double().numpy() @ (g + load * np.eye(9))
        for w, x, g in zip(weights, X, moments, strict=True)
    )
    denominator = sum(w * g for w, g in zip(weights, moments, strict=True)) + load * np.eye(9)
    expected = numerator @ np.linalg.inv(denominator)
    np.testing.assert_allclose(merger.merged_[module].delta().numpy(), expected, atol=1e-5 * np.abs(expected).max())


def test_an_adapter_that_lacks_a_module_counts_as_in_fit():
    """With Grams it is an update of zero there, whether it comes before or after those that have the module."""
    X = make_adapters(4, ranks=2, d_in=10, d_out=8, n_modules=2, random_state=3)
    grams = grams_for(X, 3)
    first = X[0].select(["layer.0"])
    for order in ([first, X[1], X[2]], [X[1], first, X[2]], [X[2], X[1], first]):
        for scale in (1.0, "match"):
            options = {"k": 4, "ridge": 1e-3, "scale": scale}
            whole = RegMeanMerger(**options, grams=grams).fit(AdapterSet(order))
            merger = in_parts(RegMeanMerger(**options), AdapterSet(order), grams, 3)
            assert relative_error(merger.merged_, whole.merged_) < 1e-5
    without = grams | {"task0": Grams({"layer.0": grams["task0"]["layer.0"]})}
    whole = RegMeanMerger(k=4, grams=without).fit(AdapterSet([first, X[1]]))
    assert (
        relative_error(in_parts(RegMeanMerger(k=4), AdapterSet([first, X[1]]), without, 2).merged_, whole.merged_)
        < 1e-5
    )


def test_moments_of_zero_give_the_mean():
    X = AdapterSet(make_adapters(2, ranks=2, d_in=6, d_out=5, random_state=0))
    grams = {name: Grams({m: np.zeros((6, 6)) for m in X.module_names}) for name in X.names}
    merger = in_parts(RegMeanMerger(k=4), X, grams, 2, [1, 3])
    for module in X.module_names:
        expected = 0.25 * X[0][module].delta() + 0.75 * X[1][module].delta()
        torch.testing.assert_close(merger.merged_[module].delta(), expected, atol=1e-5, rtol=1e-5)


def test_memory_does_not_grow_with_the_number():
    X = make_adapters(12, ranks=3, d_in=10, d_out=8, n_modules=1, random_state=0)
    merger, grams = RegMeanMerger(k=4), grams_for(X, 0, ("thin",))
    sizes = []
    for i in range(12):
        merger.partial_fit(X[i : i + 1], grams=grams)
        sums = merger.running_moments_.modules["layer.0"].sums
        tensors = [
            sums.moved,
            sums.plain,
            sums.columns,
            *([sums.moment] if torch.is_tensor(sums.moment) else sums.moment),
        ]
        sizes.append(sum(t.numel() for t in tensors))
    assert max(sizes) <= 2 * 8 * 10 + 8 * 8 + 10 * 11
    assert sizes[-1] == sizes[-4]


def test_an_embedding_is_never_a_square_of_its_vocabulary():
    kind = {"embed": ModuleKind("embedding")}
    rng = np.random.default_rng(0)
    X = AdapterSet(
        Adapter(
            {"embed": LoraFactors(rng.standard_normal((2, 50)), rng.standard_normal((4, 2)))}, kinds=kind, name=name
        )
        for name in ("a", "b")
    )
    grams = {name: Grams({"embed": gram_of(rng, 50, "diagonal")}) for name in X.names}
    merger = in_parts(RegMeanMerger(k=2), X, grams, 2)
    diagonal, factor = merger.running_moments_.modules["embed"].sums.moment
    assert diagonal.shape == (50,)
    assert factor.shape == (0, 50)
    assert merger.merged_.infos["embed"].kind == ModuleKind("embedding")
    assert relative_error(merger.merged_, RegMeanMerger(k=2, grams=grams).fit(X).merged_) < 1e-5


def test_a_result_is_saved_and_read(tmp_path):
    X = make_adapters(2, ranks=2, random_state=0)
    merger = in_parts(RegMeanMerger(k=2), X, grams_for(X, 0), 2)
    again = load_adapter(save_adapter(merger.merged_, tmp_path / "out"))
    assert relative_error(again, merger.merged_) == 0
    assert "partial_fit" in merger.merged_.provenance.operations[-1]


def test_a_later_fit_forgets_and_jobs_change_nothing():
    X = make_adapters(4, ranks=2, n_modules=4, random_state=0)
    grams = grams_for(X, 0)
    one, two = (in_parts(RegMeanMerger(k=2, n_jobs=n), X, grams, 2).merged_ for n in (1, 2))
    assert relative_error(one, two) == 0
    merger = in_parts(RegMeanMerger(k=2, grams=grams), X, grams, 2).fit(X[:2])
    assert not hasattr(merger, "running_moments_")


def test_a_weight_of_zero_is_left_out():
    X = make_adapters(3, ranks=2, random_state=0)
    grams = grams_for(X, 0)
    merger = in_parts(RegMeanMerger(k=2), X, grams, 1, [1, 0, 2])
    left = RegMeanMerger(k=2, grams=grams, weights=[1, 0, 2]).fit(X)
    assert relative_error(merger.merged_, left.merged_) < 1e-5


def test_what_does_not_fit_is_refused_and_changes_nothing():
    X, other = make_adapters(2, ranks=2, random_state=0), make_adapters(1, ranks=2, d_in=30, random_state=0)
    grams = grams_for(X, 0)
    merger = RegMeanMerger(k=2).partial_fit(X, grams=grams)
    before = merger.merged_
    with pytest.raises(IncompatibleAdaptersError, match="30"):
        merger.partial_fit(other, grams=grams_for(other, 0))
    with pytest.raises(ValueError, match=r"no Grams for the adapters \['task1'\]"):
        merger.partial_fit(X, grams={"task0": grams["task0"]})
    with pytest.raises(ValueError, match="needs to know the inputs"):
        merger.partial_fit(X)
    lacking = AdapterSet([X[0].select(["layer.0"])])
    wrong = Grams({"layer.0": grams["task0"]["layer.0"], "layer.1": np.eye(7)})
    with pytest.raises(IncompatibleAdaptersError, match=r"d_in 7 at module 'layer\.1'"):
        merger.partial_fit(lacking, grams={"task0": wrong})
    assert merger.merged_ is before
    assert merger.n_adapters_in_ == 2


@pytest.mark.parametrize(
    ("merger", "message"),
    [
        (RegMeanMerger(), "needs a number for k"),
        (RegMeanMerger(k=2, weights=[1, 1]), "weights of the adapters of each call"),
        (RegMeanMerger(k=2, scale="match", scale_scope="model"), "needs fit"),
    ],
)
def test_what_has_no_running_sum_is_refused(merger, message):
    X = make_adapters(2, ranks=2, random_state=0)
    with pytest.raises(ValueError, match=message):
        merger.partial_fit(X, grams=grams_for(X, 0))


def test_regmean_plus_has_none():
    assert not hasattr(RegMeanPlusMerger(k=2), "partial_fit")
