"""Barriers of losses whose shape along the line is known, and interpolation against dense sums."""

import numpy as np
import pytest
import torch
from dense_updates import dense
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Adapter, AdapterSet, LoraFactors, applied
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.metrics import ModeConnectivity, compare_adapters, interpolate, mode_connectivity
from lorakit.testing import adapter_sets, make_adapters

SPACES = ("updates", "factors")


@given(adapter_sets(min_adapters=2, max_adapters=2, equal_ranks=True), st.floats(-2, 2))
def test_interpolation_against_dense(X, alpha):
    x, y = X
    exact, direct = (interpolate(x, y, alpha, space=space) for space in SPACES)
    for module in X.module_names:
        expected = alpha * dense(x, module, X) + (1 - alpha) * dense(y, module, X)
        assert torch.allclose(exact[module].delta(), expected, atol=1e-10)
        if module in x and module in y:
            a, b = (alpha * p + (1 - alpha) * q for p, q in zip(x[module], y[module], strict=True))
            assert torch.allclose(direct[module].delta(), b @ a, atol=1e-10)


@given(adapter_sets(min_adapters=2, max_adapters=2))
def test_updates_of_unequal_ranks(X):
    for module, factors in interpolate(*X, 0.25).items():
        expected = 0.25 * dense(X[0], module, X) + 0.75 * dense(X[1], module, X)
        assert torch.allclose(factors.delta(), expected, atol=1e-10)


@pytest.mark.parametrize("space", SPACES)
def test_the_barrier_of_identical_adapters_is_zero(space):
    (x,) = make_adapters(1, ranks=4, dtype=torch.float64, random_state=0)
    (target,) = make_adapters(1, ranks=4, dtype=torch.float64, random_state=1)

    def loss(adapter):
        found = compare_adapters(adapter, target)
        return found.relative_error + np.sin(found.cosine)

    line = mode_connectivity(x, x.renamed("copy"), loss, space=space)
    assert line.barrier == pytest.approx(0, abs=1e-12)
    assert line.depth == pytest.approx(0, abs=1e-12)
    assert line.losses == pytest.approx(np.full(11, loss(x)))


def test_a_convex_loss_of_the_updates_has_no_barrier_and_the_direct_merge_may_have_one():
    """Two adapters whose factors meet crosswise: the mean of the updates fits both, that of the factors neither."""
    eye = torch.eye(4, dtype=torch.float64)
    x = Adapter({"m": LoraFactors(eye[:2], eye[:, :2])}, name="x")
    y = Adapter({"m": LoraFactors(-eye[:2], -eye[:, :2])}, name="y")  # the same update

    def loss(adapter):
        return float((adapter["m"].delta() - x["m"].delta()).square().sum())

    updates, factors = (mode_connectivity(x, y, loss, space=space, alphas=5) for space in SPACES)
    assert updates.barrier == pytest.approx(0, abs=1e-15)
    # (2 alpha - 1)^2 W at alpha: nothing is left of it halfway
    assert factors.losses == pytest.approx([0, 2 * 0.75**2, 2, 2 * 0.75**2, 0])
    assert factors.barrier == pytest.approx(2)
    assert factors.depth == 0


def test_eq_1_by_hand():
    line = ModeConnectivity(np.array([0, 0.5, 0.75, 1]), np.array([2, 5, 1, 4.0]), ("x", "y"), "updates")
    assert line.chord.tolist() == [2, 3, 3.5, 4]
    assert line.barrier == 2
    assert line.depth == 2.5
    assert ModeConnectivity(np.array([0, 1.0]), np.array([2, 5.0]), ("x", "y"), "updates").barrier == 0


def test_ends_are_the_adapters_themselves():
    x, y = make_adapters(2, ranks=4, random_state=0)
    seen = []

    def loss(adapter):
        seen.append(adapter)
        return len(seen)

    line = mode_connectivity(x, y, loss, alphas=[0.75, 0.5])
    assert line.alphas.tolist() == [0, 0.5, 0.75, 1]
    assert line.losses.tolist() == [1, 2, 3, 4]
    assert (seen[0], seen[-1]) == (y, x)
    assert line.names == ("task0", "task1")
    assert seen[1].provenance.operations == ("interpolate(alpha=0.5, space='updates')",)
    assert [source.name for source in seen[1].provenance.sources] == ["task0", "task1"]


def test_on_a_model():
    adapters = AdapterSet(make_adapters(2, ranks=4, d_out=3, n_modules=1, random_state=0))
    model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 3))})
    inputs = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    labels = [(inputs @ adapter["layer.0"].delta().T).argmax(1) for adapter in adapters]

    def loss(adapter):
        with applied(model, adapter), torch.no_grad():
            logits = model["layer"](inputs)
        return np.mean([torch.nn.functional.cross_entropy(logits, y).item() for y in labels])

    line = mode_connectivity(*adapters, loss, alphas=5)
    middle = interpolate(*adapters, 0.5)
    assert line.losses[2] == pytest.approx(loss(middle))
    assert line.barrier == 0  # cross-entropy is convex in the logits, and they are linear in the update
    assert line.depth > 0


def test_dtype_and_layouts_are_kept():
    x, y = make_adapters(2, ranks=2, dtype=torch.bfloat16, random_state=0)
    assert interpolate(x, y, 0.3)["layer.0"].dtype == torch.bfloat16
    conv = adapter_of_conv()
    assert interpolate(conv, conv.renamed("b"), 0.5).infos["m"].kind == conv.infos["m"].kind


def adapter_of_conv():
    from lorakit.adapters import ModuleKind

    factors = LoraFactors(torch.ones(2, 9), torch.ones(3, 2))
    return Adapter({"m": factors}, kinds={"m": ModuleKind("conv", (3, 3))}, name="a")


def test_what_is_refused():
    x, y = make_adapters(ranks=(2, 4), random_state=0)
    with pytest.raises(IncompatibleAdaptersError, match="ranks"):
        mode_connectivity(x, y, lambda adapter: 0.0, space="factors")
    with pytest.raises(ValueError, match="'weights'"):
        interpolate(x, y, 0.5, space="weights")
    with pytest.raises(ValueError, match="inf"):
        interpolate(x, y, float("inf"))
    with pytest.raises(ValueError, match="between 0 and 1"):
        mode_connectivity(x, y, lambda adapter: 0.0, alphas=[0.5, 1.5])
    with pytest.raises(ValueError, match="at least 2"):
        mode_connectivity(x, y, lambda adapter: 0.0, alphas=1)
    with pytest.raises(ValueError, match=r"the loss is nan at alpha=0\.5, between 'task1'"):
        mode_connectivity(
            x, y, lambda adapter: float("nan") if len(adapter.ranks) and adapter.ranks[0] == 6 else 0.0, alphas=3
        )
