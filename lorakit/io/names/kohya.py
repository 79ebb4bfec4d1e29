"""Kohya's flat module names, and those of diffusers that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from ...provenance import Provenance
from .diffusion import CLIP, CLIP_WITHOUT_TEXT_MODEL, T5, UNET, sgm_to_diffusers
from .spelling import Spelling
from .table import NameTable
from .translate import parts_by_name

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)")

# OneTrainer has diffusers' names of FLUX.1 and Stable Diffusion 3, and says so by its branch
ONE_TRAINER = Spelling("diffusers", "lora_transformer_", flat=True, marked_by="ot_branch")
SPELLINGS = (
    Spelling("original", "lora_unet_", flat=True),
    ONE_TRAINER,
    Spelling("diffusers", "lora_unet_", flat=True),  # FramePack in musubi-tuner
    Spelling("diffusers", "lycoris_", flat=True),  # SimpleTuner
)
_NUMBERED = re.compile(r"flux|sd3")  # trainers number the text encoders of these, also where they train one
_DEEP = re.compile(r"\.transformer_blocks\.[1-9]")  # SD 1 and 2 have one block an attention, SDXL up to ten


class _Dialects(NamedTuple):
    unet: NameTable  # Stable Diffusion 1 and 2; for SDXL, OneTrainer and many converters
    sgm: NameTable  # SDXL as sd-scripts trains it
    one_encoder: NameTable  # lora_te_
    encoders: NameTable  # lora_te1_, lora_te2_, lora_te3_


@cache
def dialects() -> _Dialects:
    """Return the tables from kohya's names, left, to diffusers', right. They are made when they are first needed."""
    return _Dialects(
        unet=NameTable(_flattened("lora_unet", "unet", UNET)),
        sgm=NameTable(_renamed("lora_unet", "unet", sgm_to_diffusers())),
        one_encoder=NameTable(_clip("lora_te", "text_encoder")),
        encoders=NameTable(
            [
                *_clip("lora_te1", "text_encoder"),
                *_clip("lora_te2", "text_encoder_2"),  # SDXL's and SD3's; that of FLUX.1 is a T5
                *_flattened("lora_te2", "text_encoder_2", T5),
                *_flattened("lora_te3", "text_encoder_3", T5),
            ]
        ),
    )


def model_of(metadata: Mapping[str, str]) -> str:
    """Return what training metadata call the kind of base model, in lower case; '' if they do not name it."""
    return (metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture") or "").lower()


def base_of(metadata: Mapping[str, str]) -> str | None:
    """Return the base model that training metadata name.

    The version, such as ``sdxl_base_v1-0``, is preferred: ``ss_sd_model_name`` is the name of a file on the trainer's
    disk, and differs between adapters of one base.
    """
    return metadata.get("ss_base_model_version") or metadata.get("ss_sd_model_name") or None


def version_name(known: Provenance) -> str | None:
    """Return the base model's name as kohya's files give it: a version, where training metadata have one."""
    return base_of(known.metadata) or known.base_model


def hub_name(known: Provenance) -> str | None:
    """Return the base model's name as most formats give it: an id of the Hugging Face Hub."""
    if known.format != "kohya":
        return known.base_model
    name = known.metadata.get("ss_sd_model_name") or known.base_model or ""
    return name if _HUB_ID.fullmatch(name) else None


def diffusers_names(modules: Iterable[str]) -> dict[str, str | None]:
    """Translate kohya's names of UNets and text encoders, of whatever dialect; None where there is no translation."""
    return {module: _right_of_any(dialects(), module) for module in modules}


def two_spellings(modules: Iterable[str]) -> tuple[str, str] | None:
    """Return two of these kohya names that mean one module, or of which one means a part; None if there are none.

    SDXL's UNet is ``input_blocks`` to sd-scripts and ``down_blocks`` to OneTrainer, one text encoder ``te`` or ``te1``,
    and transformers have the names of their first code to sd-scripts and those of diffusers to OneTrainer.
    """
    first: dict[str, str] = {}
    parts: dict[str, set[str]] = {}
    for module, meant in diffusers_names(modules).items():
        if meant is not None and first.setdefault(meant, module) != module:
            return first[meant], module
        if meant is None and (found := parts_by_name(SPELLINGS, module)):
            parts[module] = found
    # of families that explain all names: of others, two names of one model may seem to be one layer
    families = [{part.partition(":")[0] for part in found} for found in parts.values()]
    common = set.intersection(*families) if families else set()
    for module, found in parts.items():
        for part in sorted(part for part in found if part.partition(":")[0] in common):
            if first.setdefault(part, module) != module:
                return first[part], module
    return None


def kohya_names(
    modules: Sequence[str], metadata: Mapping[str, str], transformer: bool, *, third: bool = False
) -> dict[str, str | None]:
    """Translate diffusers' names of UNets and text encoders; None where there is no translation.

    One module may have several names in kohya files. The other modules and ``ss_base_model_version`` tell which one to
    take, so that a conversion there and back restores the names: sgm's for SDXL's UNet, and lora_te1_ where there are
    several text encoders or a transformer. With ``third`` a T5 that is the second encoder is called the third one, as
    sd-scripts has it for FLUX.1, unless OneTrainer trained it.
    """
    known, model = dialects(), model_of(metadata)
    parts: dict[str, list[str]] = {}
    for module in modules:
        parts.setdefault(module.partition(".")[0], []).append(module)
    more = {"text_encoder_2", "text_encoder_3"} & set(parts)
    sdxl = model.startswith("sdxl") or ("unet" in parts and (more or any(map(_DEEP.search, parts["unet"]))))
    numbered = sdxl or more or transformer or "transformer" in parts or bool(_NUMBERED.match(model))
    tables: dict[str, tuple[NameTable, ...]] = {
        "unet": (known.sgm, known.unet) if sdxl else (known.unet,),
        "text_encoder": (known.encoders if numbered else known.one_encoder,),
    }
    named: dict[str, str | None] = {}
    for part, members in parts.items():
        named |= _first_for_all(tables.get(part, (known.encoders,)), members)
    if third and ONE_TRAINER.marked_by not in metadata:
        named |= {m: n.replace("lora_te2_encoder", "lora_te3_encoder", 1) for m, n in named.items() if n is not None}
    return {module: named[module] for module in modules}


def _right_of_any(tables: Iterable[NameTable], module: str) -> str | None:
    return next((name for table in tables if (name := table.right_of(module)) is not None), None)


def _first_for_all(tables: Sequence[NameTable], modules: Sequence[str]) -> dict[str, str | None]:
    """Translate with the first table that knows all of these names, else with the last."""
    for table in tables:
        named = {module: table.left_of(module) for module in modules}
        if all(named.values()):
            break
    return named


def flat(name: str) -> str:
    """Return a module's path as kohya's files spell it."""
    return name.replace(".", "_")


def _flattened(prefix: str, component: str, names: Iterable[str]) -> list[tuple[str, str]]:
    return [(f"{prefix}_{flat(name)}", f"{component}.{name}") for name in names]


def _renamed(prefix: str, component: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{prefix}_{flat(old)}", f"{component}.{new}") for old, new in names.items()]


def _clip(prefix: str, component: str) -> list[tuple[str, str]]:
    # The names without text_model come last: from kohya's side they are never reached, as diffusers reads files with
    # text_model whatever its model has.
    bare = [(f"{prefix}_text_model_{flat(name)}", f"{component}.{name}") for name in CLIP_WITHOUT_TEXT_MODEL]
    return [*_flattened(prefix, component, CLIP), *bare]
