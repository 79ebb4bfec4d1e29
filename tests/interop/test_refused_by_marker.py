"""Files of PEFT's other methods, as the installed PEFT writes them, are refused by name even without their config."""

import warnings

import pytest
import torch
from torch import nn

from lorakit import load_adapter
from lorakit.exceptions import UnsupportedAdapterError
from lorakit.io.formats._unsupported import is_marked

peft = pytest.importorskip("peft")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.interop

# Config class, what it needs, and a word of the message
METHODS = {
    "LoHa": ("LoHaConfig", {"r": 2}, "LoHa"),
    "LoKr": ("LoKrConfig", {"r": 2}, "LoKr"),
    "OFT": ("OFTConfig", {"r": 2, "oft_block_size": 0}, "OFT"),
    "BOFT": ("BOFTConfig", {"boft_block_size": 2}, "BOFT"),
    "IA3": ("IA3Config", {"feedforward_modules": []}, r"\(IA\)3"),
    "AdaLoRA": ("AdaLoraConfig", {"total_step": 10, "tinit": 0, "tfinal": 1}, "AdaLoRA"),
    "VeRA": ("VeraConfig", {"r": 2}, "VeRA"),
    "RandLoRA": ("RandLoraConfig", {"r": 2}, "RandLoRA"),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 4}, "FourierFT"),
    "WaveFT": ("WaveFTConfig", {"n_frequency": 8}, "WaveFT"),
    "VB-LoRA": ("VBLoRAConfig", {"r": 2, "num_vectors": 4, "vector_length": 4, "topk": 1}, "VB-LoRA"),
    "HRA": ("HRAConfig", {"r": 2}, "HRA"),
    "MiSS": ("MissConfig", {"r": 2}, "MiSS"),
    "SHiRA": ("ShiraConfig", {"r": 2}, "SHiRA"),
    "C3A": ("C3AConfig", {"block_size": 4}, "C3A"),
    "RoAd": ("RoadConfig", {"variant": "road_1", "group_size": 8}, "RoAd"),
    "GraLoRA": ("GraloraConfig", {"r": 4, "gralora_k": 2}, "GraLoRA"),
    "DeLoRA": ("DeloraConfig", {"r": 2}, "DeLoRA"),
    "HiRA": ("HiraConfig", {"r": 2}, "HiRA"),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}, "DoRA"),
    "lora_bias": ("LoraConfig", {"r": 2, "lora_bias": True}, "lora_bias"),
    "layer norm tuning": ("LNTuningConfig", {"target_modules": ["norm"]}, "layer norm tuning"),
}


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


@pytest.mark.parametrize(("name", "options", "kind"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", ""])
def test_as_peft_writes_them(tmp_path, name, options, kind, prefix):
    config = getattr(peft, name, None)
    if config is None:
        pytest.skip(f"this PEFT has no {name}")
    if prefix in ("transformer.", "diffusion_model.") and kind in ("LoHa", "LoKr"):
        pytest.skip("these are read: tests/io/test_kinds.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Tiny(), config(**{"target_modules": ["first", "second"], **options}))
        state = peft.get_peft_model_state_dict(model)
    tensors = {
        prefix + key.removeprefix("base_model.model."): torch.as_tensor(tensor).clone().contiguous()
        for key, tensor in state.items()
    }
    assert any(is_marked(key) for key in tensors), list(tensors)
    path = tmp_path / "x.safetensors"
    safetensors.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UnsupportedAdapterError, match=f"belongs to .*{kind}"):
        load_adapter(path)
