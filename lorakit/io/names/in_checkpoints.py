"""The names that the modules of an adapter have in a checkpoint."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from ...exceptions import IncompatibleAdaptersError
from ...files.checkpoint import HEAD, Checkpoint
from .diffusion import sgm_to_diffusers
from .kohya import SPELLINGS, diffusers_names, flat
from .table import NameTable
from .translate import one_part

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
    ("text_encoders.t5xxl.transformer.", ("lora_te3_", "lora_te2_")),  # OneTrainer's of FLUX.1 are te2
    ("text_encoder.", ("lora_te_", "lora_te1_")),
    ("text_encoder_2.", ("lora_te2_", "lora_te3_")),  # to sd-scripts the T5 of FLUX.1 is the third
    ("text_encoder_3.", ("lora_te3_",)),
)
_SINGLE_FILE = "model.diffusion_model."
_NESTED = ".base_layer"
_MIXTRAL = (".mlp.", ".block_sparse_moe.")  # in transformers since version 5, and in files


def names_in(
    checkpoint: Checkpoint, modules: Mapping[str, str], *, adapter: str, format: str, metadata: Mapping[str, str]
) -> dict[str, str]:
    """Return the checkpoint's name of every module: in the spelling, behind the beginning, that most are found by.

    Parameters
    ----------
    checkpoint : Checkpoint
        The base model.
    modules : mapping of str to str
        The adapter's modules, and what kind of layer each is: the name of its ``ModuleKind``.
    adapter : str
        Its name, for messages.
    format : str
        The format of its files.
    metadata : mapping of str to str
        What the header of its file says.

    Raises
    ------
    IncompatibleAdaptersError
        If the names could mean several parts of the checkpoint.
    """
    by_end: dict[str, list[str]] = defaultdict(list)
    for module in checkpoint.modules:
        by_end[module.rpartition(".")[2]].append(module)

    def ends(name: str) -> list[str]:
        return [m for m in by_end[name.rpartition(".")[2]] if m.endswith(f".{name}")]

    best: tuple[int, dict[str, str]] = (-1, {})
    for spelling in _spellings(list(modules), format, metadata, checkpoint):
        layers = {m: layer_of(name, modules[m]) for m, name in spelling.items()}
        wanted = {layer for layer in layers.values() if not is_head(layer) or layer in checkpoint.modules}
        votes: Counter[tuple[str, str]] = Counter()
        for layer in wanted:
            votes.update(_prefix_changes(layer, checkpoint, ends))
        top = max(votes.values(), default=0)
        winners = sorted(change for change, count in votes.items() if count == top)
        if len(winners) > 1 and ("", "") not in winners:
            example = min(wanted)
            raise IncompatibleAdaptersError(
                f"{example!r} of {adapter!r} could be "
                + " or ".join(repr(new + example.removeprefix(old)) for old, new in winners[:3]),
                path=checkpoint.name,
                adapters=[adapter],
                expected="names that mean one module each",
                remedy="rename them with Adapter.rename_modules",
            )
        old, new = ("", "") if ("", "") in winners or not winners else winners[0]
        if top > best[0]:
            best = (top, {m: new + name.removeprefix(old) for m, name in spelling.items()})
        if top == len(wanted):
            break
    return best[1]


def is_head(layer: str) -> bool:
    """Whether a layer is the output head, whose tensor a checkpoint may share with the embedding."""
    return layer.rpartition(".")[2] == HEAD


def layer_of(module: str, kind: str) -> str:
    """Return the module of the model that holds an adapted weight: for an expert, the one that holds its parameter."""
    if kind != "expert":
        return module
    layer = module.rpartition(".")[0]
    while layer.endswith(_NESTED):  # several parameters of one layer: PEFT nests their factors
        layer = layer.removesuffix(_NESTED)
    return layer


def _spellings(
    modules: list[str], format: str, metadata: Mapping[str, str], checkpoint: Checkpoint
) -> Iterator[Mapping[str, str]]:
    """Yield tables from the adapter's modules to names that may be the checkpoint's; their own names first."""
    own = {module: module for module in modules}
    yield own
    if format == "kohya":
        known = _kohya_spellings(checkpoint)
        yield {module: known.get(module, module) for module in modules}
        own = {module: name or _in_transformer(module) for module, name in diffusers_names(modules).items()}
        yield own
    table = single_file_names(checkpoint)
    if table is not None:
        for prefix in ("", "unet."):
            yield {module: table.left_of(prefix + name) or name for module, name in own.items()}
    if any(_MIXTRAL[1] in name for name in checkpoint.infos):
        yield {module: module.replace(*_MIXTRAL) for module in modules}


def _in_transformer(module: str) -> str:
    name = one_part(SPELLINGS, module)
    return module if name is None else f"transformer.{name}"


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


def single_file_names(checkpoint: Checkpoint) -> NameTable | None:
    """Return the names of a UNet in a single file, left, and those of diffusers, right; None for other checkpoints."""
    if not any(name.startswith(_SINGLE_FILE) for name in checkpoint.infos):
        return None
    return _single_file(4 if f"{_SINGLE_FILE}input_blocks.11.0.in_layers.0.weight" in checkpoint else 3)


@cache
def _single_file(n_blocks: int) -> NameTable:
    """Return the names in a single file of Stable Diffusion, left, and those of diffusers, right."""
    names = sgm_to_diffusers(n_blocks).items()
    return NameTable((f"{_SINGLE_FILE}{single}", f"unet.{theirs}") for single, theirs in names)


def _prefix_changes(module: str, checkpoint: Checkpoint, ends: Callable[[str], list[str]]) -> set[tuple[str, str]]:
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
