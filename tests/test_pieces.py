"""Fused modules of an adapter, split and joined, lazily."""

import pickle

import pytest
import torch

from lorakit import Adapter, ConcatMerger, LoraFactors, join_modules, load_adapter, save_adapter, split_modules
from lorakit.adapters import ModuleKind
from lorakit.differences import MemoryDifferences
from lorakit.exceptions import IncompatibleAdaptersError
from lorakit.pieces import Piece, put_together

PARTS = {"attn.qkv": {"attn.q": 6, "attn.k": 2, "attn.v": 2}}  # grouped queries: one head of K and V for three of Q


def adapter_of(shapes, seed=0, **more):
    rng = torch.Generator().manual_seed(seed)
    factors = {
        name: LoraFactors(torch.randn(r, d_in, generator=rng), torch.randn(d_out, r, generator=rng))
        for name, (d_out, r, d_in) in shapes.items()
    }
    return Adapter(factors, name="mine", **more)


def test_unequal_parts_there_and_back():
    fused = adapter_of({"first": (3, 1, 4), "attn.qkv": (10, 2, 5), "last": (3, 1, 4)})
    split = split_modules(fused, PARTS)
    assert list(split) == ["first", "attn.q", "attn.k", "attn.v", "last"]
    assert [split.infos[name][:3] for name in PARTS["attn.qkv"]] == [(2, 5, 6), (2, 5, 2), (2, 5, 2)]
    whole = fused["attn.qkv"].delta()
    assert torch.equal(torch.cat([split[name].delta() for name in PARTS["attn.qkv"]]), whole)
    back = join_modules(split, PARTS)
    assert list(back) == list(fused)
    for module in fused:
        assert torch.equal(back[module].A, fused[module].A)
        assert torch.equal(back[module].B, fused[module].B)


def test_modules_with_factors_of_their_own():
    split = adapter_of({"attn.v": (2, 3, 5), "attn.q": (6, 2, 5)})
    joined = join_modules(split, PARTS)
    assert joined.infos["attn.qkv"][:3] == (5, 5, 10)
    expected = torch.cat([split["attn.q"].delta(), torch.zeros(2, 5), split["attn.v"].delta()])
    torch.testing.assert_close(joined["attn.qkv"].delta(), expected)
    back = split_modules(joined, PARTS)
    assert list(back) == ["attn.q", "attn.v"]  # no unit reaches K
    assert {name: back.infos[name].rank for name in back} == {"attn.q": 2, "attn.v": 3}


def test_lazy_from_a_file(tmp_path):
    fused = adapter_of({"attn.qkv": (10, 2, 5), "other": (3, 2, 4)})
    stored = load_adapter(save_adapter(fused, tmp_path / "a"))
    split = split_modules(stored, PARTS)
    again = pickle.loads(pickle.dumps(split))
    narrow = again.select(["attn.k"])
    assert list(narrow) == ["attn.k"]
    assert len(pickle.dumps(narrow)) < 2_500
    assert torch.equal(narrow["attn.k"].delta(), stored["attn.qkv"].delta()[6:8])
    assert split.read_in("attn.k", torch.float64).dtype == torch.float64
    assert split.scale("attn.k") == stored.scale("attn.qkv")
    assert split.checked
    assert split.provenance == stored.provenance


def test_what_is_split_merges_as_the_fused():
    both = [adapter_of({"attn.qkv": (10, 2, 5)}, seed) for seed in (0, 1)]
    whole = ConcatMerger().fit(both).merged_["attn.qkv"].delta()
    merged = ConcatMerger().fit([split_modules(adapter, PARTS) for adapter in both]).merged_
    torch.testing.assert_close(torch.cat([merged[name].delta() for name in PARTS["attn.qkv"]]), whole)


def test_halves_in_the_other_order():
    adapter = adapter_of({"norm": (4, 2, 3)})
    swapped = put_together(adapter, {"norm": (Piece("norm", 2, 4), Piece("norm", 0, 2))})
    assert swapped.infos["norm"].rank == 2
    assert torch.equal(swapped["norm"].delta(), adapter["norm"].delta()[[2, 3, 0, 1]])


@pytest.mark.parametrize(
    ("function", "shapes", "parts", "match"),
    [
        (split_modules, {"qkv": (10, 2, 5)}, {"qkv": {"q": 6, "k": 2, "v": 1}}, r"10 outputs, expected.*6 \+ 2 \+ 1"),
        (join_modules, {"q": (6, 2, 5)}, {"qkv": {"q": 5, "k": 2}}, "'q' has 6 outputs, expected 5"),
        (join_modules, {"q": (6, 2, 5), "k": (2, 2, 4)}, {"qkv": {"q": 6, "k": 2}}, "different numbers of inputs"),
    ],
)
def test_numbers_that_do_not_fit(function, shapes, parts, match):
    with pytest.raises(IncompatibleAdaptersError, match=match) as caught:
        function(adapter_of(shapes), parts)
    assert caught.value.adapters == ("mine",)


def test_names_and_kinds():
    with pytest.raises(ValueError, match="mine: has no module 'qkv'; it has 'q'"):
        split_modules(adapter_of({"q": (6, 2, 5)}), {"qkv": {"q": 6}})
    with pytest.raises(ValueError, match="two modules would be called 'q'"):
        split_modules(adapter_of({"q": (1, 2, 5), "qk": (2, 2, 5)}), {"qk": {"q": 1, "k": 1}})
    with pytest.raises(ValueError, match="two modules would be called 'qk'"):
        join_modules(adapter_of({"q": (1, 2, 5), "qk": (2, 2, 5)}), {"qk": {"q": 1, "k": 1}})
    conv = adapter_of({"qk": (2, 2, 9)}, kinds={"qk": ModuleKind("conv", (3, 3))})
    with pytest.raises(IncompatibleAdaptersError, match="'qk' is of the kind conv 3 3, expected a linear layer"):
        split_modules(conv, {"qk": {"q": 1, "k": 1}})


def test_biases_are_cut_and_stacked_as_the_outputs_are():
    """Also of a layer without factors; parts that add nothing are zeros in the whole, and norms stay as they are."""
    vectors = {"qkv.bias": torch.arange(6.0), "norm.weight": torch.ones(3), "o.bias": torch.ones(2)}
    added = MemoryDifferences(vectors)
    fused = adapter_of({"qkv": (6, 2, 5)}).with_provenance(differences=added)
    parts = {"qkv": {"q": 3, "k": 2, "v": 1}}
    split = split_modules(fused, parts)
    found = {name: split.differences.read(name).tolist() for name in split.differences.infos}
    assert found == {
        "q.bias": [0, 1, 2], "k.bias": [3, 4], "v.bias": [5], "norm.weight": [1, 1, 1], "o.bias": [1, 1]
    }  # fmt: skip
    joined = join_modules(split, parts)
    assert {name: joined.differences.read(name).tolist() for name in joined.differences.infos} == {
        name: vector.tolist() for name, vector in vectors.items()
    }
    lone = MemoryDifferences({"k.bias": torch.ones(2)})
    joined = join_modules(adapter_of({"q": (3, 2, 5)}).with_provenance(differences=lone), parts)
    assert joined.differences.read("qkv.bias").tolist() == [0, 0, 0, 1, 1, 0]
    assert pickle.loads(pickle.dumps(joined)).differences.read("qkv.bias").tolist() == [0, 0, 0, 1, 1, 0]
    with pytest.raises(IncompatibleAdaptersError, match="'k' has 2 outputs, expected 4"):
        join_modules(adapter_of({"q": (3, 2, 5)}).with_provenance(differences=lone), {"qkv": {"q": 3, "k": 4}})
