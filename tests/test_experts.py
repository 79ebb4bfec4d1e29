"""Experts in fused parameters and as linear modules: one becomes the other exactly, and ranks come back."""

import pickle

import pytest
import torch

from lorakit import Adapter, LoraFactors, join_experts, split_experts
from lorakit.adapters import ModuleKind
from lorakit.exceptions import IncompatibleAdaptersError, UnsupportedAdapterError

H, WIDTH, EXPERTS, RANK = 6, 4, 3, 2
BOTH = ("down_proj", "gate_up_proj")
SHAPES = {"gate_proj": (H, WIDTH), "up_proj": (H, WIDTH), "down_proj": (WIDTH, H)}


def factors(d_in, d_out, seed):
    rng = torch.Generator().manual_seed(seed)
    return LoraFactors(*(torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((RANK, d_in), (d_out, RANK))))


def fused(*, transposed=False, layer="m.experts"):
    """As PEFT has it: down_proj outermost. Transposed: A has the width of the outputs."""
    modules = {"q": factors(H, H, 99)}
    for i in range(EXPERTS):
        for j, (name, d_in, d_out) in enumerate(((f"{layer}.base_layer", H, 2 * WIDTH), (layer, WIDTH, H))):
            widths = (d_out, d_in) if transposed else (d_in, d_out)
            modules[f"{name}.{i}"] = factors(*widths, 10 * i + j)
    kind = ModuleKind("expert", experts=EXPERTS, parameters=BOTH)
    return Adapter(modules, kinds={name: kind for name in modules if name != "q"})


def linear(parts=tuple(SHAPES), layer="m.experts", experts=range(EXPERTS)):
    modules = {}
    for i in experts:
        for j, (part, widths) in enumerate(zip(parts, SHAPES.values(), strict=True)):
            modules[f"{layer}.{i}.{part}"] = factors(*widths, 100 + 10 * i + j)
    return Adapter(modules)


def weights(adapter, i, *, interleaved=False, transposed=False):
    """What is added to gate_up_proj and to down_proj of one expert, as (out, in), from fused modules."""
    up, down = adapter[f"m.experts.base_layer.{i}"].delta(), adapter[f"m.experts.{i}"].delta()
    if transposed:
        up, down = up.T, down.T
    if interleaved:
        up = torch.cat([up[::2], up[1::2]])
    return {"gate_proj": up[:WIDTH], "up_proj": up[WIDTH:], "down_proj": down}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_split_and_joined_again(interleaved, transposed):
    adapter = fused(transposed=transposed)
    split = split_experts(adapter, interleaved=interleaved)  # the two widths tell which side is the input
    assert len(split) == 1 + 3 * EXPERTS
    for i in range(EXPERTS):
        for part, dense in weights(adapter, i, interleaved=interleaved, transposed=transposed).items():
            assert torch.equal(split[f"m.experts.{i}.{part}"].delta(), dense)
    assert {info.rank for info in split.infos.values()} == {RANK}
    options = {"interleaved": interleaved, "transposed": transposed}
    again = join_experts(split, EXPERTS, **options)
    assert dict(again.infos) == dict(adapter.infos)
    for module in adapter:
        torch.testing.assert_close(again[module].delta(), adapter[module].delta(), rtol=1e-14, atol=1e-14)
    assert again.provenance.conversions == (
        {"split_experts": {"parts": [*SHAPES], **options}},
        {"join_experts": {"experts": EXPERTS, "parameters": ["gate_up_proj", "down_proj"], **options}},
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_joined_and_split_again(interleaved):
    """Gate and up have an A each: the rank doubles, and is halved when they come apart."""
    adapter = linear()
    joined = join_experts(adapter, EXPERTS, interleaved=interleaved, transposed=interleaved)
    assert {info.rank for name, info in joined.infos.items() if "base_layer" in name} == {2 * RANK}
    for i in range(EXPERTS):
        for part, dense in weights(joined, i, interleaved=interleaved, transposed=interleaved).items():
            torch.testing.assert_close(dense, adapter[f"m.experts.{i}.{part}"].delta(), rtol=1e-14, atol=1e-14)
    again = split_experts(joined, interleaved=interleaved)
    assert {name: info.rank for name, info in again.infos.items()} == dict.fromkeys(adapter, RANK)
    for module in adapter:
        torch.testing.assert_close(again[module].delta(), adapter[module].delta(), rtol=1e-14, atol=1e-14)


def test_experts_that_are_not_adapted_are_left_out():
    joined = join_experts(linear(experts=[2]), EXPERTS)
    assert list(joined) == ["m.experts.base_layer.2", "m.experts.2"]
    (kind,) = {info.kind for info in joined.infos.values()}
    assert kind == ModuleKind("expert", experts=EXPERTS, parameters=BOTH)


def test_one_part_of_two():
    """Without the gate's update its outputs are zero, and it is no module after a split."""
    adapter = linear().select([f"m.experts.{i}.up_proj" for i in range(EXPERTS)])
    joined = join_experts(adapter, EXPERTS, parameters=["gate_up_proj"])
    assert not joined["m.experts.1"].delta()[:WIDTH].any()
    assert list(split_experts(joined, transposed=False)) == list(adapter)


def test_experts_without_a_gate():
    adapter = linear().select(
        [m for i in range(EXPERTS) for m in (f"m.experts.{i}.up_proj", f"m.experts.{i}.down_proj")]
    )
    joined = join_experts(adapter, EXPERTS, parameters=["up_proj", "down_proj"])
    assert joined.infos["m.experts.base_layer.0"].d_out == WIDTH
    with pytest.raises(UnsupportedAdapterError, match="up_proj 4 x 6, down_proj 6 x 4"):  # both ways round fit
        split_experts(joined)
    assert list(split_experts(joined, transposed=False)) == list(adapter)


def test_a_router_is_a_parameter_of_one_expert():
    kind = ModuleKind("expert", experts=1, parameters=("weight",))
    modules = {**fused(), "m.gate.0": factors(H, EXPERTS, 7)}
    kinds = {name: info.kind for name, info in fused().infos.items()} | {"m.gate.0": kind}
    adapter = Adapter(modules, kinds=kinds)
    split = split_experts(adapter)
    assert split.infos["m.gate"].kind == ModuleKind()
    assert dict(join_experts(split, EXPERTS, weights=["m.gate"]).infos) == dict(adapter.infos)


def test_lazy_and_pickled():
    split = pickle.loads(pickle.dumps(split_experts(fused()).select(["m.experts.1.up_proj"])))
    assert torch.equal(split["m.experts.1.up_proj"].delta(), weights(fused(), 1)["up_proj"])
    joined = pickle.loads(pickle.dumps(join_experts(linear(), EXPERTS, interleaved=True).select(["m.experts.1"])))
    assert torch.equal(joined["m.experts.1"].delta(), linear()["m.experts.1.down_proj"].delta())


def test_what_the_widths_do_not_tell():
    down = fused().select([f"m.experts.{i}" for i in range(EXPERTS)])
    kind = ModuleKind("expert", experts=EXPERTS, parameters=("down_proj",))
    alone = Adapter(dict(down), kinds=dict.fromkeys(down, kind), name="mine")
    with pytest.raises(UnsupportedAdapterError, match=r"mine.*down_proj 6 x 4.*if transposed, \(inputs"):
        split_experts(alone)
    assert split_experts(alone, transposed=True).infos["m.experts.0.down_proj"].d_in == H


WRONG = {
    "beyond": (lambda: join_experts(linear(), 2), IncompatibleAdaptersError, "experts.2.gate_proj' is in none.* of 2"),
    "no place": (
        lambda: join_experts(linear(), EXPERTS, parameters=["down_proj"]),
        IncompatibleAdaptersError,
        "gate_proj' is in none of down_proj",
    ),
    "parameters": (lambda: join_experts(linear(), EXPERTS, parameters=["w"]), ValueError, "parameters must be of"),
    "two of one": (
        lambda: join_experts(linear(), EXPERTS, parameters=["up_proj", "gate_up_proj"]),
        ValueError,
        "parameters must be of",
    ),
    "parts": (lambda: split_experts(fused(), parts=["a", "b"]), ValueError, "three names"),
    "no model": (lambda: split_experts(odd()), IncompatibleAdaptersError, "updates of the shapes gate_up_proj 8 x 6"),
    "twice": (lambda: split_experts(both_layouts()), IncompatibleAdaptersError, "holds 'm.experts.0.up_proj' twice"),
    "other widths": (
        lambda: join_experts(uneven(), EXPERTS),
        IncompatibleAdaptersError,
        "different numbers of outputs",
    ),
}


def odd():
    """The two parameters are of no one model."""
    adapter = fused()
    modules = {m: factors(5, H, 0) if "base_layer" not in m and m != "q" else adapter[m] for m in adapter}
    return Adapter(modules, kinds={m: info.kind for m, info in adapter.infos.items()})


def both_layouts():
    adapter = fused()
    kinds = {m: info.kind for m, info in adapter.infos.items()}
    return Adapter({**adapter, "m.experts.0.up_proj": factors(H, WIDTH, 0)}, kinds=kinds)


def uneven():
    return Adapter({"m.experts.0.gate_proj": factors(H, WIDTH, 0), "m.experts.0.up_proj": factors(H, WIDTH + 1, 0)})


@pytest.mark.parametrize("case", WRONG)
def test_refused(case):
    make, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        make()
