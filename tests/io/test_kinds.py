"""LoHa and LoKr in single files: what contradicts itself or asks for much is refused by name."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from lorakit import ConcatMerger, SVDPruner, load_adapter, load_adapters, save_adapter
from lorakit.exceptions import CorruptFileError, LorakitError, UnsupportedAdapterError

CORRUPT, UNSUPPORTED = CorruptFileError, UnsupportedAdapterError


def tensors_of(shapes, **changes):
    rng = torch.Generator().manual_seed(0)
    return {part: torch.randn(shape, generator=rng) for part, shape in {**shapes, **changes}.items() if shape}


def loha(**changes):
    pairs = {f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in {"a": (6, 2), "b": (2, 5)}.items()}
    return tensors_of(pairs, **changes)


def loha_conv(**changes):
    parts = {"w{}_a": (2, 6), "w{}_b": (2, 5), "t{}": (2, 2, 3, 3)}
    return tensors_of({f"hada_{p.format(i)}": shape for i in (1, 2) for p, shape in parts.items()}, **changes)


def lokr(**changes):
    return tensors_of({"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)}, **changes)


def lokr_conv(**changes):
    parts = {"lokr_w1": (2, 3), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 5), "lokr_t2": (2, 2, 3, 3)}
    return tensors_of(parts, **changes)


@pytest.fixture
def write(tmp_path):
    def write_file(tensors, module="lora_unet_x"):
        save_file({f"{module}.{part}": tensor for part, tensor in tensors.items()}, tmp_path / "task.safetensors")
        return tmp_path / "task.safetensors"

    return write_file


BAD = {
    "LoHa without w1_b": (loha(hada_w1_b=None), CORRUPT, "lacks hada_w1_b; the file is incomplete"),
    "LoHa alone": (loha(hada_w1_b=None, hada_w2_a=None, hada_w2_b=None), CORRUPT, "lacks hada_w1_b and hada_w2_a and"),
    "LoHa without t2": (loha_conv(hada_t2=None), CORRUPT, "lacks hada_t2"),
    "LoHa of two ranks": (loha(hada_w2_a=(6, 3), hada_w2_b=(3, 5)), CORRUPT, r"expected \(out, r\) and \(r, in\)"),
    "LoHa of two shapes": (loha(hada_w2_a=(7, 2)), CORRUPT, r"hada_w2_a \(7, 2\)"),
    "LoHa inner ranks": (loha(hada_w1_b=(3, 5), hada_w2_b=(3, 5)), CORRUPT, r"expected \(out, r\)"),
    "LoHa not matrices": (loha(hada_w1_a=(12,)), CORRUPT, r"hada_w1_a \(12,\)"),
    "LoHa of two kernels": (loha_conv(hada_t2=(2, 2, 3, 1)), CORRUPT, r"\(r, r, kernel...\), twice"),
    "LoHa core of other ranks": (loha_conv(hada_t1=(2, 3, 3, 3), hada_t2=(2, 3, 3, 3)), CORRUPT, "kernel"),
    "LoHa empty": (loha(hada_w1_a=(6, 0)), CORRUPT, "is empty"),
    "LoHa with plain factors": (loha() | {"lora_up.weight": torch.ones(6, 1), "lora_down.weight": torch.ones(1, 5)},
                                CORRUPT, "expected one kind"),
    "LoHa and LoKr": (loha() | lokr(), CORRUPT, "has tensors of LoHa and LoKr"),
    "LoHa and DoRA": (loha() | {"dora_scale": torch.ones(6, 1)}, UNSUPPORTED, "DoRA"),
    "LoHa of integers": (loha() | {"hada_w1_a": torch.ones(6, 2, dtype=torch.int8)}, UNSUPPORTED, "stored as I8"),
    "LoHa of alpha 0": (loha() | {"alpha": torch.tensor(0.0)}, UNSUPPORTED, "alpha is 0"),
    "LoHa of alpha NaN": (loha() | {"alpha": torch.tensor(torch.nan)}, CORRUPT, "is nan, expected a finite number"),
    "LoHa of two alphas": (loha() | {"alpha": torch.ones(2)}, CORRUPT, "expected one number"),
    "LoHa NaN": (loha() | {"hada_w2_b": torch.full((2, 5), torch.nan)}, CORRUPT, "'lora_unet_x.hada_w2_b' has 10 NaN"),
    "LoHa overflow": ({part: t * 1e30 for part, t in loha().items()}, CORRUPT, "infinite"),
    "LoKr without w1": (lokr(lokr_w1=None), CORRUPT, "lacks lokr_w1_a and lokr_w1_b"),
    "LoKr without w2_b": (lokr(lokr_w2_b=None), CORRUPT, "lacks lokr_w2_b"),
    "LoKr without w1_a": (lokr(lokr_w1=None, lokr_w1_b=(2, 3)), CORRUPT, "lacks lokr_w1_a"),
    "LoKr without w2_a": (lokr_conv(lokr_w2_a=None), CORRUPT, "lacks lokr_w2_a"),
    "LoKr w1 twice": (lokr(lokr_w1_b=(2, 3)), CORRUPT, r"expected w1 \(p, q\) or"),
    "LoKr w2 twice": (lokr(lokr_w2=(4, 5)), CORRUPT, "lokr_w2 "),
    "LoKr inner ranks": (lokr(lokr_w2_b=(3, 5)), CORRUPT, r"lokr_w2_b \(3, 5\)"),
    "LoKr of two ranks": (lokr(lokr_w1=None, lokr_w1_a=(2, 1), lokr_w1_b=(1, 3)), CORRUPT, "one rank of w1_a"),
    "LoKr w1 of three axes": (lokr(lokr_w1=(2, 3, 1)), CORRUPT, r"lokr_w1 \(2, 3, 1\)"),
    "LoKr w2 of one axis": (lokr(lokr_w2_a=None, lokr_w2_b=None, lokr_w2=(4,)), CORRUPT, r"lokr_w2 \(4,\)"),
    "LoKr core of other ranks": (lokr_conv(lokr_t2=(3, 2, 3, 3)), CORRUPT, r"lokr_t2 \(3, 2, 3, 3\)"),
    "LoKr core and a wide w2": (lokr_conv(lokr_w2_b=(2, 5, 3, 3)), CORRUPT, "expected w1"),
    "LoKr t1": (lokr() | {"lokr_t1": torch.ones(2, 2, 3, 3)}, UNSUPPORTED, "lokr_t1' belongs to LoKr"),
    "LoKr that is huge": (tensors_of({"lokr_w1": (800, 900), "lokr_w2": (700, 600)}), UNSUPPORTED, "factors of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(write, case):
    tensors, error, message = BAD[case]
    path = write(tensors)
    with pytest.raises(LorakitError, match=message) as caught:
        load_adapter(path)["lora_unet_x"]
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("make", [loha, loha_conv, lokr, lokr_conv])
def test_readers_travel_to_workers(write, make):
    adapter = load_adapter(write(make()))
    again = pickle.loads(pickle.dumps(adapter.select(["lora_unet_x"])))
    assert torch.equal(again["lora_unet_x"].A, adapter["lora_unet_x"].A)


def test_alpha_over_the_rank(write):
    plain = load_adapter(write(lokr()))["lora_unet_x"].delta()
    scaled = load_adapter(write(lokr() | {"alpha": torch.tensor(3.0)}))
    assert scaled.scale("lora_unet_x") == 1.5
    torch.testing.assert_close(scaled["lora_unet_x"].delta(), 1.5 * plain)
    torch.testing.assert_close(load_adapter(write(loha()), assume_alpha=4).scale("lora_unet_x"), 2.0)


@pytest.mark.parametrize("alpha", [0.0, 9999220736.0])
def test_alpha_of_two_whole_matrices_is_ignored(write, alpha):
    """LyCORIS ignores it, and other trainers write anything there."""
    whole = lokr(lokr_w2_a=None, lokr_w2_b=None, lokr_w2=(4, 5))
    adapter = load_adapter(write(whole | {"alpha": torch.tensor(alpha)}), assume_alpha=3)
    torch.testing.assert_close(adapter["lora_unet_x"].delta(), torch.kron(whole["lokr_w1"], whole["lokr_w2"]))


@pytest.mark.parametrize("make", [loha, loha_conv, lokr, lokr_conv])
def test_comfyui_files_hold_the_same(write, make):
    """As ai-toolkit writes them. Without alpha the scale is 1."""
    expected = load_adapter(write(make()))["lora_unet_x"].delta()
    module = "diffusion_model.blocks.0.x"
    adapter = load_adapter(write(make() | {"alpha": torch.tensor(3.0)}, module))
    assert (adapter.provenance.format, list(adapter), adapter.scale(module)) == ("comfyui", [module], 1.5)
    assert adapter.provenance.stored_as in (("LoHa",), ("LoKr",))
    torch.testing.assert_close(adapter[module].delta(), 1.5 * expected)
    torch.testing.assert_close(load_adapter(write(make(), module))[module].delta(), expected)


def test_comfyui_files_that_contradict_themselves(write):
    module = "diffusion_model.blocks.0.x"
    with pytest.raises(CorruptFileError, match="lacks hada_w2_a"):
        load_adapter(write(loha(hada_w2_a=None), module))
    plain = {"lora_B.weight": torch.ones(6, 1), "lora_A.weight": torch.ones(1, 5)}
    with pytest.raises(CorruptFileError, match="expected one kind"):
        load_adapter(write(loha() | plain, module))
    path = write(loha(), module)
    tensors = {f"{name}.{part}": t for name in (module, "unet.x") for part, t in loha().items()}
    save_file(tensors, path)
    with pytest.raises(UnsupportedAdapterError, match=r"'unet.x.hada_w._.' belongs to LoHa"):
        load_adapter(path, format="comfyui")


def test_kinds_beside_plain_lora(write, tmp_path):
    path = write(loha())
    tensors = {f"lora_unet_x.{part}": t for part, t in loha().items()} | {
        f"lora_unet_y.{part}": t for part, t in lokr().items()
    }
    plain = {"lora_unet_z.lora_up.weight": torch.ones(4, 1), "lora_unet_z.lora_down.weight": torch.ones(1, 3)}
    save_file(tensors | plain | {"lora_unet_z.alpha": torch.tensor(1.0)}, path)
    adapter = load_adapter(path)
    assert set(adapter) == {"lora_unet_x", "lora_unet_y", "lora_unet_z"}
    assert set(adapter.provenance.stored_as) == {"LoHa", "LoKr", "LoRA"}
    assert torch.equal(adapter["lora_unet_z"].delta(), torch.ones(4, 3))
    save_file(tensors | {"bundle": torch.ones(1)}, path)
    with pytest.raises(UnsupportedAdapterError, match="'bundle' is no part of a LoRA"):
        load_adapter(path)


def test_a_lokr_with_nan_is_not_cut(write):
    path = write(lokr() | {"lokr_w2_a": torch.full((4, 2), torch.nan)})
    with pytest.raises(CorruptFileError, match=r"lokr_w2_a' has 8 NaN"):
        SVDPruner(k=1).fit_transform([load_adapter(path)])


def test_in_files_of_diffusers(tmp_path):
    """Named as diffusers names layers, beside plain LoRA; a merge with plain LoRA is the dense sum."""
    q, k, v = (f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv")
    rng = torch.Generator().manual_seed(1)
    plain = {}
    for module, d_out, d_in in ((q, 6, 5), (k, 8, 15)):
        plain[f"{module}.lora_A.weight"] = torch.randn(2, d_in, generator=rng)
        plain[f"{module}.lora_B.weight"] = torch.randn(d_out, 2, generator=rng)
    other = {f"{q}.{part}": tensor for part, tensor in loha().items()} | {f"{q}.alpha": torch.tensor(1.0)}
    other |= {f"{k}.{part}": tensor for part, tensor in lokr().items()}
    other |= {f"{v}.lora_A.weight": torch.ones(1, 5), f"{v}.lora_B.weight": torch.ones(6, 1)}
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(other, tmp_path / "other.safetensors")
    adapters = load_adapters([tmp_path / "plain.safetensors", tmp_path / "other.safetensors"])
    assert [adapter.provenance.format for adapter in adapters] == ["diffusers"] * 2
    assert adapters[1].provenance.stored_as == ("LoHa", "LoKr", "LoRA")
    h, kr = ({part: t.double() for part, t in tensors.items()} for tensors in (loha(), lokr()))
    dense = {
        q: 0.5 * (h["hada_w1_a"] @ h["hada_w1_b"]) * (h["hada_w2_a"] @ h["hada_w2_b"]),
        k: torch.kron(kr["lokr_w1"], kr["lokr_w2_a"] @ kr["lokr_w2_b"]),
    }
    merged = ConcatMerger().fit(adapters).merged_
    for module, update in dense.items():
        torch.testing.assert_close(adapters[1][module].delta().double(), update, rtol=1e-5, atol=1e-5)
        a, b = (plain[f"{module}.lora_{slot}.weight"].double() for slot in "AB")
        torch.testing.assert_close(merged[module].delta().double(), (b @ a + update) / 2, rtol=1e-5, atol=1e-5)
    again = load_adapter(save_adapter(adapters[1], tmp_path / "out.safetensors"))
    assert again.provenance.stored_as == ("LoRA",)
    save_file(other, tmp_path / "config.safetensors", {"lora_adapter_metadata": '{"transformer.r": 2}'})
    with pytest.raises(UnsupportedAdapterError, match=r"has tensors of Lo.., whose scale.*lora_adapter_metadata"):
        load_adapter(tmp_path / "config.safetensors")
    save_file(other | {f"{q}.lora_A.weight": torch.ones(1, 5), f"{q}.lora_B.weight": torch.ones(6, 1)},
              tmp_path / "both.safetensors")  # fmt: skip
    with pytest.raises(CorruptFileError, match="expected one kind"):
        load_adapter(tmp_path / "both.safetensors")
