"""The names that the modules of an adapter may have in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from ..adapters import Adapter
from ..io.formats.peft.experts import owner
from ..io.names.diffusion import sgm_to_diffusers
from ..io.names.kohya import diffusers_names, flat
from ..io.names.table import NameTable
from .checkpoint import Checkpoint

# Where the models of a pipeline lie in single files and in folders, and what kohya's names begin with for each
_IN_KOHYA = (
    ("model.diffusion_model.", ("lora_unet_",)),
    ("diffusion_model.", ("lora_unet_",)),
    ("unet.", ("lora_unet_",)),
    ("transformer.", ("lora_unet_", "lora_transformer_")),
    ("cond_stage_model.transformer.", ("lora_te_",)),
    ("conditioner.embedders.0.transformer.", ("lora_te1_",)),
    ("text_encoders.clip_l.transformer.", ("lora_te1_",)),
    ("text_encoders.clip_g.transformer.", ("lora_te2_",)),
    ("text_encoders.t5xxl.transformer.", ("lora_te3_",)),
    ("text_encoder.", ("lora_te_", "lora_te1_")),
    ("text_encoder_2.", ("lora_te2_",)),
    ("text_encoder_3.", ("lora_te3_",)),
)
_SINGLE_FILE = "model.diffusion_model."
_MIXTRAL = (".mlp.", ".block_sparse_moe.")  # in transformers since version 5, and in files


def layer_of(module: str, kind: str) -> str:
    """Return the module of the model that holds an adapted weight: for an expert, the one that holds its parameter."""
    return owner(module.rpartition(".")[0]) if kind == "expert" else module


def spellings(adapter: Adapter, checkpoint: Checkpoint) -> Iterator[Mapping[str, str]]:
    """Yield tables from the adapter's modules to names that may be the checkpoint's; their own names first."""
    own = {module: module for module in adapter}
    yield own
    if adapter.provenance.format == "kohya":
        known = _kohya_spellings(checkpoint)
        yield {module: known.get(module, module) for module in adapter}
        own = {module: name or module for module, name in diffusers_names(adapter, adapter.provenance.metadata).items()}
        yield own
    if any(name.startswith(_SINGLE_FILE) for name in checkpoint.infos):
        table = _single_file(4 if f"{_SINGLE_FILE}input_blocks.11.0.in_layers.0.weight" in checkpoint else 3)
        for prefix in ("", "unet."):
            yield {module: table.left_of(prefix + name) or name for module, name in own.items()}
    if any(_MIXTRAL[1] in name for name in checkpoint.infos):
        yield {module: module.replace(*_MIXTRAL) for module in adapter}


def _kohya_spellings(checkpoint: Checkpoint) -> dict[str, str]:
    """Return kohya's name of every module of a checkpoint; names that could be of two modules are left out."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for module in checkpoint.modules:
        for name in _kohya_names(module):
            if found.setdefault(name, module) != module:
                twice.add(name)
    return {name: module for name, module in found.items() if name not in twice}


def _kohya_names(module: str) -> Iterable[str]:
    for place, prefixes in _IN_KOHYA:
        if module.startswith(place):
            rest = module.removeprefix(place)
            return [prefix + flat(rest) for prefix in prefixes] + [
                f"{prefix}text_model_{flat(rest)}" for prefix in prefixes if "_te" in prefix
            ]
    return [f"lora_unet_{flat(module)}"]  # a file with one model in it


@cache
def _single_file(n_blocks: int) -> NameTable:
    """Return the names in a single file of Stable Diffusion, left, and those of diffusers, right."""
    names = sgm_to_diffusers(n_blocks).items()
    return NameTable((f"{_SINGLE_FILE}{single}", f"unet.{theirs}") for single, theirs in names)


def prefix_changes(module: str, checkpoint: Checkpoint, ends: Callable[[str], list[str]]) -> set[tuple[str, str]]:
    """Return how the beginning of a name may change so that it names a module of the checkpoint.

    Returns
    -------
    set of (str, str)
        What to take away, and what to put before the rest; one of the two is empty.
    """
    found = {("", longer.removesuffix(module)) for longer in ends(module)}
    parts = module.split(".")
    for i in range(len(parts)):
        rest = ".".join(parts[i:])
        if rest in checkpoint.modules:
            found.add((module.removesuffix(rest), ""))
    return found
