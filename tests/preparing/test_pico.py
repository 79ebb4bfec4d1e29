"""PicoDamper against the dense formula of the paper."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline

from lorakit import Adapter, AdapterSet, ConcatMerger, LoraFactors, PicoDamper
from lorakit.metrics import relative_error
from lorakit.testing import adapter_sets, make_adapters

MODULE = "layer.0"


def balanced_b(update):
    u, s, _ = torch.linalg.svd(update, full_matrices=False)
    return u * s.sqrt()


def by_the_paper(updates, bases, strength=1.0):
    """S = I + U diag(alpha - 1) U^T, formed whole, times every update."""
    u, sigma, _ = torch.linalg.svd(torch.cat(bases, dim=1), full_matrices=False)
    share = sigma**2 / (sigma**2).sum()
    alpha = 1 / (1 + strength * (len(updates) - 1) * share)
    operator = torch.eye(len(u), dtype=u.dtype) + u @ torch.diag(alpha - 1) @ u.T
    return [operator @ update for update in updates]


@given(
    X=adapter_sets(missing_modules=False),
    align=st.sampled_from(["svd", None]),
    strength=st.sampled_from([0, 0.3, 1, 5.0]),
    restore=st.booleans(),
)
def test_formula(X, align, strength, restore):
    deltas = [f.delta() for f in X.factors(MODULE)]
    bases = [balanced_b(d) for d in deltas] if align == "svd" else [f.B for f in X.factors(MODULE)]
    expected = by_the_paper(deltas, bases, strength)
    if restore:
        expected = [e * (d.norm() / e.norm()) for e, d in zip(expected, deltas, strict=True)]
    out = PicoDamper(strength=strength, align=align, restore_norm=restore).fit_transform(X)
    for before, after, wanted in zip(X, out, expected, strict=True):
        torch.testing.assert_close(after[MODULE].delta(), wanted, rtol=1e-9, atol=1e-9)
        assert torch.equal(after[MODULE].A, before[MODULE].A)


def test_equal_singular_values_leave_no_ambiguity():
    """Four adapters that write into orthogonal directions: all are damped alike, whatever basis an SVD would choose."""
    eye = torch.eye(8, dtype=torch.float64)
    X = [Adapter({"m": LoraFactors(eye[i : i + 1], eye[:, [i]])}, name=str(i)) for i in range(4)]
    for i, adapter in enumerate(PicoDamper(restore_norm=False).fit_transform(X)):
        torch.testing.assert_close(adapter["m"].delta()[i, i].item(), 1 / (1 + 3 / 4))


def test_a_direction_that_all_share_shrinks_to_one_over_t():
    rng = np.random.default_rng(0)
    b = rng.standard_normal((6, 1))
    X = [Adapter({"m": LoraFactors(rng.standard_normal((1, 9)), b)}, name=str(i)) for i in range(5)]
    for before, after in zip(X, PicoDamper(restore_norm=False).fit_transform(X), strict=True):
        torch.testing.assert_close(after["m"].delta(), before["m"].delta() / 5)


def test_what_only_one_adapter_writes_gains_on_what_all_write():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((12, 5)))[0]
    common, own = directions[:, :1], directions[:, 1:]
    X = [
        Adapter({"m": LoraFactors(rng.standard_normal((2, 20)), np.hstack([common, own[:, [i]]]))}, name=str(i))
        for i in range(4)
    ]

    def share_of_common(adapters):
        merged = ConcatMerger().fit(adapters).merged_["m"].delta()
        return float((torch.from_numpy(common).T @ merged).norm() / merged.norm())

    assert share_of_common(PicoDamper().fit_transform(X)) < 0.8 * share_of_common(X)


def refactored(X):
    """The same updates from other factors: every adapter's A is multiplied by an invertible G, its B by the inverse."""
    rng = np.random.default_rng(7)

    def mixed(f):
        g = torch.from_numpy(np.linalg.qr(rng.standard_normal((f.rank, f.rank)))[0] * rng.uniform(0.2, 4, f.rank))
        return LoraFactors(g @ f.A, f.B @ torch.linalg.inv(g))

    return AdapterSet(Adapter({m: mixed(f) for m, f in a.items()}, name=a.name) for a in X)


@given(X=adapter_sets(min_adapters=2))
def test_the_updates_alone_decide(X):
    damper = PicoDamper(strength=2.0)
    for x, y in zip(damper.transform(refactored(X)), damper.transform(X), strict=True):
        for module in y:
            torch.testing.assert_close(x[module].delta(), y[module].delta(), rtol=1e-9, atol=1e-9)


def test_the_files_own_b_does_depend_on_the_factors():
    X = AdapterSet(make_adapters(ranks=(3, 4), dtype=torch.float64, random_state=0))
    damper = PicoDamper(align=None)
    assert relative_error(damper.transform(refactored(X))[0], damper.transform(X)[0]) > 1e-3
    assert damper.invariances == {"permutation", "sign"}


def test_absent_and_zero_updates_are_not_counted():
    x, y, z = make_adapters(ranks=(3, 4, 2), n_modules=1, dtype=torch.float64, random_state=0)
    dead = Adapter({MODULE: LoraFactors(z[MODULE].A, 0 * z[MODULE].B)}, name="dead")
    expected = PicoDamper().fit_transform([x, y])
    out = PicoDamper().fit_transform([x, dead, y])
    assert float(out[1][MODULE].delta().norm()) == 0
    for i, j in ((0, 0), (1, 2)):
        assert torch.equal(expected[i][MODULE].B, out[j][MODULE].B)
    (alone,) = PicoDamper(strength=9.0).fit_transform([x])
    assert torch.equal(alone[MODULE].B, x[MODULE].B)


def test_the_order_of_adapters_does_not_matter():
    X = AdapterSet(make_adapters(ranks=(3, 4, 2), dtype=torch.float64, random_state=0))
    forth, back = PicoDamper().fit_transform(X), PicoDamper().fit_transform(X[[2, 0, 1]])
    for i, j in ((2, 0), (0, 1), (1, 2)):
        for module, factors in forth[i].items():
            torch.testing.assert_close(back[j][module].delta(), factors.delta(), rtol=1e-12, atol=1e-12)


def test_the_paper_in_a_pipeline():
    """Damp, average, then scale the merged update to the adapters' mean norm."""
    X = AdapterSet(make_adapters(ranks=(3, 4, 4), n_modules=1, dtype=torch.float64, random_state=0))
    deltas = [f.delta() for f in X.factors(MODULE)]
    damped = by_the_paper(deltas, [balanced_b(d) for d in deltas])
    damped = [e * (d.norm() / e.norm()) for e, d in zip(damped, deltas, strict=True)]
    mean = sum(damped) / 3
    expected = mean * (sum(d.norm() for d in deltas) / 3 / mean.norm())
    (merged,) = make_pipeline(PicoDamper(), ConcatMerger(scale="match")).fit_transform(X)
    torch.testing.assert_close(merged[MODULE].delta(), expected)


@pytest.mark.parametrize("bad", [{"strength": -0.1}, {"align": "balance"}, {"restore_norm": "yes"}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match="parameter of PicoDamper"):
        PicoDamper(**bad).fit(make_adapters(2, random_state=0))
