"""What vLLM, SGLang, TGI, LoRAX, llama.cpp and PEFT do with a PEFT directory, read from their source.

================  ===================================  ==========================================================
program           as of                                read in
================  ===================================  ==========================================================
vLLM              0.33.0                               ``vllm/lora/peft_helper.py``, ``lora_model.py``,
                                                       ``utils.py``, ``vllm/config/lora.py``
SGLang            0.5.23                               ``srt/lora/lora_config.py``, ``lora.py``,
                                                       ``lora_manager.py``, ``mem_pool.py``, ``utils.py``
TGI               commit 45d95bd                       ``adapters/lora.py``, ``utils/adapter.py``
LoRAX             commit 03679f3                       ``adapters/lora.py``, ``utils/sgmv.py``
llama.cpp         commit 0b03ada                       ``convert_lora_to_gguf.py``, ``llama-adapter.h``
PEFT              0.21.2                               ``tuners/lora/model.py``; run in the tests
================  ===================================  ==========================================================
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...._few import few
from .._padding import SERVER_RANKS
from .._servers import Server, ServerCheck, WrittenFile, no_rules

_LAYER = re.compile(r"layers\.(\d+)\.")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_ORDER = (*_ATTENTION, *_MLP)  # in which TGI loads kinds of layers


def _vllm(file: WrittenFile, check: ServerCheck) -> None:
    """Scales and ranks as PEFT has them, patterns included (from_config, get_rank_and_scaling)."""
    widest = max([file.r, file.rank, *_ranks_of(file.config)])
    room = next((rank for rank in SERVER_RANKS if rank >= widest), None)
    if room is None:
        check.refuse(f"takes ranks up to {SERVER_RANKS[-1]}, this is {widest:g}: lorakit prune -k {SERVER_RANKS[-1]}")
    elif room > 16:  # LoRAConfig.max_lora_rank
        check.setting = f"--max-lora-rank {room}"
    other = sorted(set(file.extra_weights) - {"classifier", "score"})
    if other:
        check.refuse(f"takes no modules_to_save but classifier and score: {few(other, 2)}")
    if file.biases:  # parse_fine_tuned_lora_name
        check.refuse(f"takes no biases beside B (lora_bias): {few(file.biases, 2)}")
    if file.kinds("conv"):
        check.refuse(f"has LoRA for linear layers and embeddings, not for convolutions: {few(file.kinds('conv'), 2)}")
    for kind in ("embedding", "expert"):
        if file.kinds(kind):
            check.notes.append(f"only for models whose {kind}s take LoRA: {few(file.kinds(kind), 2)}")
    if file.config.get("rank_pattern") or file.config.get("alpha_pattern"):
        check.notes.append("older versions ignore rank_pattern and alpha_pattern: for these use --layout portable")


def _sglang(file: WrittenFile, check: ServerCheck) -> None:
    """One scale for all, lora_alpha / r; tensors of rank r alone; projections are joined by name (lora.py)."""
    targets = file.config.get("target_modules")
    if isinstance(targets, str) and targets not in ("all", "all-linear"):
        check.refuse("takes no regular expression as target_modules: expects full paths, which a list has")
    uneven = [module for module, rank in file.ranks.items() if rank != file.r]
    if uneven:
        check.refuse(f"takes one rank for all modules, r={file.r:g}: {few(uneven, 2)}; write it with --layout portable")
    _one_scale(file, check, lambda _: file.alpha / file.r, "computes every scale as lora_alpha / r")
    if file.kinds("conv"):
        check.refuse(f"has no LoRA for convolutions: {few(file.kinds('conv'), 2)}")
    outside = [
        module
        for module in file.kinds("linear")
        if not _LAYER.search(module + ".") and not {"embed_tokens", "lm_head"} & set(module.split("."))
    ]
    if outside:
        check.mistake(f"leaves out modules that are not named like layers.0.x: {few(outside, 2)}")
    for stem, leaves in _by_stem(file.ranks).items():
        if "q_proj" in leaves and "v_proj" not in leaves:
            check.refuse(f"needs v_proj where q_proj is: {stem}.q_proj")
            break
    alone = [
        f"{stem}.{leaf}"
        for stem, leaves in _by_stem(file.ranks).items()
        for leaf, needed in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj"))
        if leaf in leaves and needed not in leaves
    ]
    if alone:
        check.mistake(f"leaves out k_proj and v_proj without q_proj, and up_proj without gate_proj: {few(alone, 2)}")
    if file.extra_weights:
        check.mistake(f"leaves out modules_to_save: {few(file.extra_weights, 2)}")
    if file.biases:
        check.mistake(f"has no place for biases beside B (lora_bias): {few(file.biases, 2)}")
    if file.kinds("expert"):
        check.notes.append(f"only for models whose experts take LoRA: {few(file.kinds('expert'), 2)}")
    check.setting = f"--max-lora-rank {file.rank}, or this adapter among its --lora-paths"


def _tgi(file: WrittenFile, check: ServerCheck) -> None:
    """Llama-like names; a kind of layer in all layers or not at all; one scale (prepare_weights)."""
    _stacked(file, check)
    names = re.compile(rf"model\.layers\.\d+\.(self_attn\.({'|'.join(_ATTENTION)})|mlp\.({'|'.join(_MLP)}))")
    outside = [module for module in file.ranks if not names.fullmatch(module)]
    if outside:
        check.mistake(
            "leaves out modules that are not named like model.layers.0.self_attn.q_proj or model.layers.0.mlp.up_proj: "
            f"{few(outside, 2)}"
        )


def _lorax(file: WrittenFile, check: ServerCheck) -> None:
    """As TGI, whose code comes from it, with names that depend on the model."""
    _stacked(file, check)
    for kind in ("conv", "embedding", "expert"):
        if file.kinds(kind):
            check.mistake(f"leaves out everything but linear layers: {few(file.kinds(kind), 2)}")


def _stacked(file: WrittenFile, check: ServerCheck) -> None:
    """What TGI and LoRAX share: LoraWeights stacks one kind of layer over all layers, and pads its rank."""
    ranks: defaultdict[str, set[int]] = defaultdict(set)
    layers: defaultdict[str, set[int]] = defaultdict(set)
    for module, rank in file.ranks.items():
        kind = module.rpartition(".")[2]
        ranks[kind].add(rank)
        layers[kind] |= {int(number) for number in _LAYER.findall(module + ".")}
    uneven = sorted(kind for kind, found in ranks.items() if len(found) > 1)
    if uneven:
        check.refuse(f"takes one rank for all layers of a kind: {few(uneven, 2)}; write it with --layout portable")

    def scale(r: float) -> float:
        return file.alpha / (math.sqrt(r) if file.rslora else r)

    _one_scale(file, check, lambda _: scale(file.r), "computes every scale from r and lora_alpha, without patterns")
    n_layers = 1 + max((number for found in layers.values() for number in found), default=-1)
    gaps = sorted(kind for kind, found in layers.items() if len(found) < n_layers)
    if n_layers and gaps:
        check.mistake(f"leaves out a kind of layer that is not in all {n_layers} layers: {few(gaps, 2)}")
    elif n_layers:
        check.notes.append("leaves out a kind of layer that is not in every layer of the model")
    if check.loads == "yes":
        # config.r becomes the padded rank after each kind, and the scale of the next is computed from it
        r, wrong = file.r, []
        for kind in sorted(ranks, key=lambda kind: (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), kind)):
            right = file.adapter.scale(next(m for m in file.ranks if m.rpartition(".")[2] == kind)) or 1.0
            wrong += [kind] if not math.isclose(scale(r), right, rel_tol=1e-6) else []
            r = _padded(max(ranks[kind]))
        if wrong:
            check.mistake(
                "pads ranks to 8 or a multiple of 16, and takes a padded rank for the scale of the kinds of layer "
                f"after it: {few(wrong, 2)}; write it with --pad-to {_padded(file.rank)}"
            )
    if file.extra_weights:
        check.mistake(f"leaves out modules_to_save: {few(file.extra_weights, 2)}")
    if file.biases:  # map_weights_for_model takes A and B
        check.mistake(f"leaves out biases beside B (lora_bias): {few(file.biases, 2)}")


def _padded(rank: int) -> int:
    """Return the rank that the kernels of TGI and LoRAX work with, on one GPU (pad_rank)."""
    return 8 if rank <= 8 else -(-rank // 16) * 16


def _llama_cpp(file: WrittenFile, check: ServerCheck) -> None:
    """One lora_alpha for all; the scale is it over the rank of each tensor (get_scale). Other tensors are an error."""
    _one_scale(file, check, lambda module: file.alpha / file.ranks[module], "computes every scale as lora_alpha / rank")
    for kind in ("conv", "expert"):
        if file.kinds(kind):
            check.refuse(f"has no LoRA for layers of the kind {kind!r}: {few(file.kinds(kind), 2)}")
    if file.extra_weights:
        check.refuse(f"stops at modules_to_save: {few(file.extra_weights, 2)}")
    if file.biases:
        check.refuse(f"stops at biases beside B (lora_bias): {few(file.biases, 2)}")
    if not file.config.get("base_model_name_or_path"):
        check.setting = "--base FOLDER"
        check.notes.append("needs the config of the base model, whose name the adapter lacks")


def _one_scale(file: WrittenFile, check: ServerCheck, rule: Callable[[str], float], what: str) -> None:
    wrong = file.of_scale(rule)
    if wrong:
        check.mistake(f"{what}, which is wrong for {few(wrong, 2)}; write it again with lorakit convert")


def _ranks_of(config: Mapping[str, Any]) -> list[float]:
    pattern = config.get("rank_pattern")
    return [rank for rank in pattern.values() if isinstance(rank, int | float)] if isinstance(pattern, dict) else []


def _by_stem(modules: Iterable[str]) -> dict[str, set[str]]:
    """Modules of layers by what stands before the last part of their names."""
    stems: defaultdict[str, set[str]] = defaultdict(set)
    for module in modules:
        stem, _, leaf = module.rpartition(".")
        if _LAYER.search(module):
            stems[stem].add(leaf)
    return stems


_PEFT = ("peft",)
SERVERS = (
    Server("vLLM", "0.33.0", _vllm, _PEFT),
    Server("SGLang", "0.5.23", _sglang, _PEFT),
    Server("TGI", "45d95bd", _tgi, _PEFT),
    Server("LoRAX", "03679f3", _lorax, _PEFT),
    Server("llama.cpp", "0b03ada", _llama_cpp, _PEFT),
    # PEFT is the reference: there is nothing to check
    Server("PEFT", "0.21.2", no_rules, _PEFT, ("LoRA", "LoHa", "LoKr", "AdaLoRA")),
)
