"""The sum, and how it is rounded; strengths; live state dicts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import SHAPES, adapter, tensors, write_shards

from lorakit import Adapter, LoraFactors, bake, load_adapter, save_adapter
from lorakit.adapters import ModuleKind, Provenance
from lorakit.checkpoints import sums
from lorakit.exceptions import OutputError, UnsupportedAdapterError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def exact(base, adapters, strengths):
    """The sums in float64, and the updates."""
    updates = {
        f"{name}.weight": sum(
            c * (one[name.removeprefix("model.")].B.double() @ one[name.removeprefix("model.")].A.double())
            for c, one in zip(strengths, adapters, strict=True)
        )
        for name in SHAPES
    }
    return {name: base[name].double() + update for name, update in updates.items()}, updates


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 20, 2**20])
def test_each_sum_is_rounded_once(dtype, block, monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", block)
    base = tensors(dtype)
    pair = [adapter(seed=1), adapter(seed=2, rank=3, name="medicine")]
    baked = bake(base, pair, strengths=[0.7, -0.5])
    wanted, updates = exact(base, pair, (0.7, -0.5))
    for name, total in wanted.items():
        # half a unit is the least that rounding can do; in float64 what is added is rounded too
        added = torch.stack([total.abs(), base[name].double().abs(), updates[name].abs()]).amax(0)
        size, units = (total.abs(), 0.5001) if dtype != torch.float64 else (added, 4)
        unit = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(size))
        assert ((baked[name].double() - total).abs() <= units * unit).all()
        if dtype != torch.float64:
            lost = (baked[name].double() - total).norm() / updates[name].norm()
            assert baked.rounding[name] == pytest.approx(lost.item(), rel=1e-3)
    untouched = set(base) - set(wanted)
    assert all(torch.equal(baked[name], base[name]) for name in untouched)
    assert list(baked) == list(base)
    assert set(baked.changed) == set(wanted)


@given(
    strengths=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
def test_strengths_are_factors_as_they_stand(strengths, dtype, seed):
    base = tensors(dtype, seed=seed)
    adapters = [adapter(seed=i, name=f"task{i}") for i in range(len(strengths))]
    baked = bake(base, adapters, strengths=strengths)
    wanted, _ = exact(base, adapters, strengths)
    for name, total in wanted.items():
        torch.testing.assert_close(baked[name].double(), total, rtol=torch.finfo(dtype).eps, atol=1e-9)
    by_name = bake(base, adapters, strengths={one.name: c for one, c in zip(adapters, strengths, strict=True)})
    assert all(torch.equal(by_name[name], baked[name]) for name in wanted)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ([1.0], "one finite number for each of 2"),
        ([1.0, float("nan")], "one finite number"),
        ({"laws": 1.0}, r"strengths names \['laws'\]"),
    ],
)
def test_wrong_strengths(strengths, message):
    with pytest.raises(ValueError, match=message):
        bake(tensors(), [adapter(), adapter(name="medicine")], strengths=strengths)


def test_no_adapter():
    with pytest.raises(ValueError, match="at least one adapter"):
        bake(tensors(), [])


def test_embeddings_and_convolutions_are_added_in_their_own_way():
    rng = torch.Generator().manual_seed(0)
    kinds = {"e": ModuleKind("embedding"), "c": ModuleKind("conv", (3, 3)), "p": ModuleKind("conv", (1, 1))}
    factors = {m: LoraFactors(torch.randn(2, 18, generator=rng), torch.randn(4, 2, generator=rng)) for m in kinds}
    base = {"e.weight": torch.zeros(18, 4), "c.weight": torch.zeros(4, 2, 3, 3), "p.weight": torch.zeros(4, 18)}
    baked = bake(base, Adapter(factors, kinds=kinds))
    torch.testing.assert_close(baked["e.weight"], factors["e"].delta().T)
    torch.testing.assert_close(baked["c.weight"], factors["c"].delta().reshape(4, 2, 3, 3))
    torch.testing.assert_close(baked["p.weight"], factors["p"].delta())


def test_experts_in_one_parameter():
    """A narrow expert's parameter, wider than it is high, is told by the widths of the factors."""
    kind = ModuleKind("expert", experts=3, parameters=("down_proj", "gate_up_proj"))
    rng = torch.Generator().manual_seed(0)
    up = [LoraFactors(torch.randn(2, 8, generator=rng), torch.randn(4, 2, generator=rng)) for _ in range(3)]
    down = [LoraFactors(torch.randn(2, 2, generator=rng), torch.randn(8, 2, generator=rng)) for _ in range(3)]
    modules = {f"m.experts.base_layer.{i}": up[i] for i in (0, 2)} | {f"m.experts.{i}": down[i] for i in range(3)}
    made = Adapter(modules, kinds=dict.fromkeys(modules, kind))
    for turned in (False, True):
        shapes = {"gate_up_proj": (8, 4) if turned else (4, 8), "down_proj": (2, 8) if turned else (8, 2)}
        base = {f"m.experts.{name}": torch.randn(3, *shape, generator=rng) for name, shape in shapes.items()}
        baked = bake(base, made)
        for i in range(3):
            change = baked["m.experts.gate_up_proj"][i] - base["m.experts.gate_up_proj"][i]
            wanted = torch.zeros(4, 8) if i == 1 else up[i].delta()
            torch.testing.assert_close(change, wanted.T if turned else wanted, rtol=1e-5, atol=1e-5)
            change = baked["m.experts.down_proj"][i] - base["m.experts.down_proj"][i]
            torch.testing.assert_close(change, down[i].delta().T if turned else down[i].delta(), rtol=1e-5, atol=1e-5)
    wrong = {"m.experts.gate_up_proj": torch.zeros(3, 5, 8), "m.experts.down_proj": torch.zeros(3, 8, 2)}
    with pytest.raises(ValueError, match=r"its experts \(down_proj and gate_up_proj\) have the shapes"):
        bake(wrong, made)
    square = ModuleKind("expert", experts=2, parameters=("w",))
    one = LoraFactors(torch.ones(1, 4), torch.ones(4, 1))
    lone = Adapter({"m.experts.0": one, "m.experts.1": one}, kinds={f"m.experts.{i}": square for i in range(2)})
    with pytest.raises(ValueError, match=r"'w' is square, and nothing tells which side is the input"):
        bake({"m.experts.w": torch.zeros(2, 4, 4)}, lone)


def test_a_sum_that_does_not_fit():
    base = {"q.weight": torch.full((2, 3), 6e4, dtype=torch.float16)}
    large = Adapter({"q": LoraFactors(torch.ones(1, 3), torch.full((2, 1), 6e4))})
    with pytest.raises(OutputError, match=r"'q\.weight': the sum has values that float16 cannot hold .*1\.2e\+05"):
        dict(bake(base, large))


def test_extra_weights_are_refused():
    class Extra:
        names = ("classifier.weight",)

    carrying = adapter().with_provenance(extra_weights=Extra())
    with pytest.raises(UnsupportedAdapterError, match=r"extra weights .*classifier\.weight.*modules_to_save='drop'"):
        bake(tensors(), carrying)


def test_tied_weights_of_a_live_model_warn():
    base = tensors()
    base["lm_head.weight"] = base["model.layers.0.q_proj.weight"]
    with pytest.warns(
        UserWarning, match=r"'model\.layers\.0\.q_proj\.weight' shares its memory with 'lm_head\.weight'"
    ):
        bake(base, adapter())


def test_the_scale_of_a_file_is_folded_in_float64(tmp_path):
    """The nearest float32 to W + s B A, where s is no square of a float32."""
    stored = adapter().with_provenance(metadata={})
    save_adapter(stored, tmp_path / "law")
    config = (tmp_path / "law" / "adapter_config.json").read_text()
    (tmp_path / "law" / "adapter_config.json").write_text(config.replace('"lora_alpha": 2', '"lora_alpha": 3'))
    one = load_adapter(tmp_path / "law")
    scale = one.scale("layers.0.q_proj")
    assert scale == 1.5
    base = tensors()
    baked = bake(base, one)
    a, b = stored["layers.0.q_proj"]
    factors = np.array((1.5 * (b.double() @ a.double())).numpy())
    name = "model.layers.0.q_proj.weight"
    total = base[name].double().numpy() + factors
    assert np.array_equal(baked[name].numpy(), total.astype(np.float32))


def test_the_result_does_not_depend_on_where_it_is_computed(tmp_path):
    base = tensors(torch.bfloat16)
    folder = write_shards(tmp_path / "base", base)
    live = bake(base, adapter())
    lazy = bake(folder, adapter())
    written = bake(folder, adapter(), tmp_path / "out")
    from lorakit.files.open_checkpoint import open_checkpoint

    stored = open_checkpoint(tmp_path / "out")
    for name in base:
        assert torch.equal(live[name], lazy[name])
        assert torch.equal(live[name], stored[name])
    assert written.rounding == live.rounding == lazy.rounding
    assert written.output == tmp_path / "out"


def test_provenance_is_not_needed():
    kohya = adapter().with_provenance(format="kohya")
    assert isinstance(kohya.provenance, Provenance)
    assert set(bake(tensors(), kohya).changed) == {f"{name}.weight" for name in SHAPES}
