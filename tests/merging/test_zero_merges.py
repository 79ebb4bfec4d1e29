"""A merge that comes out as zero is never silent."""

import warnings

import numpy as np
import pytest
import torch

from lorakit import Adapter, ConcatMerger, LegoMerger, LoraFactors, SVDMerger, TaskArithmeticMerger, rank_path
from lorakit.exceptions import ZeroMergeWarning
from lorakit.testing import make_adapters


def pair(*scales, dtype=torch.float64, **options):
    (x,) = make_adapters(1, dtype=dtype, random_state=0, **options)
    return [Adapter({m: f.scaled(s) for m, f in x.items()}, name=str(i)) for i, s in enumerate(scales)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"k": 2}, {"scale": "match"}, {"scale": "match", "scale_scope": "model"}])
@pytest.mark.parametrize("merger", [ConcatMerger(), SVDMerger(), TaskArithmeticMerger()], ids=str)
def test_updates_that_cancel(merger, options, dtype):
    """Nothing is left but round-off, which 'match' does not blow up to the size of an adapter."""
    X = pair(1, 1, dtype=dtype)
    with pytest.warns(ZeroMergeWarning, match=rf"{type(merger).__name__}\(k=.* in 2 of 2 modules"):
        merged = merger.set_params(weights=[1, -1], **options).fit(X).merged_
    for module, factors in merged.items():
        assert factors.delta().norm() < 1e-5 * X[0][module].delta().norm()


def test_what_nearly_cancels_is_no_zero():
    X = pair(1, 1.001, dtype=torch.float32)
    merged = SVDMerger(weights=[1, -1], scale="match").fit(X).merged_
    for module, factors in merged.items():
        np.testing.assert_allclose(factors.delta().norm(), X[0][module].delta().norm(), rtol=1e-2)


def opposed():
    """Two units that stand for opposite updates, in one cluster: [a, b] and [-a, -b] of the same adapter's sign."""
    a, b = torch.ones(1, 4, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    return [Adapter({"m": LoraFactors(s * a, s * b)}, name=str(s)) for s in (1, -1)]


@pytest.mark.parametrize("scale", [1.0, "match"])
def test_a_cut_that_leaves_nothing(scale):
    """At k=1 the mean of a unit and its negative is zero; at k=2 both are kept."""
    with pytest.warns(ZeroMergeWarning, match=r"LegoMerger\(k=1\).*'m'.*larger density or k") as caught:
        path = rank_path(LegoMerger(random_state=0, scale=scale), opposed(), [1, 2])
    assert len(caught) == 1
    assert not path[1].merged_["m"].delta().any()
    assert path[2].merged_["m"].delta().any()


def test_one_module_of_many():
    x, y = pair(1, 2, n_modules=3)
    same = Adapter({**y, "layer.1": x["layer.1"]}, name="same")
    with pytest.warns(ZeroMergeWarning, match=r"in 1 of 3 modules \('layer.1'\)"):
        TaskArithmeticMerger(weights=[1, -1]).fit([x, same])


def test_untrained_adapters():
    X = pair(0, 0)
    with pytest.warns(ZeroMergeWarning, match="every update of every adapter"):
        SVDMerger().fit(X)


def test_what_was_asked_for_is_no_surprise():
    """A scale of zero, an untrained module among others, and a module that only an adapter of weight zero has."""
    x, y = pair(1, 2)
    half = Adapter({m: f.scaled(m == "layer.0") for m, f in x.items()}, name="half")
    more = Adapter({**y, "more": y["layer.0"]}, name="more")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SVDMerger(scale=0.0).fit([x, y])
        SVDMerger().fit([half, half.renamed("again")])
        SVDMerger(weights=[1, 0]).fit([x, more])


def test_what_the_output_cannot_hold_is_lost():
    X = pair(1e-3, 1e-3, dtype=torch.float16)
    with pytest.warns(ZeroMergeWarning, match="is zero in 2 of 2"):
        SVDMerger(scale=1e-14).fit(X)


@pytest.mark.parametrize("small", ["all", "layer.1"])
def test_what_the_output_cannot_hold_under_one_factor_for_the_model_is_lost(small):
    X = pair(1e-2, 1e-2, dtype=torch.float16)
    if small != "all":
        X = [Adapter({m: f.scaled(1e-6 if m == small else 1) for m, f in x.items()}, name=x.name) for x in X]
    target = 1e-20 if small == "all" else 1e-10
    merger = SVDMerger(scale="match", scale_scope="model", scale_target=target)
    with pytest.warns(ZeroMergeWarning, match="is zero in 2 of 2" if small == "all" else r"in 1 of 2 .*'layer\.1'"):
        merger.fit(X)
