"""Numbers that nobody means: through Python and through the command line they are refused by name, or do no harm."""

from __future__ import annotations

import pytest
import torch

from lorakit import Adapter, LoraFactors, RankBudget, SVDMerger, SVDPruner, TiesMerger, WUDIMerger, bake, save_adapter
from lorakit.exceptions import OutputError, ParameterError
from lorakit.testing import make_adapters

X = make_adapters(2, random_state=0)
DIGITS = "9" * 400


@pytest.mark.parametrize(
    ("estimator", "named"),
    [
        (SVDMerger(k=True), "'k'"),
        (SVDPruner(k=True), "'k'"),
        (TiesMerger(density=True), "'density'"),
        (SVDMerger(k=int(DIGITS)), "k is a whole number"),
        (SVDMerger(scale=int(DIGITS)), "scale is a whole number"),
        (SVDMerger(weights=[int(DIGITS), 1]), "weights must hold one number"),
        (SVDMerger(weights=["law", 1]), "weights must hold one number"),
        (SVDMerger(strengths=[int(DIGITS), 1]), "strengths must hold one number"),
        (SVDMerger(strengths=[1e-300, 1]), "times 1e-300 is zero in float32; choose a larger factor, or 0"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:20],
)
def test_in_python(estimator, named):
    with pytest.raises(ValueError, match=named):
        estimator.fit(X)


def test_sizes_and_strengths():
    with pytest.raises(ValueError, match="a size of 1 byte or more, and below 1e18"):
        RankBudget(size=DIGITS)
    base = {"layer.0.weight": torch.ones(16, 24)}
    with pytest.raises(ValueError, match="one finite number for each of 1 adapters"):
        bake(base, X[0].select(["layer.0"]), strengths=[int(DIGITS)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("-k", "true"), "'true' is no rank"),
        (("-k", "none"), "'none' is no rank"),
        (("-k", "16.0"), "'16.0' is no rank"),
        (("-k", DIGITS), "...9999999999' is no rank"),
        (("--scale", "true"), "'true' is neither a finite number nor match"),
        (("--scale", "none"), "'none' is neither"),
        (("--scale", "1e400"), "'1e400' is neither"),
        (("--scale", DIGITS), "9' is neither"),
        (("-m", "ties", "-p", "density=True"), "'density' parameter must be a number"),
        (("-m", "ties", "-p", "density=2"), "parameter of --method ties must be a float in the range"),
        (("-j", "0"), "0 is neither a number from 1 to"),
        (("-j", "999999"), "999999 is neither a number from 1 to"),
    ],
)
def test_on_the_command_line(lorakit_, tasks, out, options, named):
    assert named in lorakit_("merge", *tasks, "-o", out, *options, code=2).stderr
    assert not out.exists()


def test_one_huge_and_one_tiny_adapter():
    """Squares of singular values of 1e30 are above any float32."""
    huge = Adapter({m: LoraFactors(f.A * 1e14, f.B * 1e14) for m, f in X[0].items()}, name="huge")
    tiny = Adapter({m: LoraFactors(f.A * 1e-17, f.B * 1e-17) for m, f in X[1].items()}, name="tiny")
    merged = WUDIMerger(k=4).fit([huge, tiny]).merged_
    exact = WUDIMerger(k=4).fit([huge.astype(torch.float64), tiny.astype(torch.float64)]).merged_
    for module, factors in merged.items():
        found, wanted = (f.B.double() @ f.A.double() / 1e28 for f in (factors, exact[module]))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        assert wanted.norm() > 1


def test_a_decomposition_that_fails_is_no_bug(lorakit_, tasks, out, monkeypatch):
    """LAPACK's error becomes one that names the module and the adapters."""
    from lorakit.linalg import spectral

    def fail(*_, **__):
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge.\nmore")

    monkeypatch.setattr(spectral, "svd_of_sum", fail)
    with pytest.raises(
        OutputError, match=r"module 'layer\.0': a decomposition .* \(linalg\.svd: The algorithm failed to"
    ):
        WUDIMerger(k=4, n_jobs=1).fit(X)
    paths = [save_adapter(adapter, out.parent / f"in-{adapter.name}") for adapter in X]
    assert "a decomposition of the updates fails" in lorakit_("merge", *paths, "-o", out, "-m", "wudi", code=2).stderr
    assert isinstance(ParameterError(), ValueError)
