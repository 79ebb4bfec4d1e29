"""Single files of LyCORIS: the updates are those of its own modules, which write the files."""

import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lorakit import ConcatMerger, RankBudget, SVDPruner, load_adapter, load_adapters, save_adapter
from lorakit.adapters import ModuleKind
from lorakit.io.formats._modules import FileModules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lycoris")
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule
pytestmark = pytest.mark.interop

LAYERS = {
    "linear": lambda: nn.Linear(12, 18),
    "wide": lambda: nn.Linear(40, 6),
    "conv": lambda: nn.Conv2d(8, 12, 3),
    "conv of a strip": lambda: nn.Conv2d(8, 12, (3, 1)),
    "conv of a line": lambda: nn.Conv1d(8, 12, 3),
    "conv of a volume": lambda: nn.Conv3d(4, 6, 2),
    "conv of a point": lambda: nn.Conv2d(8, 12, 1),
}
LOHA = {"": {}, "rs": {"rs_lora": True}, "tucker": {"use_tucker": True}, "scalar": {"use_scalar": True}}
LOKR = {
    "": {},
    "both": {"decompose_both": True, "factor": 4},
    "whole": {"full_matrix": True, "factor": 2},
    "tucker": {"use_tucker": True, "factor": 2},
    "rs": {"rs_lora": True, "factor": 2},
    "unbalanced": {"unbalanced_factorization": True, "factor": 2},
}
CASES = [
    *((LohaModule, layer, r, options) for layer in LAYERS for r in (1, 2, 5) for options in LOHA.values()),
    *((LokrModule, layer, r, options) for layer in LAYERS for r in (1, 2, 5) for options in LOKR.values()),
]
CASES.remove((LokrModule, "conv of a strip", 1, LOKR["tucker"]))  # torch.kron (2.13) fails there in LyCORIS itself


def trained(kind, layer, r, seed=0, alpha=3.0, dtype=torch.float32, **options):
    """A module of LyCORIS whose factors are all random, its tensors as it saves them, and its update."""
    torch.manual_seed(seed)
    base = LAYERS[layer]().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = kind("lora_unet_x", base, lora_dim=r, alpha=alpha, **options).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter is not base.weight and parameter is not base.bias:
                parameter.copy_(torch.randn_like(parameter) / 2)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.custom_state_dict().items()}
    update = (module.get_weight(base.weight.shape) * module.scalar).detach()
    return tensors, update


def write(path, **modules):
    save_file({f"{m}.{part}": t for m, tensors in modules.items() for part, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize(("kind", "layer", "r", "options"), CASES, ids=str)
def test_updates_are_those_of_lycoris(tmp_path, kind, layer, r, options):
    name = "lora_unet_mid_block_x" if r > 1 else "lycoris_blocks_0_x"
    tensors, update = trained(kind, layer, r, **options)
    adapter = load_adapter(write(tmp_path / "x.safetensors", **{name: tensors}))
    (factors,) = adapter.values()
    info = adapter.infos[name]
    assert factors.A.shape == (info.rank, info.d_in)
    assert factors.B.shape == (info.d_out, info.rank)
    assert info.rank <= min(info.d_in, info.d_out)
    expected = update.flatten(1)
    if {"lokr_w1", "lokr_w2"} <= set(tensors) and "rs_lora" in options:
        # It trains with the factor sqrt(r), which it saves nowhere, and loads its own file without.
        expected = expected / r**0.5
    torch.testing.assert_close(factors.delta(), expected, rtol=1e-6, atol=float(1e-6 * expected.abs().max()))
    assert adapter.provenance.stored_as == ("LoHa" if kind is LohaModule else "LoKr",)
    if any(part.endswith(("t1", "t2")) or tensor.dim() > 2 for part, tensor in tensors.items()):
        assert info.kind == ModuleKind("conv", tuple(update.shape[2:]))


@pytest.mark.parametrize("kind", [LohaModule, LokrModule])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_computed_in_float32_or_better(tmp_path, kind, dtype):
    tensors, _ = trained(kind, "linear", 2)
    stored = {part: tensor.to(dtype) for part, tensor in tensors.items()}
    adapter = load_adapter(write(tmp_path / "x.safetensors", lora_unet_x=stored))
    assert adapter.dtype == dtype
    (factors,) = adapter.values()
    assert factors.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    part = {name: tensor.double() for name, tensor in stored.items()}
    if kind is LohaModule:
        expected = (part["hada_w1_a"] @ part["hada_w1_b"]) * (part["hada_w2_a"] @ part["hada_w2_b"])
    else:
        expected = torch.kron(part["lokr_w1"], part["lokr_w2_a"] @ part["lokr_w2_b"])
    torch.testing.assert_close(factors.delta().double(), expected * 1.5, rtol=1e-5, atol=1e-6)


def test_a_merge_of_kinds_is_the_sum(tmp_path):
    """LoHa, LoKr and LoRA of one layer, merged and written as plain LoRA."""
    loha, of_loha = trained(LohaModule, "linear", 2, seed=1)
    lokr, of_lokr = trained(LokrModule, "linear", 2, seed=2, factor=2)
    down, up = torch.randn(3, 12), torch.randn(18, 3)
    paths = [
        write(tmp_path / "loha.safetensors", lora_unet_x=loha),
        write(tmp_path / "lokr.safetensors", lora_unet_x=lokr),
        write(tmp_path / "lora.safetensors", lora_unet_x={"lora_down.weight": down, "lora_up.weight": up}),
    ]
    merged = ConcatMerger(weights=[0.2, 0.3, 0.5]).fit(load_adapters(paths)).merged_
    again = load_adapter(save_adapter(merged, tmp_path / "merged.safetensors"))
    assert (merged.provenance.stored_as, again.provenance.stored_as) == (("LoRA",), ("LoRA",))
    expected = 0.2 * of_loha + 0.3 * of_lokr + 0.5 * up @ down
    torch.testing.assert_close(again["lora_unet_x"].delta(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [LohaModule, LokrModule])
@pytest.mark.parametrize("layer", ["linear", "wide", "conv"])
def test_the_cut_has_the_error_of_the_dense_svd(tmp_path, kind, layer):
    tensors, update = trained(kind, layer, 3, dtype=torch.float64)
    adapter = load_adapter(write(tmp_path / "x.safetensors", lora_unet_x=tensors))
    (cut,) = SVDPruner(k=2).fit_transform([adapter])
    dense = update.double().flatten(1)
    error = (cut["lora_unet_x"].delta() - dense).norm()
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(dense)[2:].norm()), rel=1e-6)


@pytest.mark.parametrize("options", LOKR.values(), ids=LOKR)
@pytest.mark.parametrize("layer", ["linear", "wide", "conv", "conv of a line"])
@pytest.mark.parametrize("k", [1, 3, 0.6, RankBudget(mean=2)], ids=str)
def test_a_lokr_is_cut_by_the_svds_of_its_two_sides(tmp_path, monkeypatch, options, layer, k):
    """The error is that of the dense SVD, for every form, and A and B of the whole product are never made."""
    tensors, _ = trained(LokrModule, layer, 2, dtype=torch.float64, alpha=-3.0, **options)
    adapter = load_adapter(write(tmp_path / "x.safetensors", lora_unet_x=tensors))
    dense = adapter["lora_unet_x"].delta()  # the update itself is compared above
    expected = torch.linalg.svdvals(dense)
    monkeypatch.setattr(FileModules, "read", lambda *_: pytest.fail("the factors were made"))
    (cut,) = SVDPruner(k=k).fit_transform([adapter])
    rank = cut.infos["lora_unet_x"].rank
    error = float((cut["lora_unet_x"].delta() - dense).norm())
    assert rank < adapter.infos["lora_unet_x"].rank
    assert error == pytest.approx(float(expected[rank:].norm()), rel=1e-9)


def test_a_lokr_beside_other_kinds_is_cut(tmp_path):
    """Each by its own way, also where one of them lacks a module."""
    loha, of_loha = trained(LohaModule, "linear", 2, seed=1)
    lokr, of_lokr = trained(LokrModule, "linear", 2, seed=2, factor=2)
    paths = [
        write(tmp_path / "loha.safetensors", lora_unet_x=loha),
        write(
            tmp_path / "lokr.safetensors", lora_unet_x=lokr, lora_unet_y={part: t.clone() for part, t in lokr.items()}
        ),
    ]
    first, second = SVDPruner(k=1).fit_transform(load_adapters(paths))
    assert (list(first), list(second)) == (["lora_unet_x"], ["lora_unet_x", "lora_unet_y"])
    for cut, dense in ((first["lora_unet_x"], of_loha), (second["lora_unet_x"], of_lokr)):
        error = float((cut.delta() - dense).norm())
        assert error == pytest.approx(float(torch.linalg.svdvals(dense)[1:].norm()), rel=1e-4)
    torch.testing.assert_close(second["lora_unet_x"].delta(), second["lora_unet_y"].delta())
