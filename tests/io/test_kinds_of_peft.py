"""PEFT's directories of LoHa, LoKr and AdaLoRA that contradict themselves are refused by name."""

import pytest
import torch
from peft_files import pair, write_directory

from lorakit import load_adapter
from lorakit.exceptions import CorruptFileError, LorakitError, UnsupportedAdapterError

CORRUPT, UNSUPPORTED = CorruptFileError, UnsupportedAdapterError
ALPHA = {"lora_alpha": ..., "alpha": 4}
ADALORA = {"peft_type": "ADALORA", "init_r": 4}


def tensors(**shapes):
    rng = torch.Generator().manual_seed(0)
    return {f"base_model.model.enc.q.{part}": torch.randn(s, generator=rng) for part, s in shapes.items() if s}


def loha(**changes):
    pairs = {f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in {"a": (3, 2), "b": (2, 5)}.items()}
    return tensors(**{**pairs, **changes})


def lokr(**changes):
    return tensors(**{"lokr_w1": (2, 3), "lokr_w2": (4, 5), **changes})


def adalora(**changes):
    return tensors(**{"lora_A": (2, 5), "lora_B": (3, 2), "lora_E": (2, 1), **changes})


CUT = adalora(lora_A=(0, 5), lora_B=(3, 0), lora_E=(0, 1))
BAD = {
    "no alpha": (loha(), {"peft_type": "LOHA"}, UNSUPPORTED, "has no alpha"),
    "rank of the config": (loha(), {"peft_type": "LOHA", **ALPHA, "r": 3}, CORRUPT, "has rank 2, adapter_config.json"),
    "rank of a pattern": (loha(), {"peft_type": "LOHA", **ALPHA, "rank_pattern": {"q": 4}}, CORRUPT, "says 4"),
    "one tensor missing": (loha(hada_w2_a=None), {"peft_type": "LOHA", **ALPHA}, CORRUPT, "lacks hada_w2_a"),
    "another kind": (lokr(), {"peft_type": "LOHA", **ALPHA}, CORRUPT, "holds no tensors of LoHa"),
    "two kinds": (lokr() | loha(), {"peft_type": "LOHA", **ALPHA}, UNSUPPORTED, "lokr_w1' belongs to LoKr"),
    "plain factors too": (loha() | pair(), {"peft_type": "LOHA", **ALPHA}, CORRUPT, "a factor of plain LoRA"),
    "twice": (loha() | {k.removeprefix("base_model.model."): t for k, t in loha().items()},
              {"peft_type": "LOHA", **ALPHA}, CORRUPT, "has it twice"),
    "LoHa that says LoRA": (loha(), {}, UNSUPPORTED, "belongs to LoHa"),
    "no r to divide by": (lokr(), {"peft_type": "LOKR", **ALPHA, "r": ...}, UNSUPPORTED, "has no r"),
    "extra weights": (loha() | {"head.weight": torch.ones(2)}, {"peft_type": "LOHA", **ALPHA}, UNSUPPORTED, "extra"),
    "E missing": (adalora(lora_E=None), ADALORA, CORRUPT, "lacks lora_E"),
    "E of another rank": (adalora(lora_E=(3, 1)), ADALORA, CORRUPT, r"expected lora_A \(r, in\)"),
    "no init_r": (adalora(), {"peft_type": "ADALORA"}, UNSUPPORTED, "has no init_r"),
    "no rank kept": (CUT, ADALORA, UNSUPPORTED, "kept no rank"),
    "half cut away": (adalora(lora_A=(0, 5)), ADALORA, CORRUPT, "is empty"),
    "ranknum": (adalora(ranknum=(1,)), ADALORA, UNSUPPORTED, "ranknum' belongs to AdaLoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_directories(tmp_path, case):
    stored, config, error, message = BAD[case]
    path = write_directory(tmp_path, stored, **config)
    with pytest.raises(LorakitError, match=message) as caught:
        load_adapter(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


def test_the_config_scales_whole_matrices_too(tmp_path):
    """PEFT divides alpha by r where LyCORIS ignores both."""
    stored = lokr()
    adapter = load_adapter(write_directory(tmp_path, stored, peft_type="LOKR", lora_alpha=..., alpha=3, r=4))
    w1, w2 = stored.values()
    torch.testing.assert_close(adapter["enc.q"].delta(), 0.75 * torch.kron(w1, w2))


def test_adalora_of_alpha_0_divides_its_rank(tmp_path):
    adapter = load_adapter(write_directory(tmp_path, adalora(), **ADALORA, lora_alpha=0))
    assert adapter.scale("enc.q") == pytest.approx(2 / 4.00001)
