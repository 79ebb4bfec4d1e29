"""Kohya's files that are refused: what is not read here, and what is damaged."""

import pytest
import torch
from kohya_files import UNET, pair
from safetensors.torch import save_file

from lorakit import load_adapter
from lorakit.exceptions import CorruptFileError, UnsupportedAdapterError


@pytest.fixture
def write(tmp_path):
    def write_file(tensors, name="task", **metadata):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata or None)
        return tmp_path / f"{name}.safetensors"

    return write_file


def without(tensors, *parts):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(parts)}


UNSUPPORTED, CORRUPT = UnsupportedAdapterError, CorruptFileError
UP, MID = f"{UNET}.lora_up.weight", f"{UNET}.lora_mid.weight"
POINTWISE = pair(down=(2, 5, 1, 1), up=(3, 2, 1, 1))
SMALL = {MID: torch.zeros(2, 2, 3, 3)}
INTS = torch.ones(3, 2, 3, dtype=torch.int8)
BAD = {
    "OFT": ({f"{UNET}.oft_blocks": torch.zeros(2, 2)}, UNSUPPORTED, "OFT"),
    "full": ({f"{UNET}.diff_b": torch.zeros(2)}, UNSUPPORTED, "whole differences"),
    "norm": (pair() | {"lora_unet_norm.w_norm": torch.zeros(2)}, UNSUPPORTED, "normalisation"),
    "DoRA": (pair() | {f"{UNET}.dora_scale": torch.zeros(2)}, UNSUPPORTED, "DoRA"),
    "unknown part": (pair() | {f"{UNET}.lora_down.0.weight": torch.zeros(2)}, UNSUPPORTED, "not known here"),
    "alpha 0": (pair(alpha=0.0), UNSUPPORTED, "alpha is 0.*set it to what it was trained with"),
    "alpha NaN": (pair(alpha=torch.nan), CORRUPT, "is nan, expected a finite number"),
    "alpha a vector": (pair(alpha=[1.0, 2.0]), CORRUPT, "expected one number"),
    "no up": (without(pair(), "lora_up.weight"), CORRUPT, "lacks its B.*incomplete"),
    "no down": (without(pair(), "lora_down.weight"), CORRUPT, "lacks its A"),
    "only alpha": ({f"{UNET}.alpha": torch.tensor(1.0)}, CORRUPT, "lacks its A"),
    "ranks": (pair(up=(3, 4)), CORRUPT, "inner dimensions, 2 and 4"),
    "kernel in up": (pair(down=(2, 5, 1, 1), up=(3, 2, 3, 3)), CORRUPT, r"expected \(r, in\)"),
    "empty": (pair(down=(0, 5), up=(3, 0)), CORRUPT, "is empty"),
    "int": (pair() | {UP: INTS[..., 0].clone()}, UNSUPPORTED, "stored as I8"),
    "NaN": (pair(seed=1) | {UP: torch.full((3, 2), torch.nan)}, CORRUPT, "6 NaN or infinite"),
    "mid alone": (SMALL, CORRUPT, "has lora_mid, but not both"),
    "mid and a wide down": (pair(down=(2, 5, 3, 3), up=(3, 2, 1, 1)) | SMALL, CORRUPT, r"lora_mid \(2, 2, 3, 3\)"),
    "mid of other ranks": (pair(down=(4, 5, 1, 1), up=(3, 2, 1, 1)) | SMALL, CORRUPT, r"expected \(q, in"),
    "mid an int": (pair() | {MID: INTS}, UNSUPPORTED, "stored as I8"),
    "mid NaN": (POINTWISE | {MID: torch.full((2, 2, 3, 3), torch.inf)}, CORRUPT, "36 NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(write, case):
    tensors, error, message = BAD[case]
    path = write(tensors)
    with pytest.raises(error, match=message) as caught:
        load_adapter(path)[UNET]
    assert str(path) in str(caught.value)
