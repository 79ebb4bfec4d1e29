"""What an adapter's files say of how they came about: the trainer, and the family of the base model.

Nothing is guessed. A trainer is named if its own mark is in the metadata, in the config or in the keys; a family, if
the names of the modules are those of one table, or the config names the model's class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..adapters import Adapter
from ..exceptions import LorakitError
from ..files.checks import is_pickled
from ..files.json_text import parse_json, read_json_object
from ..files.safetensors import Header, read_header
from .convert import what_is_known
from .formats.peft.about import CONFIG
from .formats.record import KEY
from .formats.registry import abouts
from .names.language import MLX_AND_PEFT
from .names.table import shape_of
from .names.translate import candidates

__all__ = ["family_of", "trainer_at", "trainer_of"]

# Names of network modules that musubi-tuner has and sd-scripts has not; both call others networks.lora
_OF_MUSUBI = re.compile(r"networks\.lora_(wan|framepack|hv_1_5|flux_2|qwen_image|zimage|kandinsky5)$")
_COMMIT_OF_SD_SCRIPTS = "ss_sd_scripts_commit_hash"  # musubi-tuner, which began as a copy, does not write it
_OF_FORMAT = {"mlx": "mlx-lm", "xlabs": "XLabs' x-flux"}  # formats that one program writes
_UNET = re.compile(r"(?:.*[._])?(?:(?:down|up|input|output)_blocks[._]\d|mid_block[._]|middle_block[._]\d)")
_CROSS_ATTENTION = re.compile(r".*[._]attn2[._]to_[kv]$")
_TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # the inputs of cross-attention
_LANGUAGE_MODEL = frozenset(MLX_AND_PEFT)


def trainer_of(adapter: Adapter) -> str | None:
    """Return the program that wrote an adapter's files, with its version where they say it; None if they do not.

    A file of lorakit keeps the metadata of the files that it was made of; its writer is lorakit.
    """
    found = _by_metadata(_header(adapter).metadata) or _OF_FORMAT.get(adapter.provenance.format)
    return found or _by_names(adapter) or _by_config(_config(adapter))


def trainer_at(path: Path) -> str | None:
    """Return the program that wrote the files at a path, whether or not they can be read as an adapter.

    None if they do not say, or their header or config cannot be read.
    """
    try:
        folder = path if path.is_dir() else path.parent
        names = [name for known in abouts() for name in known.weights]
        weights = next((path / name for name in names if (path / name).is_file()), None) if path.is_dir() else path
        config = folder / CONFIG if path.is_dir() or path.name in names else None
        header = Header({}, {}) if weights is None or is_pickled(weights) else read_header(weights)
        fields = read_json_object(config) if config is not None and config.is_file() else {}
    except (LorakitError, OSError):
        return None
    return _by_metadata(header.metadata) or _by_names(header.tensors) or _by_config(fields)


def family_of(adapter: Adapter) -> str | None:
    """Return the family of models that an adapter is for, and whose names it has; None if nothing shows it."""
    known = what_is_known(adapter)
    names = f"{adapter.provenance.format} names"
    families = candidates(known).families if known.spellings else ()
    if families:
        *others, last = (family.title for family in families)
        return f"{' or '.join(filter(None, (', '.join(others), last)))} ({names})"
    if any(map(_UNET.match, adapter)):
        return f"{_unet(adapter)} ({names})"
    if any(shape_of(module) in _LANGUAGE_MODEL for module in adapter):
        return f"a language model with Llama's names ({names})"
    mapping = _config(adapter).get("auto_mapping")
    if isinstance(mapping, dict) and str(mapping.get("parent_library")).startswith("transformers."):
        return f"{mapping.get('base_model_class')} of transformers"
    return "a model of transformers" if adapter.provenance.task_type else None


def _by_metadata(metadata: Mapping[str, str]) -> str | None:
    if KEY in metadata:
        return _with_version("lorakit", _parsed(metadata[KEY]).get("versions", {}).get("lorakit"))
    software = _parsed(metadata.get("software", ""))
    if isinstance(software.get("name"), str):
        return _with_version(software["name"], software.get("version"))
    if "ot_branch" in metadata or "ot_revision" in metadata:
        return "OneTrainer"
    module = metadata.get("ss_network_module", "")
    if _COMMIT_OF_SD_SCRIPTS in metadata:
        return "LyCORIS in sd-scripts" if module.startswith("lycoris.") else "sd-scripts"
    if _OF_MUSUBI.match(module):
        return "musubi-tuner"
    if module.startswith("lycoris."):
        return "LyCORIS in kohya's trainers"
    if module.startswith("networks."):
        return "sd-scripts or musubi-tuner"
    return "diffusers" if "lora_adapter_metadata" in metadata else None


def _by_names(names: Iterable[str]) -> str | None:
    return "LyCORIS" if any(name.startswith("lycoris_") for name in names) else None


def _by_config(config: Mapping[str, Any]) -> str | None:
    if "peft_version" in config:
        return _with_version("PEFT", config["peft_version"])
    return "PEFT" if "peft_type" in config else None


def _unet(adapter: Adapter) -> str:
    widths = {info.d_in for module, info in adapter.infos.items() if _CROSS_ATTENTION.match(module)}
    width = widths.pop() if len(widths) == 1 else None
    return _TEXT_WIDTHS.get(width or 0, "Stable Diffusion 1, 2 or XL")


def _header(adapter: Adapter) -> Header:
    path = adapter.provenance.sources[0].path if adapter.provenance.sources else None
    if path is None or is_pickled(path):
        return Header({}, {})
    return read_header(path)


def _config(adapter: Adapter) -> Mapping[str, Any]:
    path = adapter.provenance.sources[0].config if adapter.provenance.sources else None
    return {} if path is None else read_json_object(path)


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text.encode())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _with_version(name: str, version: object) -> str:
    return f"{name} {version}" if isinstance(version, str) and version else name
