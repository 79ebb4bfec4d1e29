"""What the hypothesis strategies draw, and what they shrink to."""

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from lorakit import AdapterSet, ConcatMerger, SVDMerger
from lorakit.adapters import ModuleKind
from lorakit.base import GAUGES
from lorakit.metrics import relative_error
from lorakit.testing import Gauge, adapter_sets, adapter_weights, gauges, lora_factors, make_adapters
from lorakit.testing.strategies import CONTENTS

HALVES = (torch.float32, torch.bfloat16, torch.float16)


@given(X=adapter_sets(min_adapters=2, max_adapters=5, min_rank=2, max_rank=3, max_width=20, n_modules=3))
def test_bounds_are_kept(X):
    assert 2 <= len(X) <= 5
    assert X.names == tuple(f"task{i}" for i in range(len(X)))
    assert X.module_names == ("layer.0", "layer.1", "layer.2")
    total = sum(adapter.ranks[0] for adapter in X)
    for adapter in X:
        assert 2 <= len(adapter) <= 3
        assert adapter.dtype == torch.float64
        for info in adapter.infos.values():
            assert 2 <= info.rank <= 3
            assert total <= min(info.d_in, info.d_out)
            assert max(info.d_in, info.d_out) <= max(20, total)


@given(X=adapter_sets(equal_ranks=True, missing_modules=False, dtype=HALVES, kind=("linear", "conv", "embedding")))
def test_options(X):
    assert len({rank for adapter in X for rank in adapter.ranks}) == 1
    assert all(adapter.dtype in HALVES for adapter in X)
    for module in X.module_names:
        (kind,) = {info.kind for info in X.infos(module)}
        assert kind in (ModuleKind(), ModuleKind("conv", (3, 3)), ModuleKind("embedding"))
        assert kind.name != "conv" or X.infos(module)[0].d_in % 9 == 0


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"dtype": HALVES}, lambda X: len({a.dtype for a in X}) > 1),
        ({"kind": ("linear", "conv", "embedding")}, lambda X: X[0].infos["layer.1"].kind.name == "embedding"),
        ({}, lambda X: any(len(a) < 2 for a in X)),
        ({}, lambda X: len({a.ranks for a in X}) > 2),
        ({"content": CONTENTS}, lambda X: X[0]["layer.0"].delta().norm() == 0),
        ({"content": CONTENTS}, lambda X: X[0]["layer.0"].delta().norm() > 1e6),
    ],
)
def test_what_is_rare_is_found(options, wanted):
    assert wanted(find(adapter_sets(**options), wanted, settings=settings(max_examples=500, database=None)))


def rank_of(x):
    return int(torch.linalg.matrix_rank(x, rtol=1e-9))


@given(data=st.data())
def test_contents(data):
    def drawn(content, **options):
        return data.draw(adapter_sets(content=content, missing_modules=False, **options))

    zero = drawn("zero", min_adapters=2)
    assert zero[0]["layer.0"].delta().norm() == 0
    assert zero[0]["layer.0"].A.norm() > 0
    assert zero[1]["layer.0"].delta().norm() > 0

    for adapter in drawn("duplicate_msus"):
        for factors in adapter.values():
            units = torch.cat([factors.A, factors.B.T], dim=1)
            assert torch.equal(units.abs(), units[:1].abs().expand_as(units))
            assert rank_of(factors.delta()) == 1

    same = drawn("identical_adapters", equal_ranks=True)
    for adapter in same:
        assert all(torch.equal(x, y) for m in adapter for x, y in zip(adapter[m], same[0][m], strict=True))

    for adapter in drawn("rank_deficient", min_rank=2):
        for factors in adapter.values():
            assert rank_of(factors.delta()) == factors.rank // 2

    for content, low, high in (("huge", 1e6, 1e13), ("tiny", 1e-13, 1e-5)):
        norms = [float(f.delta().norm()) for adapter in drawn(content) for f in adapter.values()]
        assert all(low < norm < high for norm in norms)


@pytest.mark.filterwarnings("ignore::lorakit.exceptions.ZeroMergeWarning")  # zeros are among it
@given(X=adapter_sets(content=CONTENTS))
def test_mergers_survive_all_of_it(X):
    merged = ConcatMerger().fit(X).merged_
    for module in X.module_names:
        mean = sum(f.delta() for f in X.factors(module)) / len(X)
        torch.testing.assert_close(merged[module].delta(), mean)


def test_shrinks_to_little():
    def fails(X):
        return len(X) > 1

    X = find(adapter_sets(content=CONTENTS, dtype=HALVES), fails, settings=settings(max_examples=500, database=None))
    assert [adapter.ranks for adapter in X] == [(1,), (1,)]
    assert [len(adapter) for adapter in X] == [2, 2]
    assert {info[1:3] for adapter in X for info in adapter.infos.values()} == {(2, 2)}
    assert X.dtype == torch.float32


@given(factors=lora_factors(min_rank=0, max_rank=3, max_width=5, dtype=HALVES, content=CONTENTS[:5]))
def test_factors(factors):
    assert 0 <= factors.rank <= 3
    assert factors.rank <= factors.d_in <= 5
    assert 1 <= factors.d_out <= 5
    assert factors.dtype in HALVES


@given(weights=adapter_weights(3), signed=adapter_weights(2, signed=True))
def test_weights(weights, signed):
    assert len(weights) == 3
    assert min(weights) >= 0
    assert any(weights)
    assert any(signed)
    X = make_adapters(ranks=2, n_adapters=3, random_state=0)
    SVDMerger(weights=weights).fit(X)
    SVDMerger(weights=signed).fit(X[:2])


def test_negative_weights_are_drawn():
    assert min(find(adapter_weights(2, signed=True), lambda w: min(w) < 0)) == -0.25


@given(gauge=gauges(), X=adapter_sets(missing_modules=True), factors=lora_factors())
def test_gauges_leave_the_updates(gauge, X, factors):
    changed = gauge(X)
    assert isinstance(changed, AdapterSet)
    assert changed.names == X.names
    for before, after in zip(X, changed, strict=True):
        assert after.infos == before.infos
        assert after.provenance == before.provenance
        assert relative_error(after, before) < 1e-6
    torch.testing.assert_close(gauge(factors).delta(), factors.delta())
    again, repeated = gauge(X[0]), gauge(X[0])
    assert all(torch.equal(x, y) for m in again for x, y in zip(again[m], repeated[m], strict=True))


@pytest.mark.parametrize("kind", GAUGES)
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
def test_gauges_change_the_factors(kind, dtype):
    X = AdapterSet(make_adapters(2, ranks=4, dtype=dtype, random_state=0))
    changed = Gauge(kind)(X)
    assert changed.dtype == dtype
    assert not torch.equal(changed[0]["layer.0"].A, X[0]["layer.0"].A)
    exact = kind in ("permutation", "sign")
    before = X[0]["layer.0"].B.double().abs().sum(dim=1)
    after = changed[0]["layer.0"].B.double().abs().sum(dim=1)
    assert bool(torch.allclose(before, after)) == exact


def test_gauges_in_layouts_other_than_linear():
    X = find(adapter_sets(kind="conv", missing_modules=False), lambda X: True)
    assert Gauge("sign")(X)[0].infos["layer.0"].kind == ModuleKind("conv", (3, 3))


def test_wrong_options():
    for options in ({"content": "zeros"}, {"kind": ("linear", "dense")}):
        with pytest.raises(ValueError, match="must be of"):
            adapter_sets(**options)
    with pytest.raises(ValueError, match="must be of"):
        lora_factors(content="zeros")
    with pytest.raises(ValueError, match="must be of"):
        gauges("rotation")
    with pytest.raises(ValueError, match="must be one of"):
        Gauge("rotation")


def test_gauges_of_a_merger():
    kinds = {find(gauges(kind), lambda g: True).kind for kind in SVDMerger().invariances}
    assert kinds == set(GAUGES)
    assert repr(Gauge("sign", seed=3)) == "Gauge(kind='sign', seed=3)"
