"""VeRA and MiSS in PEFT directories: what contradicts itself or the base is refused by name."""

import pickle

import pytest
import torch
from peft_files import write_directory

from lorakit import load_adapter
from lorakit.exceptions import CorruptFileError, IncompatibleAdaptersError, LorakitError, UnsupportedAdapterError

CORRUPT, UNSUPPORTED, INCOMPATIBLE = CorruptFileError, UnsupportedAdapterError, IncompatibleAdaptersError
VERA = {"peft_type": "VERA", "lora_alpha": ..., "r": 2}
MISS = {"peft_type": "MISS", "lora_alpha": ..., "r": 2}
BASE = {"enc.q.weight": torch.ones(4, 6), "enc.k.weight": torch.ones(4, 5)}


def vera(**changes):
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "base_model.vera_A": (2, 6),
        "base_model.vera_B": (4, 2),
        **{f"base_model.model.enc.{m}.vera_lambda_b": (4,) for m in "qk"},
        **{f"base_model.model.enc.{m}.vera_lambda_d": (2,) for m in "qk"},
    }
    changed = {next(key for key in shapes if key.endswith(end)): shape for end, shape in changes.items()}
    return {key: torch.randn(shape, generator=rng) for key, shape in {**shapes, **changed}.items() if shape}


def miss(shape=(2, 4)):
    return {"base_model.model.enc.q.miss_block": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


BAD = {
    "no base": (vera(), VERA, None, UNSUPPORTED, "is a VeRA: its files do not say how wide.*pass base="),
    "no vera_A": (vera(vera_A=None), VERA, BASE, CORRUPT, "has 'base_model.vera_B' but lacks vera_A"),
    "no shared": (vera(vera_A=None, vera_B=None), VERA, BASE, CORRUPT, "save_projection in the config says that it"),
    "no seed": (vera(vera_A=None, vera_B=None), {**VERA, "save_projection": False}, BASE, UNSUPPORTED,
                "projection_prng_key is None"),
    "no vector": (vera(lambda_b=None), VERA, BASE, CORRUPT, "lacks vera_lambda_b"),
    "vector of two axes": (vera(lambda_b=(4, 1)), VERA, BASE, CORRUPT, r"expected vera_lambda_b \(out\)"),
    "another rank": (vera(lambda_d=(3,)), VERA, BASE, CORRUPT, "has rank 3, adapter_config.json says 2"),
    "shared rank": (vera(vera_A=(3, 6)), VERA, BASE, CORRUPT, r"vera_A \(3, 6\), vera_B \(4, 2\)"),
    "shared vector": (vera(vera_B=(4,)), VERA, BASE, CORRUPT, r"vera_B \(4,\)"),
    "shared too narrow": (vera(vera_A=(2, 5)), VERA, BASE, INCOMPATIBLE, "has 6 inputs in the base, and vera_A has 5"),
    "shared too short": (vera(vera_B=(3, 2)), VERA, BASE, CORRUPT, r"expected \(r, in or more\)"),
    "shared of integers": (vera() | {"base_model.vera_A": torch.ones(2, 6, dtype=torch.int8)}, VERA, BASE, UNSUPPORTED,
                           "the shared matrices: 'base_model.vera_A' is stored as I8"),
    "other outputs": (vera(), VERA, {**BASE, "enc.q.weight": torch.ones(3, 6)}, INCOMPATIBLE, "has 4 outputs"),
    "no such module": (vera(), VERA, {"enc.q.weight": torch.ones(4, 6)}, INCOMPATIBLE, "no tensor 'enc.k.weight'"),
    "a convolution": (vera(), VERA, {**BASE, "enc.q.weight": torch.ones(4, 6, 3, 3)}, INCOMPATIBLE, "a linear layer"),
    "plain factors too": (vera() | {"base_model.model.x.lora_A.weight": torch.ones(1, 3)}, VERA, BASE, CORRUPT,
                          "a factor of plain LoRA"),
    "MiSS without base": (miss(), MISS, None, UNSUPPORTED, "is a MiSS: its files do not say how wide"),
    "MiSS of one axis": (miss((4,)), MISS, BASE, CORRUPT, r"expected miss_block \(r, out\)"),
    "MiSS of another rank": (miss((3, 4)), MISS, BASE, CORRUPT, "has rank 3, adapter_config.json says 2"),
    "MiSS of other outputs": (miss((2, 3)), MISS, BASE, INCOMPATIBLE, "has 2 inputs and 3 outputs, and the module"),
    "MiSS mini": (miss((2, 3)), {**MISS, "init_weights": "mini", "mini_r": 3}, BASE, INCOMPATIBLE, "=.mini., mini_r=3"),
    "MiSS wider than the module": (miss((7, 4)), {**MISS, "r": 7}, BASE, INCOMPATIBLE, "has 7 inputs"),
    "bat of two axes": (miss(), {**MISS, "init_weights": "bat"}, BASE, CORRUPT, "lacks a third axis"),
    "three axes that are no bat": (miss((2, 2, 2)), MISS, BASE, CORRUPT, "has a third axis"),
    "bat that does not tile": (miss((2, 2, 2)), {**MISS, "init_weights": "bat"}, {"enc.q.weight": torch.ones(4, 5)},
                               INCOMPATIBLE, "expected blocks that make up the module"),
    "bat of other blocks": (miss((2, 2, 3)), {**MISS, "init_weights": "bat"}, BASE, CORRUPT, r"\(out / r, r, r\)"),
    "NaN": ({k: t * torch.nan for k, t in miss().items()}, MISS, BASE, CORRUPT, "has 8 NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_directories(tmp_path, case):
    stored, config, base, error, message = BAD[case]
    path = write_directory(tmp_path, stored, **config)
    with pytest.raises(LorakitError, match=message) as caught:
        load_adapter(path, base=base)["enc.q"]
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


def test_the_formula(tmp_path):
    stored = vera()
    path = write_directory(tmp_path, stored, **VERA)
    a, b = stored["base_model.vera_A"], stored["base_model.vera_B"]
    for base in (BASE, {f"model.{name}": tensor for name, tensor in BASE.items()}):  # behind another beginning
        adapter = load_adapter(path, base=base)
        for module, d_in in (("enc.q", 6), ("enc.k", 5)):
            out, r = (stored[f"base_model.model.{module}.vera_lambda_{part}"] for part in "bd")
            expected = torch.diag(out) @ b @ torch.diag(r) @ a[:, :d_in]
            torch.testing.assert_close(adapter[module].delta(), expected)
            again = pickle.loads(pickle.dumps(adapter.select([module])))
            assert torch.equal(again[module].A, adapter[module].A)


def test_one_module_has_the_width_of_the_shared_matrix(tmp_path):
    stored = {key: tensor for key, tensor in vera().items() if ".k." not in key}
    (info,) = load_adapter(write_directory(tmp_path, stored, **VERA)).infos.values()
    assert (info.rank, info.d_in, info.d_out) == (2, 6, 4)
