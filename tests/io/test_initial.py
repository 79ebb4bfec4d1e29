"""Adapters that began as a part of the base weights: what is taken away, and what does not go together."""

import pickle

import pytest
import torch
from peft_files import pair, write_directory
from safetensors.torch import save_file

from lorakit import SVDMerger, load_adapter, load_adapters
from lorakit.exceptions import CorruptFileError, IncompatibleAdaptersError, UnsupportedAdapterError

PISSA = {"init_lora_weights": "pissa", "r": 2, "lora_alpha": 4}
W = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))[0][:3] * torch.tensor(
    [[3.0], [2.0], [1.0]]
)
BASE = {"enc.0.q.weight": W.contiguous()}


@pytest.fixture
def trained(tmp_path):
    return write_directory(tmp_path, pair(seed=1), **PISSA)


@pytest.fixture
def before(tmp_path):
    return write_directory(tmp_path, pair(seed=2), "before", lora_alpha=6, r=2)


def test_the_difference(trained, before):
    adapter = load_adapter(trained, initial=before)
    (a, b), (a_0, b_0) = pair(seed=1).values(), pair(seed=2).values()
    torch.testing.assert_close(adapter["enc.0.q"].delta(), 2 * b @ a - 3 * b_0 @ a_0)
    assert (adapter.infos["enc.0.q"].rank, adapter.scale("enc.0.q"), adapter.provenance.stored_as) == (
        4,
        2.0,
        ("PiSSA",),
    )


def test_the_first_singular_triples(trained, tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    a, b = pair(seed=1).values()
    u, s, vh = torch.linalg.svd(W, full_matrices=False)
    expected = 2 * b @ a - u[:, :2] * s[:2] @ vh[:2]
    for base in (BASE, tmp_path / "base.safetensors"):
        torch.testing.assert_close(load_adapter(trained, base=base)["enc.0.q"].delta(), expected)


@pytest.mark.parametrize("given", ["initial", "base"])
def test_it_travels_to_workers(trained, before, tmp_path, given):
    save_file(BASE, tmp_path / "base.safetensors")
    adapter = load_adapter(trained, **{given: before if given == "initial" else tmp_path / "base.safetensors"})
    expected = adapter["enc.0.q"].delta()
    for again in (adapter, adapter.select(["enc.0.q"])):
        assert torch.equal(pickle.loads(pickle.dumps(again))["enc.0.q"].delta(), expected)
    merged = SVDMerger(k=2).fit([adapter]).merged_
    assert float((merged["enc.0.q"].delta() - expected).norm()) == pytest.approx(
        float(torch.linalg.svdvals(expected)[2:].norm()), abs=1e-5
    )


def test_one_that_changed_since(trained, before):
    adapter = load_adapter(trained, initial=before)
    save_file(pair(seed=3), before / "adapter_model.safetensors", {"other": "size"})
    with pytest.raises(CorruptFileError, match="has changed"):
        adapter["enc.0.q"]


@pytest.mark.parametrize(
    ("stored", "error", "message"),
    [
        (pair(d_in=6), IncompatibleAdaptersError, "linear of d_in 6, d_out 3 in .*other, expected linear of d_in 5"),
        (pair("enc.1.q"), IncompatibleAdaptersError, "is in only one of the adapter and"),
        (pair() | pair("enc.1.q"), IncompatibleAdaptersError, r"module 'enc.1.q' is in only one"),
        ({"base_model.model.enc.0.q.lora_A.weight": torch.ones(2, 5)}, CorruptFileError, "lacks"),
    ],
)
def test_initial_adapters_that_do_not_go_with_it(trained, tmp_path, stored, error, message):
    with pytest.raises(error, match=message):
        load_adapter(trained, initial=write_directory(tmp_path, stored, "other"))


def test_nan_is_named_where_it_lies(trained, before, tmp_path):
    tensors = pair(seed=2)
    tensors["base_model.model.enc.0.q.lora_B.weight"][0, 0] = torch.nan
    other = write_directory(tmp_path, tensors, "other")
    with pytest.raises(CorruptFileError, match=r"other/adapter_model.safetensors.*lora_B.weight' has 1 NaN"):
        load_adapter(trained, initial=other)["enc.0.q"]
    with pytest.raises(CorruptFileError, match=r"'enc.0.q.weight' has 15 NaN"):
        load_adapter(trained, base={"enc.0.q.weight": torch.full((3, 5), torch.nan)})["enc.0.q"]


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        (
            {"enc.0.q.weight": torch.ones(3, 4)},
            IncompatibleAdaptersError,
            r"has the shape \(3, 4\), expected the widths",
        ),
        ({"enc.0.k.weight": torch.ones(3, 5)}, IncompatibleAdaptersError, "has no tensor 'enc.0.q.weight'"),
        ({"enc.0.q.weight": torch.ones(3, 5, device="meta")}, UnsupportedAdapterError, "on the meta device"),
        ({"enc.0.q.weight": torch.ones(3, 5).to(torch.int8)}, ValueError, "is stored as I8"),
    ],
)
def test_bases_that_do_not_go_with_it(trained, base, error, message):
    with pytest.raises(error, match=message):
        load_adapter(trained, base=base)


def test_a_convolution_needs_the_initial_adapter(tmp_path):
    name = "base_model.model.c.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(2, 4, 3, 3), name.format("B"): torch.ones(5, 2, 1, 1)}
    path = write_directory(tmp_path, tensors, **PISSA)
    with pytest.raises(UnsupportedAdapterError, match=r"is a conv 3 3 .* expected linear layers; pass initial="):
        load_adapter(path, base={"c.weight": torch.ones(5, 4, 3, 3)})
    other = write_directory(tmp_path, {key: -tensor for key, tensor in tensors.items()}, "other", lora_alpha=2)
    torch.testing.assert_close(load_adapter(path, initial=other)["c"].delta(), torch.full((5, 36), 2.0))


def test_other_formats_take_none(tmp_path, before):
    tensors = {
        f"lora_unet_x.lora_{part}.weight": t for part, t in (("down", torch.ones(1, 3)), ("up", torch.ones(2, 1)))
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedAdapterError, match=r"is of the format kohya.*expected peft"):
        load_adapter(tmp_path / "x.safetensors", initial=before)
    with pytest.raises(UnsupportedAdapterError, match="holds no adapter that training could have begun with"):
        load_adapter(before, initial=tmp_path)


def test_names_of_no_adapter(trained, before):
    with pytest.raises(ValueError, match=r"initial names 'other'\. The adapters are task"):
        load_adapters([trained], initial={"other": before})
