"""Which programs can load an adapter's files as they are, and whether they then hold the same updates.

A checklist of what those programs do with a file, read from their source; none of them is run. Each rule names where it
was read. What depends on the base model, which lorakit never sees, is a note.

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
diffusers         0.42.1                               ``utils/peft_utils.py``, ``loaders/``
MLX               mlx-lm 0.32.2                        ``tuner/utils.py``
================  ===================================  ==========================================================
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ..adapters import Adapter
from .formats._padding import SERVER_RANKS

__all__ = ["ServerCheck", "check_servers"]

_LAYER = re.compile(r"layers\.(\d+)\.")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_ORDER = (*_ATTENTION, *_MLP)  # in which TGI loads kinds of layers


@dataclass
class ServerCheck:
    """What one program does with one adapter's files.

    Parameters
    ----------
    server, version : str
        The program, and the version whose source was read.
    loads : {'yes', 'no', 'wrong'}
        'wrong': it loads the files without a word, and holds other updates than they do.
    setting : str or None
        What it has to be started with to take an adapter of this rank.
    reasons : list of str
        Why not.
    notes : list of str
        What else there is to know.
    """

    server: str
    version: str
    loads: Literal["yes", "no", "wrong"] = "yes"
    setting: str | None = None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, reason: str) -> None:
        """It says that it cannot load the files."""
        self.loads = "no"
        self.reasons.append(reason)

    def mistake(self, reason: str) -> None:
        """It loads them, and does not say what is lost."""
        if self.loads == "yes":
            self.loads = "wrong"
        self.reasons.append(reason)


class _File:
    """What the rules look at."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.format = adapter.provenance.format
        self.config = _config(adapter)
        self.ranks = {module: info.rank for module, info in adapter.infos.items()}
        self.rank = max(self.ranks.values(), default=0)
        self.r = self._number("r", float(self.rank))
        self.alpha = self._number("lora_alpha", self.r)
        self.rslora = bool(self.config.get("use_rslora"))

    def _number(self, name: str, default: float) -> float:
        value = self.config.get(name)
        return float(value) if isinstance(value, int | float) and value else default

    def kinds(self, kind: str) -> list[str]:
        """Modules of a kind of layer: linear, conv, embedding, expert."""
        return [module for module, info in self.adapter.infos.items() if info.kind.name == kind]

    def of_scale(self, rule: Callable[[str], float]) -> list[str]:
        """Modules whose scale a rule gets wrong."""
        return [
            module
            for module in self.adapter
            if not math.isclose(self.adapter.scale(module) or 1.0, rule(module), rel_tol=1e-6)
        ]

    @property
    def extra_weights(self) -> list[str]:
        """Modules that were trained in whole."""
        kept = self.config.get("modules_to_save")
        return [str(name) for name in kept] if isinstance(kept, list) else []


def check_servers(adapter: Adapter) -> list[ServerCheck]:
    """Say which programs can load the files that an adapter was read from.

    Parameters
    ----------
    adapter : Adapter
        From :func:`lorakit.load_adapter`.

    Returns
    -------
    list of ServerCheck
        One a program: vLLM, SGLang, TGI, LoRAX, llama.cpp, PEFT, diffusers, MLX.

    Raises
    ------
    ValueError
        If the adapter is not one that was read from files.

    Examples
    --------
    >>> import tempfile
    >>> from lorakit import load_adapter, save_adapter
    >>> from lorakit.io.servers import check_servers
    >>> from lorakit.testing import make_adapters
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_adapter(make_adapters(1, ranks=20, d_in=64, d_out=64)[0], f"{folder}/a")
    ...     vllm = check_servers(load_adapter(path))[0]
    >>> vllm.loads, vllm.setting
    ('yes', '--max-lora-rank 32')
    """
    known = adapter.provenance
    if known.operations or len(known.sources) != 1 or known.sources[0].path is None:
        raise ValueError(f"{adapter.name}: was not read from files; save it, and load what was written")
    file = _File(adapter)
    checks = []
    for server, version, formats, rules in _SERVERS:
        check = ServerCheck(server, version)
        if file.format in formats:
            rules(file, check)
        else:
            wanted = " or ".join(f"--to {name}" for name in formats[:2])
            check.refuse(f"does not read {file.format} files: lorakit convert {wanted}")
        checks.append(check)
    return checks


def _vllm(file: _File, check: ServerCheck) -> None:
    """Scales and ranks as PEFT has them, patterns included (from_config, get_rank_and_scaling)."""
    widest = max([file.r, file.rank, *_ranks_of(file.config)])
    room = next((rank for rank in SERVER_RANKS if rank >= widest), None)
    if room is None:
        check.refuse(f"takes ranks up to {SERVER_RANKS[-1]}, this is {widest:g}: lorakit prune -k {SERVER_RANKS[-1]}")
    elif room > 16:  # LoRAConfig.max_lora_rank
        check.setting = f"--max-lora-rank {room}"
    other = sorted(set(file.extra_weights) - {"classifier", "score"})
    if other:
        check.refuse(f"takes no modules_to_save but classifier and score: {_some(other)}")
    if file.kinds("conv"):
        check.refuse(f"has LoRA for linear layers and embeddings, not for convolutions: {_some(file.kinds('conv'))}")
    for kind in ("embedding", "expert"):
        if file.kinds(kind):
            check.notes.append(f"only for models whose {kind}s take LoRA: {_some(file.kinds(kind))}")
    if file.config.get("rank_pattern") or file.config.get("alpha_pattern"):
        check.notes.append("older versions ignore rank_pattern and alpha_pattern: for these use --layout portable")


def _sglang(file: _File, check: ServerCheck) -> None:
    """One scale for all, lora_alpha / r; tensors of rank r alone; projections are joined by name (lora.py)."""
    targets = file.config.get("target_modules")
    if isinstance(targets, str) and targets not in ("all", "all-linear"):
        check.refuse("takes no regular expression as target_modules: expects full paths, which a list has")
    uneven = [module for module, rank in file.ranks.items() if rank != file.r]
    if uneven:
        check.refuse(f"takes one rank for all modules, r={file.r:g}: {_some(uneven)}; write it with --layout portable")
    _one_scale(file, check, lambda _: file.alpha / file.r, "computes every scale as lora_alpha / r")
    if file.kinds("conv"):
        check.refuse(f"has no LoRA for convolutions: {_some(file.kinds('conv'))}")
    outside = [
        module
        for module in file.kinds("linear")
        if not _LAYER.search(module + ".") and not {"embed_tokens", "lm_head"} & set(module.split("."))
    ]
    if outside:
        check.mistake(f"leaves out modules that are not named like layers.0.x: {_some(outside)}")
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
        check.mistake(f"leaves out k_proj and v_proj without q_proj, and up_proj without gate_proj: {_some(alone)}")
    if file.extra_weights:
        check.mistake(f"leaves out modules_to_save: {_some(file.extra_weights)}")
    if file.kinds("expert"):
        check.notes.append(f"only for models whose experts take LoRA: {_some(file.kinds('expert'))}")
    check.setting = f"--max-lora-rank {file.rank}, or this adapter among its --lora-paths"


def _tgi(file: _File, check: ServerCheck) -> None:
    """Llama-like names; a kind of layer in all layers or not at all; one scale (prepare_weights)."""
    _stacked(file, check)
    names = re.compile(rf"model\.layers\.\d+\.(self_attn\.({'|'.join(_ATTENTION)})|mlp\.({'|'.join(_MLP)}))")
    outside = [module for module in file.ranks if not names.fullmatch(module)]
    if outside:
        check.mistake(
            "leaves out modules that are not named like model.layers.0.self_attn.q_proj or model.layers.0.mlp.up_proj: "
            f"{_some(outside)}"
        )


def _lorax(file: _File, check: ServerCheck) -> None:
    """As TGI, whose code comes from it, with names that depend on the model."""
    _stacked(file, check)
    for kind in ("conv", "embedding", "expert"):
        if file.kinds(kind):
            check.mistake(f"leaves out everything but linear layers: {_some(file.kinds(kind))}")


def _stacked(file: _File, check: ServerCheck) -> None:
    """What TGI and LoRAX share: LoraWeights stacks one kind of layer over all layers, and pads its rank."""
    ranks: defaultdict[str, set[int]] = defaultdict(set)
    layers: defaultdict[str, set[int]] = defaultdict(set)
    for module, rank in file.ranks.items():
        kind = module.rpartition(".")[2]
        ranks[kind].add(rank)
        layers[kind] |= {int(number) for number in _LAYER.findall(module + ".")}
    uneven = sorted(kind for kind, found in ranks.items() if len(found) > 1)
    if uneven:
        check.refuse(f"takes one rank for all layers of a kind: {_some(uneven)}; write it with --layout portable")

    def scale(r: float) -> float:
        return file.alpha / (math.sqrt(r) if file.rslora else r)

    _one_scale(file, check, lambda _: scale(file.r), "computes every scale from r and lora_alpha, without patterns")
    n_layers = 1 + max((number for found in layers.values() for number in found), default=-1)
    gaps = sorted(kind for kind, found in layers.items() if len(found) < n_layers)
    if n_layers and gaps:
        check.mistake(f"leaves out a kind of layer that is not in all {n_layers} layers: {_some(gaps)}")
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
                f"after it: {_some(wrong)}; write it with --pad-to {_padded(file.rank)}"
            )
    if file.extra_weights:
        check.mistake(f"leaves out modules_to_save: {_some(file.extra_weights)}")


def _padded(rank: int) -> int:
    """Return the rank that the kernels of TGI and LoRAX work with, on one GPU (pad_rank)."""
    return 8 if rank <= 8 else -(-rank // 16) * 16


def _llama_cpp(file: _File, check: ServerCheck) -> None:
    """One lora_alpha for all; the scale is it over the rank of each tensor (get_scale). Other tensors are an error."""
    _one_scale(file, check, lambda module: file.alpha / file.ranks[module], "computes every scale as lora_alpha / rank")
    for kind in ("conv", "expert"):
        if file.kinds(kind):
            check.refuse(f"has no LoRA for layers of the kind {kind!r}: {_some(file.kinds(kind))}")
    if file.extra_weights:
        check.refuse(f"stops at modules_to_save: {_some(file.extra_weights)}")
    if not file.config.get("base_model_name_or_path"):
        check.setting = "--base FOLDER"
        check.notes.append("needs the config of the base model, whose name the adapter lacks")


def _peft(file: _File, check: ServerCheck) -> None:
    """It wrote the rules."""


def _diffusers(file: _File, check: ServerCheck) -> None:
    """Ranks are read from the tensors, alphas from the file (get_peft_kwargs)."""
    if file.format == "comfyui":
        check.notes.append("only for models that it has a conversion of names for; else lorakit convert --to diffusers")


def _mlx(file: _File, check: ServerCheck) -> None:
    """One rank and one scale for all; another shape is an error (load_adapters)."""


def _one_scale(file: _File, check: ServerCheck, rule: Callable[[str], float], what: str) -> None:
    wrong = file.of_scale(rule)
    if wrong:
        check.mistake(f"{what}, which is wrong for {_some(wrong)}; write it again with lorakit convert")


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


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _config(adapter: Adapter) -> dict[str, Any]:
    path = adapter.provenance.sources[0].config
    if path is not None and path.suffix == ".json":
        with suppress(OSError, ValueError, RecursionError):  # it was read and checked when the adapter was opened
            config = json.loads(path.read_text(encoding="utf-8-sig"))
            return config if isinstance(config, dict) else {}
    return {}


_SERVERS: tuple[tuple[str, str, tuple[str, ...], Callable[[_File, ServerCheck], None]], ...] = (
    ("vLLM", "0.33.0", ("peft",), _vllm),
    ("SGLang", "0.5.23", ("peft",), _sglang),
    ("TGI", "45d95bd", ("peft",), _tgi),
    ("LoRAX", "03679f3", ("peft",), _lorax),
    ("llama.cpp", "0b03ada", ("peft",), _llama_cpp),
    ("PEFT", "0.21.2", ("peft",), _peft),
    ("diffusers", "0.42.1", ("diffusers", "kohya", "comfyui"), _diffusers),
    ("MLX", "mlx-lm 0.32.2", ("mlx",), _mlx),
)
