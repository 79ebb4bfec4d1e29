"""Kinds of adapter that are refused: they are recognised by the names of their tensors, in every format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...exceptions import Remedy, Setting, UnsupportedAdapterError

__all__ = ["is_marked", "refuse_markers"]

_TRAIN_PLAIN = "train a plain LoRA instead"
_EXTRACT = "add it to its base model and extract a plain LoRA from the difference, or train one"
_WHERE_READ = "which is read in files of kohya, ComfyUI and diffusers, and in PEFT directories whose config says so"
_WITH_OPTION = "which files of kohya, ComfyUI and diffusers may have (differences='keep')"
_ARE_READ = "which are read in files of kohya and ComfyUI"
_NO_WEIGHTS = "it changes no weight of the base model; train a plain LoRA instead"


class _Kind(NamedTuple):
    names: str  # parts of a key between dots; PEFT may put the adapter's name and "weight" after them
    text: str
    remedy: Remedy = _EXTRACT
    ends: str = ""  # for names that mean other things elsewhere: only at the end of a key


# Names as PEFT, LyCORIS, diffusers and ComfyUI write them. Kinds whose tensors stand beside plain factors come first:
# the error names what makes the file special.
_KINDS = (
    _Kind(
        "dora_scale lora_magnitude_vector",
        "DoRA, which also rescales the base weights",
        (
            Setting("base"),
            ", the model that it was trained on: its update is then read, at full rank; or ",
            _TRAIN_PLAIN,
        ),
    ),
    _Kind("lora_E ranknum", "AdaLoRA, which is read in PEFT directories whose config says so", _TRAIN_PLAIN),
    _Kind(
        "",
        "lora_bias, a bias trained beside B",
        (
            Setting("differences", "keep"),
            " for a diffusers file, or a PEFT directory whose config says lora_bias; ",
            Setting("differences", "drop"),
            " to leave it out; or ",
            _TRAIN_PLAIN,
        ),
        ends="lora_A.bias lora_B.bias lora_down.bias lora_up.bias",
    ),
    _Kind(
        "scaled_fp8",
        "quantized weights, which stand for their numbers times a scale of their own",
        "convert the file to floating point (dequantize it) first",
        ends="scale_weight weight_scale weight_scale_inv scale_input input_scale",
    ),
    _Kind("reshape_weight", "a LoRA that also enlarges the base weight", _TRAIN_PLAIN),
    _Kind("hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2", f"LoHa, {_WHERE_READ}"),
    _Kind("lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t1 lokr_t2", f"LoKr, {_WHERE_READ}"),
    _Kind("boft_R boft_s", "BOFT, which rotates the base weights"),
    _Kind("oft_blocks oft_diag oft_R oft_embedding_R", "OFT or BOFT, which rotates the base weights"),
    _Kind(
        "glora_A glora_B glora_C glora_D glora_E",
        "GLoRA, whose update depends on the base weights",
        ends="a1.weight a2.weight b1.weight b2.weight bm.weight",
    ),
    _Kind("", f"whole differences of weights, {_ARE_READ}", ends="diff"),
    _Kind("", f"whole differences of biases, {_WITH_OPTION}, or whole weights", ends="diff_b set_weight"),
    _Kind("", f"differences of normalisation weights, {_WITH_OPTION}", _TRAIN_PLAIN, ends="w_norm b_norm"),
    _Kind("on_input ia3_l", "(IA)3, which rescales activations"),
    _Kind("lambda_layer", "T-LoRA, whose ranks depend on the diffusion step", _TRAIN_PLAIN),
    _Kind("bias_indices bias_values bias_size", "sparse biases beside the factors", _TRAIN_PLAIN),
    _Kind(
        "vera_lambda_b vera_lambda_d vera_A vera_B pvera_lambda_b pvera_lambda_d",
        "VeRA, which is read in PEFT directories whose config says so",
    ),
    _Kind("randlora_lambda randlora_gamma randlora_A randlora_B", "RandLoRA, random matrices that it scales"),
    _Kind("vblora_logits_A vblora_logits_B vblora_vector_bank", "VB-LoRA, factors made from a bank of vectors"),
    _Kind("fourierft_spectrum", "FourierFT, whose update is a Fourier transform"),
    _Kind("waveft_spectrum", "WaveFT, whose update is a wavelet transform"),
    _Kind("c3a_kernel", "C3A, whose update is a circular convolution"),
    _Kind("hra_u", "HRA, which reflects the base weights"),
    _Kind("road_theta road_alpha", "RoAd, which rotates activations"),
    _Kind("psoft_R", "PSOFT, which rotates the base weights"),
    _Kind("bone_block miss_block", "Bone or MiSS, which are read in PEFT directories whose config says so"),
    _Kind("shira_weight", "SHiRA, whose update is sparse"),
    _Kind("gralora_A gralora_B gralora_A_general gralora_B_general", "GraLoRA, a small LoRA for each block"),
    _Kind("hira_A hira_B hira_embedding_A hira_embedding_B", "HiRA, whose update multiplies the base weights"),
    _Kind("delora_A delora_B delora_lambda", "DeLoRA, whose update is normalised"),
    _Kind("osf_svd_params osf_U_low osf_V_low osf_S_low", "OSF, which trains singular vectors of the base weights"),
    _Kind("tinylora_v unilora_theta_d frod_lambda_l frod_lambda_s_values", "TinyLoRA, Uni-LoRA or FRoD"),
    _Kind("deft_P deft_R peanut_A peanut_B beft_bias", "DEFT, PEANuT or BEFT"),
    _Kind("adamss_A adamss_B lily_A lily_B lily_router supertuning_values", "AdaMSS, Lily or SuperTuning"),
    _Kind("poly_lora_A poly_lora_B poly_router", "Poly, which mixes factors by task", _TRAIN_PLAIN),
    _Kind("xlora_classifier internal_xlora_classifier", "X-LoRA, which mixes adapters by token", _TRAIN_PLAIN),
    _Kind("ln_tuning_layers", "layer norm tuning, which replaces weights", _TRAIN_PLAIN),
    _Kind("prompt_embeddings prefix_task_cols prefix_task_rows", "prompt or prefix tuning", _NO_WEIGHTS),
    _Kind("adaption_prompt adaption_gate", "LLaMA-Adapter prompts", _NO_WEIGHTS),
)
_PARTS = {name: i for i, kind in enumerate(_KINDS) for name in kind.names.split()}
_ENDS = {name: i for i, kind in enumerate(_KINDS) for name in kind.ends.split()}


def refuse_markers(path: Path, keys: Iterable[str]) -> None:
    """Raise if a key shows that a file holds, alone or beside plain LoRA, an adapter of a kind that is refused.

    Parameters
    ----------
    path : Path
        The file, for the message.
    keys : iterable of str
        Names of its tensors: all of them, or those that a format does not know.

    Raises
    ------
    UnsupportedAdapterError
        Naming the kind, the first such key and the way out.

    Examples
    --------
    >>> refuse_markers(Path("x.safetensors"), ["lora_unet_mid.lora_up.weight", "lora_unet_mid.alpha"])
    >>> refuse_markers(Path("x.safetensors"), ["lora_unet_mid.hada_w1_a"])
    Traceback (most recent call last):
        ...
    lorakit.exceptions.UnsupportedAdapterError: x.safetensors: 'lora_unet_mid.hada_w1_a' belongs to LoHa, ...
    """
    first: dict[int, str] = {}
    for key in keys:
        for kind in _kinds_of(key):
            first.setdefault(kind, key)
    if first:
        kind = min(first)
        raise UnsupportedAdapterError(
            f"{first[kind]!r} belongs to {_KINDS[kind].text}",
            path=path,
            expected="LoRA factors A and B only",
            remedy=_KINDS[kind].remedy,
        )


def is_marked(key: str) -> bool:
    """Whether a key shows an adapter of another kind."""
    return bool(_kinds_of(key))


def _kinds_of(key: str) -> list[int]:
    parts = key.split(".")
    found = [_PARTS[part] for part in parts[-3:] if part in _PARTS]
    return found + [_ENDS[end] for end in (parts[-1], ".".join(parts[-2:])) if end in _ENDS and len(parts) > 1]
