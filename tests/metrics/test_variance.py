"""Variances of outputs against outputs, and against dense matrices."""

import numpy as np
import pytest
import torch
from dense_updates import dense
from hypothesis import given
from hypothesis import strategies as st

from lorakit import LegoMerger, SVDMerger, collect_grams, rank_path
from lorakit.activations import Gram
from lorakit.metrics import output_variance, output_variance_path
from lorakit.testing import adapter_sets, make_adapters


@given(adapter_sets(max_adapters=1, content=("random", "zero", "rank_deficient", "huge")), st.integers(0, 99))
def test_against_dense(X, seed):
    rng = np.random.RandomState(seed)
    grams, thin = {}, {}
    for module, info in X[0].infos.items():
        factor, diagonal = rng.standard_normal((3, info.d_in)), rng.uniform(size=info.d_in)
        thin[module] = Gram(10, diagonal=diagonal, factor=factor)
        grams[module] = thin[module].matrix()
    white, seen, by_factor = (output_variance(X[0], grams=g) for g in (None, grams, thin))
    for module in X.module_names:
        w = dense(X[0], module, X).numpy()
        assert white[module] == pytest.approx(np.trace(w @ w.T) / len(w))
        assert seen[module] == pytest.approx(np.trace(w @ grams[module] @ w.T) / len(w), rel=1e-6)
        assert by_factor[module] == pytest.approx(seen[module], rel=1e-6)


def test_it_is_the_variance_of_outputs():
    (adapter,) = make_adapters(1, ranks=4, n_modules=1, random_state=0)
    inputs = torch.randn(4000, 24, generator=torch.Generator().manual_seed(0))
    outputs = inputs @ adapter["layer.0"].delta().T
    assert output_variance(adapter)["layer.0"] == pytest.approx(outputs.var().item(), rel=0.05)
    model = torch.nn.ModuleDict({"layer": torch.nn.Sequential(torch.nn.Linear(24, 16))})
    grams = collect_grams(model, adapter, [inputs], forward=lambda model, x: model["layer"](x))
    exact = outputs.square().mean().item()
    assert output_variance(adapter, grams=grams)["layer.0"] == pytest.approx(exact, rel=1e-5)


def test_theorem_3_1():
    """Output reweighting keeps the variance that grows with the rank without it."""
    adapters = make_adapters(7, ranks=8, d_in=96, d_out=96, random_state=0)
    ks = [4, 8, 16, 32, 56]
    raw = rank_path(LegoMerger(output_scale=None, random_state=0), adapters, ks)
    kept = rank_path(LegoMerger(random_state=0), adapters, ks)
    growing = output_variance_path(raw, adapters)
    flat = output_variance_path(kept, adapters)
    assert growing.ks.tolist() == ks
    assert (np.diff(growing.merged, axis=0) > 0).all()
    assert growing.ratio[-1] == pytest.approx([7, 7], rel=0.1)  # of the sum of seven independent updates
    assert flat.ratio[2:] == pytest.approx(np.ones((3, 2)), abs=0.4)
    assert flat.merged == pytest.approx(growing.merged * 8 / np.array(ks)[:, None])


def test_the_path_takes_adapters_and_any_order():
    adapters = make_adapters(2, ranks=4, random_state=0)
    path = rank_path(SVDMerger(), adapters, [8, 2])
    found = output_variance_path({k: merger.merged_ for k, merger in path.items()}, adapters, n_jobs=2)
    assert found.ks.tolist() == [2, 8]
    assert found.merged[1] == pytest.approx(list(output_variance(path[8].merged_).values()))
    assert found.adapters[1] == pytest.approx(list(output_variance(adapters[1]).values()))
    assert found.ratio == pytest.approx(found.merged / found.adapters.mean(axis=0))


def test_what_is_refused():
    adapters = make_adapters(2, ranks=4, random_state=0)
    with pytest.raises(ValueError, match=r"grams lack module 'layer\.1' of 'task0'"):
        output_variance(adapters[0], grams={"layer.0": np.eye(24)})
    with pytest.raises(ValueError, match=r"width 3 at module 'layer\.0', expected 24"):
        output_variance(adapters[0], grams={"layer.0": np.eye(3), "layer.1": np.eye(24)})
    with pytest.raises(ValueError, match="at least one merge"):
        output_variance_path({}, adapters)
    with pytest.raises(TypeError, match="a LegoMerger at 4"):
        output_variance_path({4: LegoMerger()}, adapters)
    with pytest.raises(ValueError, match=r"differ in 1 modules, first 'layer\.1'"):
        output_variance_path({4: adapters[0].select(["layer.0"])}, adapters)
