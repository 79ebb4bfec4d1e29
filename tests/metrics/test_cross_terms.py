"""The cross terms, the moments of their entries and the noise drawn to them, against dense float64 matrices."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_interference import CONTENTS, dense_parts

from lorakit import Adapter, AdapterSet, LoraFactors
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.metrics import cross_term_moments, cross_term_noise, cross_terms, interference
from lorakit.testing import adapter_sets, adapter_weights, make_adapters


def example(**options):
    return AdapterSet(make_adapters(**{"n_adapters": 3, "ranks": 4, "random_state": 0} | options))


def shifted(X, shift):
    """The adapters with factors whose entries have a mean: the cross terms then have one too."""
    return AdapterSet(Adapter({m: LoraFactors(f.A + shift, f.B + shift) for m, f in a.items()}, name=a.name) for a in X)


@given(adapter_sets(min_adapters=1, equal_ranks=True, content=CONTENTS), st.data())
def test_against_dense(X, data):
    weights = np.array(data.draw(adapter_weights(len(X), signed=True)))
    terms, moments = cross_terms(X, weights=weights), cross_term_moments(X, weights=weights)
    assert tuple(terms) == tuple(moments) == X.module_names
    for module in X.module_names:
        *_, m = dense_parts(X, module, weights / np.abs(weights).sum())
        size = sum(a[module].A.double().norm() * a[module].B.double().norm() for a in X if module in a).item()
        single = 1e-6 if terms[module].dtype == torch.float32 else 1e-13
        assert torch.allclose(terms[module].delta().double(), m, rtol=0, atol=single * size)
        found, root = moments[module], m.numel() ** 0.5
        assert found.mean == pytest.approx(m.mean().item(), rel=1e-9, abs=1e-13 * size)
        assert found.std == pytest.approx(m.std(correction=0).item(), rel=1e-9, abs=1e-12 * size / root)


def test_a_small_spread_about_a_large_mean_keeps_its_digits():
    ones = LoraFactors(torch.ones(1, 30, dtype=torch.float64), torch.ones(20, 1, dtype=torch.float64))
    X = [Adapter({"m": LoraFactors(ones.A + 1e-9 * torch.randn(1, 30), ones.B)}, name=name) for name in "ab"]
    *_, m = dense_parts(X, "m", [0.5, 0.5])
    assert cross_term_moments(X)["m"].std == pytest.approx(m.std(correction=0).item(), rel=1e-5)


def test_papers_sum_without_weights():
    X = example(dtype=torch.float64)
    a, b = (sum(part) for part in zip(*(adapter["layer.0"] for adapter in X), strict=True))
    m = b @ a - sum(f.delta() for f in X.factors("layer.0"))  # equation 3
    torch.testing.assert_close(9 * cross_terms(X)["layer.0"].delta(), m)


@pytest.mark.parametrize("rank", [None, 2, 3, 40])
@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (1, 24), (16, 1)])
def test_noise_has_exactly_the_moments_of_the_cross_terms(rank, shape):
    X = shifted(example(d_out=shape[0], d_in=shape[1], dtype=torch.float64), 0.3)
    noise = cross_term_noise(X, rank=rank, random_state=1)
    for module, wanted in cross_term_moments(X).items():
        drawn = noise[module].delta()
        assert drawn.shape == shape
        assert drawn.mean().item() == pytest.approx(wanted.mean, rel=1e-9)
        assert drawn.std(correction=0).item() == pytest.approx(wanted.std, rel=1e-9)
        assert noise[module].rank == noise.infos[module].rank == (rank or min(shape))


def test_noise_of_one_entry_is_its_mean():
    X = example(d_in=1, d_out=1, dtype=torch.float64)
    for rank in (None, 2):
        noise = cross_term_noise(X, rank=rank, random_state=0)
        torch.testing.assert_close(noise["layer.0"].delta(), cross_terms(X)["layer.0"].delta())


def test_full_noise_is_normal_and_has_nothing_to_do_with_the_cross_terms():
    X = shifted(example(d_in=200, d_out=150), 0.2)
    noise, moments = cross_term_noise(X, random_state=0)["layer.0"].delta(), cross_term_moments(X)["layer.0"]
    z = (noise.double() - moments.mean) / moments.std
    assert (z.pow(3).mean().item(), z.pow(4).mean().item()) == pytest.approx((0, 3), abs=0.1)
    m = cross_terms(X)["layer.0"].delta().double() - moments.mean
    assert abs((z * m).mean().item()) < 5 * m.std() / z.numel() ** 0.5
    neighbours = (z[:, 1:] * z[:, :-1]).mean().item()
    assert abs(neighbours) < 5 / z.numel() ** 0.5


def test_noise_is_as_large_as_the_cross_terms():
    X = example()
    norms = [noise.delta().norm() ** 2 for noise in cross_term_noise(X, random_state=0).values()]
    assert sum(norms).sqrt().item() == pytest.approx(interference(X).cross, rel=1e-5)


def test_noise_is_a_function_of_the_seed_and_the_module():
    X = example()
    for rank in (None, 3):
        noise = cross_term_noise(X, rank=rank, random_state=0)
        again = pickle.loads(pickle.dumps(noise))
        alone = cross_term_noise(X.only("layer.1"), rank=rank, random_state=0, n_jobs=2)
        other = cross_term_noise(X, rank=rank, random_state=1)
        for same in (noise["layer.1"], again["layer.1"], alone["layer.1"]):
            assert all(torch.equal(x, y) for x, y in zip(same, noise["layer.1"], strict=True))
        assert not torch.equal(other["layer.1"].delta(), noise["layer.1"].delta())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    wanted = torch.promote_types(dtype, torch.float32)
    X = example(dtype=dtype)
    assert cross_terms(X).dtype == wanted
    for rank in (None, 4):
        noise = cross_term_noise(X, rank=rank, random_state=0)
        assert noise.dtype == noise["layer.0"].dtype == wanted


def test_a_missing_module_is_a_zero_update():
    X = example(n_adapters=2)
    lacking = X[1].select(["layer.0"])
    assert cross_terms([X[0], lacking])["layer.1"].delta().abs().max() < 1e-6
    assert cross_term_moments([X[0], lacking])["layer.1"].std < 1e-6


def test_wrong_arguments():
    with pytest.raises(ValueError, match="rank must be 2 or more"):
        cross_term_noise(example(), rank=1)
    for function in (cross_terms, cross_term_moments, cross_term_noise):
        with pytest.raises(IncompatibleAdaptersError, match=r"layer\.0.*'task0': 4, 'task1': 8"):
            function(make_adapters(ranks=(4, 8)))
        with pytest.raises(ValueError, match="one number for each of 3"):
            function(example(), weights=[1, 2])
